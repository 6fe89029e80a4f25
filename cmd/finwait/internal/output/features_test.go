package output

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/measure"
	"github.com/finwait/finwait/tracer"
)

func sampleCapabilities(effective bool) []tracer.Capability {
	return []tracer.Capability{
		{Name: "CAP_BPF", Effective: effective, Purpose: "load programs and maps"},
		{Name: "CAP_SYS_PTRACE", Purpose: "see the sockets and namespaces of other users' processes"},
	}
}

// bothTiers is a host with nothing missing but a function, of which each tier
// was measured in another way.
func bothTiers() *Features {
	return &Features{
		Host: &tracer.Features{
			Release: "6.12.48+deb13-amd64", Machine: "x86_64", BTF: true, BTFSize: 5516713,
			SocketCookie: tracer.AnswerYes, Lockdown: "integrity", KptrRestrictKnown: true,
			Symbols: tracer.AnswerYes, InitialUserNS: tracer.AnswerYes,
			Capabilities: sampleCapabilities(true),
			Tiers: []tracer.TierFeatures{
				{Evidence: tracer.EvidenceProbe, Start: 187 * time.Millisecond, Missing: []tracer.MissingProgram{{Name: "tw_timer", Function: "tw_timer_handler"}}},
				{Evidence: tracer.EvidenceTimer, Start: 1187 * time.Millisecond},
			},
		},
		Costs: []TierCost{
			{Evidence: tracer.EvidenceProbe, Cost: &measure.Cost{
				Programs: 20, MapMemory: 73601968, MapMemoryKnown: true,
				Connections: 200, Transitions: 2613,
				Runs: []tracer.ProgramStats{
					{Name: "set_state", AttachedTo: "tp_btf/inet_sock_set_state", Runs: 2002, RunTime: 1142646},
					{Name: "reqsk_destructor4_again", AttachedTo: "fexit/inet_csk_reqsk_queue_hash_add", Runs: 1_234_567, RunTime: 12345 * time.Microsecond * 10_000},
					{Name: "twsk_alloc", AttachedTo: "fexit/inet_twsk_alloc", RecursionMisses: 1},
				},
			}},
			{Evidence: tracer.EvidenceTimer, Cost: &measure.Cost{
				Programs: 12, RunErr: os.ErrPermission,
			}},
		},
	}
}

func timerOnly() *Features {
	f := bothTiers()
	f.Host.Tiers[0] = tracer.TierFeatures{Evidence: tracer.EvidenceProbe, Err: errors.New("load a probe: load program: operation not permitted" + memlockHint)}
	f.Costs = []TierCost{{Evidence: tracer.EvidenceTimer, Err: errors.New("load programs: out of memory")}}
	return f
}

// nothingKnown is a host that tells nothing and lets nothing be done.
func nothingKnown() *Features {
	err := fmt.Errorf("tracing needs root, or CAP_BPF, CAP_PERFMON and CAP_SYSLOG: %w", os.ErrPermission)
	return &Features{
		Host: &tracer.Features{
			Capabilities: sampleCapabilities(false),
			Tiers:        []tracer.TierFeatures{{Evidence: tracer.EvidenceProbe, Err: err}, {Evidence: tracer.EvidenceTimer, Err: err}},
			TracingErr:   err,
			CensusErr:    fmt.Errorf("the kernel has no tcp_diag (modprobe tcp_diag): %w", tracer.ErrNotSupported),
		},
		NotMeasured: "tracing does not work here",
	}
}

// everythingMissing is a host where all that can be refused is.
func everythingMissing() *Features {
	f := nothingKnown()
	f.Host.Release = "5.10.0-30-amd64"
	f.Host.SocketCookie, f.Host.Symbols, f.Host.InitialUserNS = tracer.AnswerNo, tracer.AnswerNo, tracer.AnswerNo
	f.Host.Lockdown, f.Host.KptrRestrict, f.Host.KptrRestrictKnown = "confidentiality", 2, true
	f.Host.TracingErr = errors.Join(errors.New("evidence by probe: refused"), errors.New("evidence by timer: refused"))
	return f
}

func hostileFeatures() *Features {
	f := timerOnly()
	f.Host.Release, f.Host.Machine, f.Host.Lockdown = hostileText, hostileText, hostileText
	f.Host.Tiers[0].Err = errors.New(hostileText)
	f.Host.CensusErr = errors.New(hostileText)
	f.Costs[0].Err = errors.New(hostileText)
	return f
}

func featuresSamples() map[string]*Features {
	return map[string]*Features{
		"both": bothTiers(), "timer": timerOnly(), "unknown": nothingKnown(), "missing": everythingMissing(), "hostile": hostileFeatures(),
	}
}

func TestFeaturesGolden(t *testing.T) {
	for name, f := range featuresSamples() {
		t.Run(name, func(t *testing.T) {
			golden(t, "features-"+name+".txt.golden", AppendFeaturesText(nil, f))
			golden(t, "features-"+name+".json.golden", AppendFeaturesJSON(nil, f))
		})
	}
}

// assertFeatures holds what every report must be.
func assertFeatures(t *testing.T, f *Features) {
	t.Helper()
	line := AppendFeaturesJSON([]byte("before "), f)
	qt.Assert(t, qt.IsTrue(bytes.HasPrefix(line, []byte("before {"))))
	line = line[len("before "):]
	qt.Assert(t, qt.IsTrue(json.Valid(line)))
	assertOneLine(t, line)
	text := string(AppendFeaturesText(nil, f))
	for line := range strings.Lines(text) {
		assertSafe(t, []byte(strings.TrimSuffix(line, "\n")))
		qt.Assert(t, qt.IsFalse(strings.HasSuffix(line, " \n")), qt.Commentf("%q", line))
	}
}

func TestFeaturesWidth(t *testing.T) {
	for name, f := range featuresSamples() {
		assertFeatures(t, f)
		for line := range strings.Lines(string(AppendFeaturesText(nil, f))) {
			qt.Check(t, qt.IsTrue(utf8.RuneCountInString(line) <= defaultWidth), qt.Commentf("%s: %q", name, line))
		}
	}
}

func FuzzFeatures(f *testing.F) {
	for _, comm := range hostileComms {
		f.Add(comm, comm, comm, "load: "+comm)
	}
	f.Add(" ", "\n", " ", "\t")
	f.Fuzz(func(t *testing.T, release, machine, lockdown, failure string) {
		features := hostileFeatures()
		features.Host.Release, features.Host.Machine, features.Host.Lockdown = release, machine, lockdown
		features.Host.Tiers[0].Err = errors.New(failure)
		assertFeatures(t, features)
	})
}
