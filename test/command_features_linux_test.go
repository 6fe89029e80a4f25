package test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
)

// features is what finwait features --format json prints, as far as the tests
// look at it.
type features struct {
	Release      string
	Tracing      bool
	TracingError string `json:"tracing_error"`
	Evidence     string
	Counting     bool
	BTF          bool
	BTFBytes     int64 `json:"btf_bytes"`
	SocketCookie *bool `json:"socket_cookie"`
	Capabilities []struct {
		Name      string
		Effective bool
	}
	Tiers []struct {
		Evidence       string
		Usable, Chosen bool
		Error          string
		StartNS        int64 `json:"start_ns"`
		Cost           *featuresCost
		CostError      string `json:"cost_error"`
	}
}

type featuresCost struct {
	Programs        int
	RunError        string `json:"run_error"`
	Connections     uint64
	Transitions     uint64
	RunTimeNS       int64 `json:"run_time_ns"`
	NSPerTransition int64 `json:"ns_per_transition"`
	ProgramRuns     []struct {
		Name       string
		AttachedTo string `json:"attached_to"`
		Runs       uint64
		RunTimeNS  int64 `json:"run_time_ns"`
	} `json:"program_runs"`
}

func parseFeatures(t testing.TB, res result) (f features) {
	t.Helper()
	qt.Assert(t, qt.Equals(strings.Count(res.stdout, "\n"), 1), qt.Commentf("%s", res.stderr))
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(res.stdout), &f)))
	return f
}

// TestFeaturesHost holds what is said of the host to what others say.
func TestFeaturesHost(t *testing.T) {
	netns.RequireRoot(t)
	res := finwait(t, "features", "--no-measure", "--format", "json")
	qt.Assert(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	qt.Check(t, qt.Equals(res.stderr, ""))
	f := parseFeatures(t, res)

	release, err := exec.Command("uname", "-r").Output()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(f.Release+"\n", string(release)))
	btf, err := os.Stat("/sys/kernel/btf/vmlinux")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(f.BTF))
	qt.Check(t, qt.Equals(f.BTFBytes, btf.Size()))
	qt.Check(t, qt.IsNotNil(f.SocketCookie))
	qt.Check(t, qt.IsTrue(f.Counting))
	for _, c := range f.Capabilities {
		qt.Check(t, qt.IsTrue(c.Effective), qt.Commentf(c.Name))
	}
	for _, tier := range f.Tiers {
		qt.Check(t, qt.IsNil(tier.Cost))
	}
}

