package test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/finwait/finwait/test/internal/oracle"
)

// guarded tells whether a transition happened in an interrupt of a task that
// is guarded even from root. There are kernels that run no BPF program then;
// such a transition exists for tracefs alone, and there is nothing to compare.
func guarded(t testing.TB, lines []oracle.Line) bool {
	for _, l := range lines {
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", l.PID))
		if l.PID != 0 && errors.Is(err, os.ErrPermission) {
			t.Logf("%v interrupted task %d, which is guarded", l.Transition, l.PID)
			return true
		}
	}
	return false
}

// guards watches for such transitions while a test runs.
type guards struct{ trace *oracle.Trace }

// watchGuards begins to watch; not in a benchmark, where it would cost.
func watchGuards(t testing.TB) *guards {
	t.Helper()
	if _, isTest := t.(*testing.T); !isTest {
		return nil
	}
	return &guards{oracle.Start(t)}
}

// hidden ends the watch and returns how many such transitions there were.
func (g *guards) hidden(t testing.TB) (n int) {
	t.Helper()
	for _, l := range g.trace.Stop() {
		if guarded(t, []oracle.Line{l}) {
			n++
		}
	}
	return n
}

// excuse skips a test in which something is missing, if such a transition was
// there to be missed.
func (g *guards) excuse(t testing.TB) {
	t.Helper()
	if g != nil && guarded(t, g.trace.Stop()) {
		t.Skip("the kernel guards a task from BPF, and what came in an interrupt of it cannot be seen")
	}
}
