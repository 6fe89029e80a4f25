package tracer

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/go-quicktest/qt"
)

// hostFS is a host whose files say that.
func hostFS(lockdown, kptr, kallsyms string) fstest.MapFS {
	return fstest.MapFS{
		"sys/kernel/btf/vmlinux":         {Data: []byte("types")},
		"sys/kernel/security/lockdown":   {Data: []byte(lockdown)},
		"proc/sys/kernel/kptr_restrict":  {Data: []byte(kptr)},
		"proc/kallsyms":                  {Data: []byte(kallsyms)},
		"proc/sys/kernel/unrelated_name": {Data: []byte("1")},
	}
}

func TestReadHost(t *testing.T) {
	const (
		perCPU = "0000000000000000 A fixed_percpu_data\n0000000000001000 A cpu_debug_store\n"
		shown  = "ffffffff81000000 T _text\n"
		hidden = "0000000000000000 T _text\n"
	)
	btf := Features{BTF: true, BTFSize: 5}
	with := func(change func(*Features)) Features { f := btf; change(&f); return f }
	for _, test := range []struct {
		name string
		host fstest.MapFS
		want Features
	}{
		{"nothing", fstest.MapFS{}, Features{}},
		{"empty files", hostFS("", "", ""), btf},
		{"open", hostFS("[none] integrity confidentiality\n", "0\n", shown), with(func(f *Features) {
			f.Lockdown, f.KptrRestrictKnown, f.Symbols = "none", true, AnswerYes
		})},
		{"symbols hidden", hostFS("none [integrity] confidentiality\n", "2\n", hidden), with(func(f *Features) {
			f.Lockdown, f.KptrRestrict, f.KptrRestrictKnown, f.Symbols = "integrity", 2, true, AnswerNo
		})},
		{"variables of each CPU first", hostFS("none integrity [confidentiality]\n", "1\n", perCPU+shown), with(func(f *Features) {
			f.Lockdown, f.KptrRestrict, f.KptrRestrictKnown, f.Symbols = "confidentiality", 1, true, AnswerYes
		})},
		{"those first, symbols hidden", hostFS("", "1", perCPU+hidden), with(func(f *Features) {
			f.KptrRestrict, f.KptrRestrictKnown, f.Symbols = 1, true, AnswerNo
		})},
		{"not what is expected", hostFS("none [integrity", "many\n", "gibberish\nxyz T f\n"), btf},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got Features
			got.readHost(test.host)
			qt.Assert(t, qt.DeepEquals(got, test.want))
		})
	}
}

func FuzzReadHost(f *testing.F) {
	f.Add("none [integrity] confidentiality\n", "1\n", "0000000000000000 A a\nffffffff81000000 T _text\n")
	f.Add("]none[", "-1", "T T T\n")
	f.Add("[]", "99999999999999999999", "0 t x\t[m]")
	f.Fuzz(func(t *testing.T, lockdown, kptr, kallsyms string) {
		var got Features
		got.readHost(hostFS(lockdown, kptr, kallsyms))
		qt.Assert(t, qt.StringContains(lockdown, got.Lockdown))
		qt.Assert(t, qt.IsFalse(strings.Contains(got.Lockdown, "]")))
		qt.Assert(t, qt.IsTrue(got.KptrRestrictKnown || got.KptrRestrict == 0))
		if got.Symbols == AnswerYes {
			qt.Assert(t, qt.IsTrue(strings.ContainsAny(kallsyms, "123456789abcdefABCDEF")))
		}
	})
}

func TestAnswerString(t *testing.T) {
	qt.Check(t, qt.Equals(AnswerUnknown.String(), "unknown"))
	qt.Check(t, qt.Equals(AnswerNo.String(), "no"))
	qt.Check(t, qt.Equals(AnswerYes.String(), "yes"))
}

func TestChosen(t *testing.T) {
	refused := TierFeatures{Evidence: EvidenceProbe, Err: errors.New("no")}
	timer := TierFeatures{Evidence: EvidenceTimer}
	f := Features{Tiers: []TierFeatures{refused, timer}}
	qt.Check(t, qt.Equals(f.Chosen().Evidence, EvidenceTimer))
	f.Tiers = f.Tiers[:1]
	qt.Check(t, qt.IsNil(f.Chosen()))
}

