package traffic_test

import (
	"os"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

func run(t *testing.T, ns *netns.NS, kind traffic.Kind, n int) *traffic.Result {
	t.Helper()
	var res *traffic.Result
	var err error
	ns.Do(func() { res, err = kind.Run(n, tracer.FamilyIPv4) })
	qt.Assert(t, qt.IsNil(err))
	return res
}

// TestReconnectHasOneCookie expects the two connections of a socket under its
// one cookie, one after the other.
func TestReconnectHasOneCookie(t *testing.T) {
	const n = 23
	res := run(t, netns.New(t), traffic.Reconnect, n)
	qt.Assert(t, qt.HasLen(res.Conns, 2*n))
	first, second := res.Conns[0].Client, res.Conns[1].Client
	qt.Assert(t, qt.Equals(first.Cookie, second.Cookie))

	want := res.WantByCookie()
	qt.Assert(t, qt.HasLen(want, n+2*n+1)) // clients, servers, listener
	qt.Assert(t, qt.DeepEquals(want[first.Cookie], append(first.Want(), second.Want()...)))
}

func TestCells(t *testing.T) {
	const n = 23
	res := run(t, netns.New(t), traffic.ActiveClose, n)
	qt.Assert(t, qt.DeepEquals(res.Cells(), map[tracer.Transition]uint64{
		{Old: tracer.StateClose, New: tracer.StateListen}:          1,
		{Old: tracer.StateListen, New: tracer.StateClose}:          1,
		{Old: tracer.StateClose, New: tracer.StateSynSent}:         n,
		{Old: tracer.StateSynSent, New: tracer.StateEstablished}:   n,
		{Old: tracer.StateClose, New: tracer.StateNewSynRecv}:      n,
		{Old: tracer.StateNewSynRecv, New: tracer.StateSynRecv}:    n,
		{Old: tracer.StateSynRecv, New: tracer.StateEstablished}:   n,
		{Old: tracer.StateEstablished, New: tracer.StateFinWait1}:  n,
		{Old: tracer.StateFinWait1, New: tracer.StateFinWait2}:     n,
		{Old: tracer.StateFinWait2, New: tracer.StateTimeWait}:     n,
		{Old: tracer.StateEstablished, New: tracer.StateCloseWait}: n,
		{Old: tracer.StateCloseWait, New: tracer.StateLastAck}:     n,
		{Old: tracer.StateLastAck, New: tracer.StateClose}:         n,
	}))
}

// TestKernelCounts compares the connections with the counters that the kernel
// keeps of the namespace.
func TestKernelCounts(t *testing.T) {
	const n = 23
	ns := netns.New(t)
	tests := []struct {
		kind  traffic.Kind
		group string
		name  string
		want  int
	}{
		{traffic.ActiveClose, "Tcp", "ActiveOpens", n},
		{traffic.ActiveClose, "Tcp", "PassiveOpens", n},
		{traffic.PassiveClose, "Tcp", "PassiveOpens", n},
		{traffic.ResetByLinger, "Tcp", "EstabResets", 2 * n},
		{traffic.ResetByUnreadData, "TcpExt", "TCPAbortOnClose", n},
		{traffic.Refused, "Tcp", "AttemptFails", n},
		{traffic.ConnectTimeout, "Tcp", "AttemptFails", n},
		{traffic.ConnectTimeout, "TcpExt", "TCPAbortOnTimeout", n},
		{traffic.FastOpen, "TcpExt", "TCPFastOpenPassive", n},
	}
	for _, tc := range tests {
		t.Run(tc.kind.Name+"/"+tc.name, func(t *testing.T) {
			before, err := oracle.SNMP(ns)
			qt.Assert(t, qt.IsNil(err))
			run(t, ns, tc.kind, n)
			after, err := oracle.SNMP(ns)
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.Equals(after[tc.group][tc.name]-before[tc.group][tc.name], tc.want))
		})
	}
}

// TestRunLeavesNoDescriptors is about runs that work and a run that fails.
func TestRunLeavesNoDescriptors(t *testing.T) {
	ns := netns.New(t)
	run(t, ns, traffic.SimultaneousClose, 2)
	before := descriptors(t)
	run(t, ns, traffic.SimultaneousClose, 2)
	ns.Sysctl("net.ipv4.ip_local_port_range", "40000 40001")
	ns.Do(func() {
		_, err := traffic.Orphan.Run(5, tracer.FamilyIPv4)
		qt.Assert(t, qt.IsNotNil(err))
	})
	qt.Assert(t, qt.Equals(descriptors(t), before))
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	qt.Assert(t, qt.IsNil(err))
	return len(entries)
}
