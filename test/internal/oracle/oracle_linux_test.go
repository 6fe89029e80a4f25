package oracle

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/tracer"
)

// listenIn makes a listener in the namespace and returns what closes it.
func listenIn(t *testing.T, ns *netns.NS) (port uint16, closeIt func()) {
	t.Helper()
	var fd int
	ns.Do(func() {
		var err error
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})))
		qt.Assert(t, qt.IsNil(unix.Listen(fd, 1)))
		sa, err := unix.Getsockname(fd)
		qt.Assert(t, qt.IsNil(err))
		port = uint16(sa.(*unix.SockaddrInet4).Port)
	})
	return port, func() { unix.Close(fd) }
}

func TestTrace(t *testing.T) {
	ns := netns.New(t)
	trace := Start(t)
	port, closeIt := listenIn(t, ns)
	closeIt()
	lines := OnPorts(trace.Stop(), port)
	qt.Assert(t, qt.DeepEquals(Sequences(lines), map[Tuple][]tracer.Transition{
		{lines[0].Local(), lines[0].Remote()}: transitions("CLOSE:LISTEN", "LISTEN:CLOSE"),
	}))
	qt.Check(t, qt.Equals(lines[0].Family, tracer.FamilyIPv4))

	var now unix.Timespec
	qt.Assert(t, qt.IsNil(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)))
	age := now.Nano() - lines[0].Time.Nanoseconds()
	qt.Check(t, qt.IsTrue(age > 0 && age < 60e9), qt.Commentf("%d ns", age))
}

// TestTraceLeavesNothing makes an instance in a test of its own and looks for
// it, and for its mount, when that is over.
func TestTraceLeavesNothing(t *testing.T) {
	netns.RequireRoot(t)
	var dir string
	mounts := func() string {
		text, err := os.ReadFile("/proc/self/mounts")
		qt.Assert(t, qt.IsNil(err))
		return string(text)
	}
	before := mounts()
	t.Run("trace", func(t *testing.T) { dir = filepath.Base(Start(t).dir) })
	qt.Assert(t, qt.Equals(mounts(), before))
	root, err := tracefs(t)
	qt.Assert(t, qt.IsNil(err))
	_, err = os.Stat(filepath.Join(root, "instances", dir))
	qt.Assert(t, qt.ErrorIs(err, os.ErrNotExist))
}

func TestSS(t *testing.T) {
	ns := netns.New(t)
	_, closeIt := listenIn(t, ns)
	got, err := SS(ns)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.DeepEquals(got, map[tracer.State]int{tracer.StateListen: 1}))
	closeIt()
	got, err = SS(ns)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(got, 0))
}

func TestCountStates(t *testing.T) {
	got, err := countStates("TIME-WAIT  0 0 a b\nTIME-WAIT 0 0 a c\nFIN-WAIT-2 0 0 a d\nSYN-RECV 0 0 a e\nESTAB 0 0 a f\n")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.DeepEquals(got, map[tracer.State]int{
		tracer.StateTimeWait: 2, tracer.StateFinWait2: 1, tracer.StateSynRecv: 1, tracer.StateEstablished: 1,
	}))
	_, err = countStates("WHAT 0 0 a b\n")
	qt.Assert(t, qt.IsNotNil(err))
}

func TestCounters(t *testing.T) {
	ns := netns.New(t)
	_, closeIt := listenIn(t, ns)
	defer closeIt()
	stat, err := Sockstat(ns)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(stat["TCP"]["inuse"], 1))
	qt.Check(t, qt.Equals(stat["TCP"]["tw"], 0))
	qt.Check(t, qt.Equals(stat["TCP6"]["inuse"], 0))

	snmp, err := SNMP(ns)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(snmp["Tcp"]["MaxConn"], -1))
	for _, name := range []string{"TW", "TWKilled", "TWRecycled", "TCPTimeWaitOverflow", "ListenDrops"} {
		n, there := snmp["TcpExt"][name]
		qt.Check(t, qt.IsTrue(there && n == 0), qt.Commentf("%s: %d", name, n))
	}
}

func TestParseCountersRejects(t *testing.T) {
	for _, bad := range []string{"TCP: inuse", "TCP: inuse x"} {
		qt.Check(t, qt.IsNotNil(parseSockstat(Counters{}, bad)), qt.Commentf("%q", bad))
	}
	for _, bad := range []string{"Tcp: a", "Tcp: a\nUdp: 1", "Tcp: a b\nTcp: 1", "Tcp: a\nTcp: x"} {
		qt.Check(t, qt.IsNotNil(parseSNMP(Counters{}, bad)), qt.Commentf("%q", bad))
	}
}

func TestLeftovers(t *testing.T) {
	netns.RequireRoot(t)
	before, err := Leftovers()
	qt.Assert(t, qt.IsNil(err))
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "left_over", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	qt.Assert(t, qt.IsNil(err))
	defer m.Close()
	after, err := Leftovers()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.SliceAny(Since(before, after), qt.F2(qt.Matches[string], `map \d+ left_over`)))
}
