package test

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// manyConnections have more events than a ring of a MiB has room for.
const manyConnections = 1009

// TestReaderStopped lets nobody read for a while. What the ledger says is lost is
// what is missing, and the counters have it.
func TestReaderStopped(t *testing.T) {
	ns := netns.New(t)
	guards := watchGuards(t)
	tr, err := tracer.New(&tracer.Options{EventBuffer: 1 << 20, Evidence: wantedEvidence(t), Filter: tracer.Filter{Netns: []uint32{ns.Inode()}}})
	qt.Assert(t, qt.IsNil(err))
	defer tr.Close()
	before := countersOf(t, tr)
	want := makeMany(t, ns)
	qt.Assert(t, qt.IsNil(tr.Detach()))
	counted := since(t, tr, &before)
	for transition, n := range want {
		if counted[transition] < n {
			guards.excuse(t)
		}
		qt.Check(t, qt.IsTrue(counted[transition] >= n), qt.Commentf("%v: %d, want %d", transition, counted[transition], n))
	}
	var read uint64
	for _, err := range tr.Events(context.Background()) {
		qt.Assert(t, qt.IsNil(err))
		read++
	}
	ledger, err := tr.Ledger()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(ledger.Emitted, read))
	qt.Check(t, qt.IsTrue(ledger.RingFull > 0))
	checkAllTold(t, guards, int(ledger.Emitted+ledger.RingFull), want)
}

// TestCommandStopped does the same to the command, by SIGSTOP.
func TestCommandStopped(t *testing.T) {
	ns := netns.New(t)
	p := traceIn(t, ns, "--format", "csv", "--no-header")
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(syscall.SIGSTOP)))
	want := makeMany(t, ns)
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(syscall.SIGCONT)))
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
	res := p.wait()
	n := ledger(t, res.stderr)
	matched, printed, lost := n[1], n[2], n[3]
	qt.Check(t, qt.Equals(res.code, 0))
	qt.Check(t, qt.Equals(strings.Count(res.stdout, "\n"), printed))
	qt.Check(t, qt.IsTrue(lost > 0))
	qt.Check(t, qt.Equals(printed+lost, matched))
	checkAllTold(t, p.guards, matched, want)
}

// makeMany makes connections that are all gone or in TIME_WAIT when it returns,
// and returns what their sockets have done.
func makeMany(t *testing.T, ns *netns.NS) map[tracer.Transition]uint64 {
	t.Helper()
	var made *traffic.Result
	var err error
	ns.Do(func() { made, err = kindNamed(t, "active close").Run(manyConnections, tracer.FamilyIPv4) })
	qt.Assert(t, qt.IsNil(err))
	return made.Cells()
}

// checkAllTold expects as many events as cells has transitions.
func checkAllTold(t *testing.T, guards *guards, events int, cells map[tracer.Transition]uint64) {
	t.Helper()
	want := sum(cells)
	if events != want {
		guards.excuse(t)
	}
	qt.Check(t, qt.Equals(events, want))
}
