package tracer

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestCensusByListener(t *testing.T) {
	inode := enterNetns(t)
	exact := listen(t, loopback(unix.AF_INET, 0), 128)
	any4 := listen(t, &unix.SockaddrInet4{}, 128)
	any6 := listen(t, &unix.SockaddrInet6{}, 128)
	connectTo := func(l, family, n int, after func(client, server int)) {
		for range n {
			after(connectPair(t, l, family, loopback(family, portOf(t, l))))
		}
	}
	keep := func(_, _ int) {}
	connectTo(exact, unix.AF_INET, 23, keep)
	connectTo(any4, unix.AF_INET, 11, func(c, s int) { closeSockets(s, c) }) // TIME_WAIT on the server's side
	connectTo(any6, unix.AF_INET6, 5, keep)
	connectTo(any6, unix.AF_INET, 7, func(c, _ int) { shutdown(t, c) })

	port := func(l int) uint16 { return uint16(portOf(t, l)) }
	want := []CensusGroup{
		{
			Netns:    inode,
			Listener: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port(exact)),
			States:   StateCounts{StateListen: 1, StateEstablished: 23},
		},
		{
			Netns:    inode,
			Listener: netip.AddrPortFrom(netip.IPv4Unspecified(), port(any4)),
			States:   StateCounts{StateListen: 1, StateTimeWait: 11},
		},
		{
			Netns:    inode,
			Listener: netip.AddrPortFrom(netip.IPv6Unspecified(), port(any6)),
			States:   StateCounts{StateListen: 1, StateEstablished: 5, StateCloseWait: 7},
		},
		{Netns: inode, States: StateCounts{StateEstablished: 23 + 5, StateFinWait2: 7}},
	}
	assertGroups(t, ByListener, want)
}

// TestCensusListenerFamilies checks that a listener is credited with
// connections of its own family alone: here the same port has another one.
func TestCensusListenerFamilies(t *testing.T) {
	inode := enterNetns(t)
	any4 := listen(t, &unix.SockaddrInet4{}, 128)
	port := portOf(t, any4)
	only6 := tcpSocket(t, unix.AF_INET6)
	qt.Assert(t, qt.IsNil(unix.SetsockoptInt(only6, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)))
	qt.Assert(t, qt.IsNil(unix.Bind(only6, &unix.SockaddrInet6{Port: port})))
	qt.Assert(t, qt.IsNil(unix.Listen(only6, 128)))
	for range 23 {
		connectPair(t, any4, unix.AF_INET, loopback(unix.AF_INET, port))
	}
	for range 11 {
		connectPair(t, only6, unix.AF_INET6, loopback(unix.AF_INET6, port))
	}
	listener := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, uint16(port)) }
	assertGroups(t, ByListener, []CensusGroup{
		{Netns: inode, States: StateCounts{StateEstablished: 34}},
		{Netns: inode, Listener: listener(netip.IPv4Unspecified()), States: StateCounts{StateListen: 1, StateEstablished: 23}},
		{Netns: inode, Listener: listener(netip.IPv6Unspecified()), States: StateCounts{StateListen: 1, StateEstablished: 11}},
	})
}

func TestCensusByRemote(t *testing.T) {
	enterNetns(t)
	l := listen(t, &unix.SockaddrInet6{}, 128)
	port := portOf(t, l)
	for last, n := range map[byte]int{2: 23, 3: 11} {
		for range n {
			fd := tcpSocket(t, unix.AF_INET)
			qt.Assert(t, qt.IsNil(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, last}})))
			qt.Assert(t, qt.IsNil(unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port})))
			server, _, err := unix.Accept(l)
			qt.Assert(t, qt.IsNil(err))
			closeAtEnd(t, server)
			if last == 3 {
				closeSockets(server, fd) // the server's end stays, in TIME_WAIT
			}
		}
	}
	assertGroups(t, ByRemote, []CensusGroup{
		{Remote: netip.MustParseAddr("127.0.0.1"), States: StateCounts{StateEstablished: 23}},
		{Remote: netip.MustParseAddr("127.0.0.2"), States: StateCounts{StateEstablished: 23}},
		{Remote: netip.MustParseAddr("127.0.0.3"), States: StateCounts{StateTimeWait: 11}},
		{States: StateCounts{StateListen: 1}},
	})
}

func TestCensusByProcess(t *testing.T) {
	enterNetns(t)
	self := uint32(os.Getpid())
	makeTimeWait(t, unix.AF_INET)
	makeOrphans(t, unix.AF_INET)
	makeHalfOpen(t, unix.AF_INET6)
	waiting := listen(t, loopback(unix.AF_INET, 0), 128)
	queued := tcpSocket(t, unix.AF_INET)
	qt.Assert(t, qt.IsNil(unix.Connect(queued, loopback(unix.AF_INET, portOf(t, waiting)))))

	// The child has both: one that we keep, one that we give away.
	shared, given := listen(t, loopback(unix.AF_INET, 0), 1), listen(t, loopback(unix.AF_INET, 0), 1)
	child := startHolder(t, shared, given)
	closeSockets(given)

	want := []CensusGroup{
		{PID: self, Comm: processName(self), States: StateCounts{
			StateListen:      5, // of the three makers, waiting and shared
			StateCloseWait:   censusN,
			StateEstablished: censusN + 1,
		}},
		{PID: uint32(child), Comm: "sleep", States: StateCounts{StateListen: 1}},
		{States: StateCounts{
			StateTimeWait:    censusN,
			StateFinWait2:    censusN,
			StateSynRecv:     censusN,
			StateEstablished: 1, // not accepted yet
		}},
	}
	if self > uint32(child) { // PIDs wrapped: the shared one is the child's
		want[0].States[StateListen]--
		want[1].States[StateListen]++
	}
	assertGroups(t, ByProcess, want)
}

