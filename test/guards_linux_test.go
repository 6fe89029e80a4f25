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
	return countGuarded(t, "transitions", lines) > 0
}

func countGuarded(t testing.TB, what string, lines []oracle.Line) (n int) {
	interrupted := map[int]int{}
	for _, l := range lines {
		interrupted[l.PID]++
	}
	for pid, times := range interrupted {
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if pid != 0 && errors.Is(err, os.ErrPermission) {
			t.Logf("%d %s interrupted task %d, which is guarded", times, what, pid)
			n += times
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
	return countGuarded(t, "transitions", lines) + countGuarded(t, "expiries", expiries)
}

// excuse skips a test in which something is missing, if such a transition was
// there to be missed.
func (g *guards) excuse(t testing.TB) {
	t.Helper()
	if g != nil && g.hidden(t) > 0 {
		t.Skip("the kernel guards a task from BPF, and what came in an interrupt of it cannot be seen")
	}
}
