package measure

import (
	"errors"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func TestSince(t *testing.T) {
	before := []tracer.ProgramStats{
		{Name: "idle", Runs: 7, RunTime: 70},
		{Name: "old", Runs: 10, RunTime: 1000, RecursionMisses: 1},
	}
	after := []tracer.ProgramStats{
		{Name: "idle", Runs: 7, RunTime: 70},
		{Name: "new", AttachedTo: "tp_btf/x", Runs: 2, RunTime: 600},
		{Name: "old", Runs: 15, RunTime: 1500, RecursionMisses: 4},
		{Name: "skipped", RecursionMisses: 1},
	}
	qt.Assert(t, qt.DeepEquals(since(before, after), []tracer.ProgramStats{
		{Name: "new", AttachedTo: "tp_btf/x", Runs: 2, RunTime: 600},
		{Name: "old", Runs: 5, RunTime: 500, RecursionMisses: 3},
		{Name: "skipped", RecursionMisses: 1},
	}))
}

func TestPerTransition(t *testing.T) {
	cost := Cost{Transitions: 4, Runs: []tracer.ProgramStats{{RunTime: 1000}, {RunTime: 200}}}
	each, known := cost.PerTransition()
	qt.Check(t, qt.Equals(each, 300*time.Nanosecond))
	qt.Check(t, qt.IsTrue(known))

	none := cost
	none.Transitions = 0
	_, known = none.PerTransition()
	qt.Check(t, qt.IsFalse(known))

	cost.RunErr = errors.New("refused")
	_, known = cost.PerTransition()
	qt.Check(t, qt.IsFalse(known))
}