// startHolder starts a process that has the sockets open and does nothing. It
// returns its PID once it runs under its own name.
func startHolder(t *testing.T, fds ...int) int {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		qt.Assert(t, qt.IsNil(err))
		file := os.NewFile(uintptr(dup), "socket")
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	qt.Assert(t, qt.IsNil(cmd.Start()))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// assertGroups compares the groups of a census of the calling thread's
// namespace with want, in any order, and checks that they come largest first.
func assertGroups(t *testing.T, by Dimension, want []CensusGroup) {
	t.Helper()
	var sum StateCounts
	for i := range want {
		sum.add(&want[i].States)
	}
	waitForStates(t, sum)
	c := takeCensus(t, SelfNetns, by)
	qt.Assert(t, qt.Equals(c.States, sum))
	qt.Assert(t, qt.IsTrue(slices.IsSortedFunc(c.Groups, func(a, b CensusGroup) int {
		return int(b.States.Total()) - int(a.States.Total())
	})))
	for i := range want {
		found := slices.IndexFunc(c.Groups, func(g CensusGroup) bool {
			return groupKeyOf(g) == groupKeyOf(want[i])
		})
		qt.Assert(t, qt.Not(qt.Equals(found, -1)), qt.Commentf("no group %+v in %+v", want[i], c.Groups))
		qt.Assert(t, qt.CmpEquals(c.Groups[found], want[i], cmp.Comparer(sameAddr), cmp.Comparer(sameAddrPort)))
	}
	qt.Assert(t, qt.HasLen(c.Groups, len(want)))
}

func groupKeyOf(g CensusGroup) groupKey {
	return groupKey{netns: g.Netns, pid: g.PID, listener: g.Listener, remote: g.Remote}
}

func sameAddr(a, b netip.Addr) bool         { return a == b }
func sameAddrPort(a, b netip.AddrPort) bool { return a == b }

// TestCensusThreadNetns finds a namespace that only one thread of a process is in.
func TestCensusThreadNetns(t *testing.T) {
	requireRoot(t)
	// While this goroutine keeps its thread, which may be the main one, the
	// subtest has another.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Gettid() == os.Getpid() {
		t.Run("second thread", testCensusThreadNetns)
	} else {
		testCensusThreadNetns(t)
	}
}

func testCensusThreadNetns(t *testing.T) {
	inode := enterNetns(t)
	qt.Assert(t, qt.Not(qt.Equals(unix.Gettid(), os.Getpid())))
	makeListeners(t, unix.AF_INET)

	c := takeCensus(t, AllNetns, ByNetns) // which looks from other threads
	group := netnsGroup(t, c, inode)
	qt.Assert(t, qt.Equals(group.States, StateCounts{StateListen: censusN}))
	qt.Assert(t, qt.Equals(group.NetnsName, ""))
	qt.Assert(t, qt.IsTrue(c.Namespaces >= 2))
}

// TestCensusMountedNetns finds a namespace that nobody is in, and its name.
func TestCensusMountedNetns(t *testing.T) {
	requireRoot(t)
	file := filepath.Join(t.TempDir(), `a name\ with	odd parts`)
	qt.Assert(t, qt.IsNil(os.WriteFile(file, nil, 0o600)))
	inode := mountNetns(t, file)
	t.Cleanup(func() { qt.Check(t, qt.IsNil(unix.Unmount(file, unix.MNT_DETACH))) })

	c := takeCensus(t, AllNetns, ByNetns)
	group := netnsGroup(t, c, inode)
	qt.Assert(t, qt.Equals(group.States, StateCounts{StateListen: censusN}))
	qt.Assert(t, qt.Equals(group.NetnsName, filepath.Base(file)))
}

// mountNetns mounts a new namespace with listeners in it on file, and leaves it
// to the mount. It returns the inode number.
func mountNetns(t *testing.T, file string) uint32 {
	t.Helper()
	inodes, errs := make(chan uint32, 1), make(chan error, 1)
	t.Run("mount", func(t *testing.T) { // a goroutine, and a cleanup that leaves the namespace
		inode := enterNetns(t)
		errs <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), file, "", unix.MS_BIND, "")
		inodes <- inode
	})
	qt.Assert(t, qt.IsNil(<-errs))
	inode := <-inodes
	t.Run("listen", func(t *testing.T) {
		runtime.LockOSThread()
		home, err := threadNetns()
		qt.Assert(t, qt.IsNil(err))
		defer home.close()
		mounted, err := openNetns(unix.AT_FDCWD, file)
		qt.Assert(t, qt.IsNil(err))
		defer mounted.close()
		qt.Assert(t, qt.IsNil(mounted.enter()))
		for range censusN {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.IsNil(unix.Listen(fd, 1)))
			heldSockets = append(heldSockets, fd)
		}
		qt.Assert(t, qt.IsNil(home.enter()))
		runtime.UnlockOSThread()
	})
	t.Cleanup(func() {
		for _, fd := range heldSockets {
			unix.Close(fd)
		}
		heldSockets = nil
	})
	return inode
}