// TestFeaturesTier expects the tiers that trace takes, and of those the one that
// it takes by itself.
func TestFeaturesTier(t *testing.T) {
	netns.RequireRoot(t)
	announced := map[string]string{"probe": "by probes", "timer": "by the timer tracepoints"}
	f := parseFeatures(t, finwait(t, "features", "--no-measure", "--format", "json"))
	res := finwait(t, "trace", "--duration", "1ms")
	qt.Assert(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	qt.Check(t, qt.IsTrue(f.Tracing))
	qt.Check(t, qt.StringContains(res.stderr, announced[f.Evidence]))

	qt.Assert(t, qt.HasLen(f.Tiers, len(announced)))
	for _, tier := range f.Tiers {
		qt.Check(t, qt.Equals(tier.Chosen, tier.Evidence == f.Evidence))
		qt.Check(t, qt.Equals(tier.Usable, tier.Error == ""))
		res := finwait(t, "trace", "--duration", "1ms", "--evidence", tier.Evidence)
		qt.Check(t, qt.Equals(res.code == 0, tier.Usable), qt.Commentf("%s: %s", tier.Evidence, res.stderr))
		if tier.Usable {
			qt.Check(t, qt.StringContains(res.stderr, announced[tier.Evidence]))
		}
	}
}

// TestFeaturesCost expects each usable tier to have been measured: every
// connection has at least eleven transitions, and the tracepoint's programs run
// for ten of them (all but the half-open one and TIME_WAIT, and FIN_WAIT2→CLOSE
// more).
func TestFeaturesCost(t *testing.T) {
	netns.RequireRoot(t)
	res := finwait(t, "features", "--format", "json")
	qt.Assert(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	for _, tier := range parseFeatures(t, res).Tiers {
		if !tier.Usable {
			qt.Check(t, qt.IsNil(tier.Cost))
			continue
		}
		qt.Check(t, qt.IsTrue(tier.StartNS > 0))
		qt.Assert(t, qt.Equals(tier.CostError, ""))
		qt.Assert(t, qt.IsNotNil(tier.Cost))
		checkCost(t, tier.Cost)
	}
}

func checkCost(t testing.TB, c *featuresCost) {
	t.Helper()
	qt.Assert(t, qt.Equals(c.RunError, ""))
	qt.Check(t, qt.Equals(c.Connections, 200))
	qt.Check(t, qt.IsTrue(c.Transitions >= 11*c.Connections), qt.Commentf("%d transitions", c.Transitions))
	qt.Check(t, qt.IsTrue(c.Programs > len(c.ProgramRuns)/2), qt.Commentf("%d programs", c.Programs))
	qt.Check(t, qt.IsTrue(c.NSPerTransition > 0))
	var sum int64
	for _, p := range c.ProgramRuns {
		sum += p.RunTimeNS
		if strings.HasPrefix(p.Name, "set_state") {
			qt.Check(t, qt.Equals(p.AttachedTo, "tp_btf/inet_sock_set_state"))
			qt.Check(t, qt.IsTrue(p.Runs >= 10*c.Connections), qt.Commentf("%s: %d runs", p.Name, p.Runs))
		}
	}
	qt.Check(t, qt.Equals(sum, c.RunTimeNS))
}

// TestFeaturesText reads what people do.
func TestFeaturesText(t *testing.T) {
	netns.RequireRoot(t)
	res := finwait(t, "features")
	qt.Assert(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	qt.Check(t, qt.Equals(res.stderr, ""))
	qt.Check(t, qt.IsTrue(strings.HasPrefix(res.stdout, "finwait trace works here, by ")), qt.Commentf("%s", res.stdout))
	qt.Check(t, qt.StringContains(res.stdout, "can be used, and is chosen"))
	qt.Check(t, qt.StringContains(res.stdout, "tp_btf/inet_sock_set_state"))
	for line := range strings.Lines(res.stdout) {
		qt.Check(t, qt.IsTrue(utf8.RuneCountInString(line) <= 80), qt.Commentf("%q", line))
	}
}

// TestFeaturesNotRoot expects the sentence that trace says, and all that can be
// seen without privileges.
func TestFeaturesNotRoot(t *testing.T) {
	netns.RequireRoot(t)
	traced := runCommand(t, asNobody(exec.Command(binary(t), "trace")))
	res := runCommand(t, asNobody(exec.Command(binary(t), "features", "--format", "json")))
	qt.Check(t, qt.Equals(res.code, 1))
	qt.Check(t, qt.Equals(res.stderr, traced.stderr))
	checkSentence(t, res.stderr)
	f := parseFeatures(t, res)
	qt.Check(t, qt.IsFalse(f.Tracing))
	qt.Check(t, qt.IsNil(f.SocketCookie))
	qt.Check(t, qt.Equals("finwait: "+f.TracingError+"\n", res.stderr))
	qt.Check(t, qt.IsTrue(f.Counting))
	for _, c := range f.Capabilities {
		qt.Check(t, qt.IsFalse(c.Effective), qt.Commentf(c.Name))
	}
	for _, tier := range f.Tiers {
		qt.Check(t, qt.IsFalse(tier.Usable))
		qt.Check(t, qt.IsNil(tier.Cost))
	}
}

// TestFeaturesFewCapabilities has what tracing takes, and not what measuring
// takes beyond it.
func TestFeaturesFewCapabilities(t *testing.T) {
	netns.RequireRoot(t)
	const few = "-all,+bpf,+perfmon,+syslog"
	cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps="+few, "--ambient-caps="+few,
		binary(t), "features", "--format", "json")
	cmd.Dir = "/"
	res := runCommand(t, cmd)
	qt.Assert(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	for _, tier := range parseFeatures(t, res).Tiers {
		if !tier.Usable {
			continue
		}
		qt.Assert(t, qt.IsNotNil(tier.Cost))
		qt.Check(t, qt.IsTrue(tier.Cost.Programs > 0))
		qt.Check(t, qt.IsTrue(tier.StartNS > 0))
		qt.Check(t, qt.StringContains(tier.Cost.RunError, "not permitted"))
		qt.Check(t, qt.HasLen(tier.Cost.ProgramRuns, 0))
	}
}

func TestFeaturesNoBTF(t *testing.T) {
	netns.RequireRoot(t)
	const script = `mount --make-rprivate / && mount -t tmpfs none /sys/kernel/btf && exec "$0" features`
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script, binary(t))
	res := runCommand(t, cmd)
	qt.Check(t, qt.Equals(res.code, 1))
	checkSentence(t, res.stderr)
	qt.Check(t, qt.StringContains(res.stderr, "the kernel has no BTF"))
	qt.Check(t, qt.StringContains(res.stdout, "BTF             no: "))
}

// TestFeaturesUsage needs no privileges: the command line is looked at first.
func TestFeaturesUsage(t *testing.T) {
	checkFailure(t, finwait(t, "features", "--format", "csv"), 2, `"csv"`, "text or json")
	checkFailure(t, finwait(t, "features", "stray"), 2, `"stray"`)
	checkFailure(t, finwait(t, "features", "\x1b[31m"), 2, `\x1b[31m`)
	res := finwait(t, "features", "--help")
	qt.Check(t, qt.Equals(res.code, 0))
	qt.Check(t, qt.StringContains(res.stdout, "--no-measure"))
}

// TestFeaturesLeavesNothing ends it at many moments, and looks for programs,
// maps and links that have stayed in the kernel.
func TestFeaturesLeavesNothing(t *testing.T) {
	netns.RequireRoot(t)
	before, err := oracle.Leftovers()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(finwait(t, "features").code, 0))
	for _, signal := range []os.Signal{os.Interrupt, unix.SIGTERM, os.Kill} {
		for after := time.Duration(0); after < 800; after += 100 {
			p := spawn(t, exec.Command(binary(t), "features"))
			time.Sleep(after * time.Millisecond) // anywhere in it is right
			if err := p.cmd.Process.Signal(signal); err != nil {
				qt.Assert(t, qt.IsTrue(errors.Is(err, os.ErrProcessDone)), qt.Commentf("%v", err))
			}
			res := p.wait()
			if signal == os.Interrupt && res.code == 1 {
				qt.Check(t, qt.Equals(res.stdout, ""))
				checkSentence(t, res.stderr)
			}
		}
	}
	awaitNothingLeft(t, before)
}