func TestMapMemory(t *testing.T) {
	s := Stats{Maps: []MapStats{{"a", 3, true}, {"b", 4, true}}}
	bytes, known := s.MapMemory()
	qt.Check(t, qt.Equals(bytes, 7))
	qt.Check(t, qt.IsTrue(known))
	s.Maps[1].MemoryKnown = false
	_, known = s.MapMemory()
	qt.Check(t, qt.IsFalse(known))
	_, known = (&Stats{}).MapMemory()
	qt.Check(t, qt.IsFalse(known))
}

// What Detect says is what New does.
func TestDetect(t *testing.T) {
	requireRoot(t)
	var visited []Evidence
	f, err := Detect(context.Background(), &DetectOptions{Visit: func(t *Tracer) { visited = append(visited, t.Evidence()) }})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(f.Tiers, len(tiers)))
	tr, err := New(nil)
	if err != nil {
		qt.Assert(t, qt.IsNotNil(f.TracingErr))
		qt.Assert(t, qt.Equals(f.TracingErr.Error(), err.Error()))
		return
	}
	defer tr.Close()
	qt.Assert(t, qt.IsNil(f.TracingErr))
	qt.Check(t, qt.Equals(f.Chosen().Evidence, tr.Evidence()))
	qt.Check(t, qt.Equals(f.SocketCookie, AnswerYes))
	qt.Check(t, qt.IsTrue(f.BTF))
	for _, tier := range f.Tiers {
		other, err := New(&Options{Evidence: tier.Evidence})
		qt.Check(t, qt.Equals(slices.Contains(visited, tier.Evidence), tier.Err == nil))
		qt.Check(t, qt.Equals(tier.Start > 0, tier.Err == nil))
		qt.Assert(t, qt.Equals(tier.Err == nil, err == nil), qt.Commentf("%v: %v and %v", tier.Evidence, tier.Err, err))
		if err == nil {
			qt.Check(t, qt.IsNil(other.Close()))
		}
	}
}

func TestDetectWithoutPrivileges(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("needs a user without privileges; test/ runs the command as one")
	}
	f, err := Detect(context.Background(), nil)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.ErrorIs(f.TracingErr, os.ErrPermission))
	qt.Check(t, qt.IsNil(f.Chosen()))
	qt.Check(t, qt.Equals(f.SocketCookie, AnswerUnknown))
	for _, c := range f.Capabilities {
		qt.Check(t, qt.IsFalse(c.Effective), qt.Commentf(c.Name))
	}
}

func TestDetectCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Detect(ctx, nil)
	qt.Assert(t, qt.ErrorIs(err, context.Canceled))
}

// Every program that is loaded has its numbers, and every map its size.
func TestStats(t *testing.T) {
	requireRoot(t)
	tr, err := New(&Options{AuditInterval: -1})
	qt.Assert(t, qt.IsNil(err))
	defer tr.Close()
	stats, err := tr.Stats()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(stats.Programs, len(tr.coll.Programs)))
	qt.Check(t, qt.HasLen(stats.Maps, len(tr.coll.Maps)))
	for _, p := range stats.Programs {
		qt.Check(t, qt.IsNotNil(tr.coll.Programs[p.Name]))
		qt.Check(t, qt.StringContains(p.AttachedTo, "/"))
	}
	has := func(name string) bool {
		return slices.ContainsFunc(stats.Programs, func(p ProgramStats) bool { return p.Name == name })
	}
	for _, name := range statePrograms {
		optional := slices.Contains(preemptPrograms, name)
		qt.Check(t, qt.IsTrue(has(name) || optional), qt.Commentf(name))
	}
	qt.Assert(t, qt.HasLen(stats.Rings, 1))
	qt.Check(t, qt.Equals(stats.Rings[0].Name, "events"))
	qt.Check(t, qt.Equals(stats.Rings[0].Size, defaultEventBuffer))
	qt.Assert(t, qt.IsNil(tr.Detach()))
	_, err = tr.Stats()
	qt.Assert(t, qt.IsNil(err))
}