// heldSockets has the sockets that outlive the subtest that opened them.
var heldSockets []int

func netnsGroup(t *testing.T, c *Census, inode uint32) CensusGroup {
	t.Helper()
	i := slices.IndexFunc(c.Groups, func(g CensusGroup) bool { return g.Netns == inode })
	qt.Assert(t, qt.Not(qt.Equals(i, -1)), qt.Commentf("namespace %d is not in %+v", inode, c.Groups))
	return c.Groups[i]
}

// unprivilegedEnv tells the test binary that it is the unprivileged copy.
const unprivilegedEnv = "FINWAIT_TEST_UNPRIVILEGED"

// asUnprivileged runs the test again in a process of a user without privileges,
// in the network namespace of the calling thread. It reports whether this is that
// process.
func asUnprivileged(t *testing.T) bool {
	t.Helper()
	if os.Getenv(unprivilegedEnv) != "" {
		return true
	}
	requireRoot(t)
	dir, err := os.MkdirTemp("", "finwait-test")
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { os.RemoveAll(dir) })
	qt.Assert(t, qt.IsNil(os.Chmod(dir, 0o755)))
	binary := filepath.Join(dir, "tracer.test")
	self, err := os.ReadFile("/proc/self/exe")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(os.WriteFile(binary, self, 0o755)))

	cmd := exec.Command(binary, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), unprivilegedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	qt.Assert(t, qt.IsTrue(strings.Contains(string(out), "--- PASS")), qt.Commentf("%s", out))
	return false
}

// TestCensusUnprivileged takes a census as a user who may enter no namespace.
func TestCensusUnprivileged(t *testing.T) {
	if os.Getenv(unprivilegedEnv) == "" {
		enterNetns(t)
		makeTimeWait(t, unix.AF_INET)
		makeEstablished(t, unix.AF_INET6)
		waitForStates(t, unprivilegedWant)
	}
	if asUnprivileged(t) {
		censusWithoutPrivilege(t)
	}
}

var unprivilegedWant = StateCounts{StateListen: 2, StateTimeWait: censusN, StateEstablished: 2 * censusN}

func censusWithoutPrivilege(t *testing.T) {
	for by := ByNothing; by <= ByRemote; by++ {
		c := takeCensus(t, SelfNetns, by)
		qt.Assert(t, qt.Equals(c.States, unprivilegedWant))
		qt.Assert(t, qt.HasLen(c.Missed.Netns, 0))
	}
	c := takeCensus(t, AllNetns, ByNothing)
	qt.Assert(t, qt.Equals(c.States, unprivilegedWant))
	qt.Assert(t, qt.Equals(c.Namespaces, 1))
	qt.Assert(t, qt.IsTrue(c.Missed.HiddenProcesses > 0))
	for _, m := range c.Missed.Netns { // the mounted ones can be seen and not entered
		qt.Assert(t, qt.IsTrue(errors.Is(m.Err, os.ErrPermission)), qt.Commentf("%v", m.Err))
	}
}

func TestParseNetnsMount(t *testing.T) {
	tests := []struct {
		name, line string
		inode      uint32
		point      string
		ok         bool
	}{
		{"ip netns", "36 35 0:4 net:[4026532281] /run/netns/blue rw shared:1 - nsfs nsfs rw\n", 4026532281, "/run/netns/blue", true},
		{"escapes", `36 35 0:4 net:[1] /a\040b\011c\134d rw - nsfs nsfs rw`, 1, "/a b\tc\\d", true},
		{"half an escape", `36 35 0:4 net:[1] /a\04 rw - nsfs nsfs rw`, 1, `/a\04`, true},
		{"another namespace", "36 35 0:4 mnt:[4026532281] /run/mnt rw - nsfs nsfs rw", 0, "", false},
		{"a file system", "36 35 8:1 / / rw - ext4 /dev/sda1 rw", 0, "", false},
		{"inode too large", "36 35 0:4 net:[4294967296] /x rw - nsfs nsfs rw", 0, "", false},
		{"not closed", "36 35 0:4 net:[42 /x rw - nsfs nsfs rw", 0, "", false},
		{"no mount point", "36 35 0:4 net:[42]", 0, "", false},
		{"empty", "", 0, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inode, point, ok := parseNetnsMount([]byte(tt.line))
			qt.Assert(t, qt.Equals(ok, tt.ok))
			qt.Assert(t, qt.Equals(inode, tt.inode))
			qt.Assert(t, qt.Equals(point, tt.point))
		})
	}
}
