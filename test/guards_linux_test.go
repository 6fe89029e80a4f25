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
func guarded(t testing.TB, lines []oracle.Line) bool { return countGuarded(t, lines) > 0 }

func countGuarded(t testing.TB, lines []oracle.Line) (n int) {
	guards := map[int]bool{}
	for _, l := range lines {
		is, known := guards[l.PID]
		if !known {
			_, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", l.PID))
			is = l.PID != 0 && errors.Is(err, os.ErrPermission)
			guards[l.PID] = is
		}
		if is {
			t.Logf("%v interrupted task %d, which is guarded", l.Transition, l.PID)
			n++
		}
	}
	return n
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

// hidden ends the watch and returns how many such transitions there were. Those
// of mini-sockets and half-open connections are seen by their timers.
func (g *guards) hidden(t testing.TB) (n int) {
	t.Helper()
	lines, expiries := g.trace.StopExpiries()
	return countGuarded(t, lines) + countGuarded(t, expiries)
}

// excuse skips a test in which something is missing, if such a transition was
// there to be missed.
func (g *guards) excuse(t testing.TB) {
	t.Helper()
	if g != nil && g.hidden(t) > 0 {
		t.Skip("the kernel guards a task from BPF, and what came in an interrupt of it cannot be seen")
	}
}
