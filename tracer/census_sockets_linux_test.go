package tracer

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// requireRoot skips the test without privileges, unless CI_PRIVILEGED=1 says
// that it must run.
func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI_PRIVILEGED") == "1" {
		t.Fatal("CI_PRIVILEGED=1 and not root")
	}
	t.Skip("makes network namespaces: needs root")
}

// enterNetns moves the test's goroutine into a network namespace of its own,
// with loopback up, until the test ends. It returns the inode number.
func enterNetns(t testing.TB) uint32 {
	t.Helper()
	requireRoot(t)
	runtime.LockOSThread()
	home, err := threadNetns()
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() {
		defer home.close()
		if err := home.enter(); err != nil {
			t.Error(err) // the thread stays locked and ends with the test
			return
		}
		runtime.UnlockOSThread()
	})
	qt.Assert(t, qt.IsNil(unix.Unshare(unix.CLONE_NEWNET)))
	run(t, "ip", "link", "set", "lo", "up")
	self, err := threadNetns()
	qt.Assert(t, qt.IsNil(err))
	defer self.close()
	return self.inode
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s %s: %s", name, strings.Join(args, " "), out))
	return string(out)
}

func eventually(t testing.TB, cond func() bool, what func() string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what())
		}
	}
}

func describeStates(c StateCounts) string {
	var parts []string
	for s, n := range c {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", State(s), n))
		}
	}
	return strings.Join(parts, " ")
}

// censusKind is a way to make sockets; want is what one call of make leaves.
type censusKind struct {
	name string
	make func(t testing.TB, family int)
	want StateCounts
}

var censusKinds = []censusKind{
	{"listen", makeListeners, StateCounts{StateListen: censusN}},
	{"established", makeEstablished, StateCounts{StateListen: 1, StateEstablished: 2 * censusN}},
	{"half closed", makeHalfClosed, StateCounts{StateListen: 1, StateFinWait2: censusN, StateCloseWait: censusN}},
	{"orphan", makeOrphans, StateCounts{StateListen: 1, StateFinWait2: censusN, StateCloseWait: censusN}},
	{"full orphan", makeFullOrphans, StateCounts{StateListen: 1, StateFinWait2: censusN, StateCloseWait: censusN}},
	{"time wait", makeTimeWait, StateCounts{StateListen: 1, StateTimeWait: censusN}},
	{"syn sent", makeSynSent, StateCounts{StateListen: 1, StateEstablished: 2, StateSynSent: censusN}},
	{"half open", makeHalfOpen, StateCounts{StateListen: 1, StateEstablished: censusN, StateSynRecv: censusN}},
	{"fin wait 1", makeFinWait1, StateCounts{StateListen: 1, StateFinWait1: censusN, StateEstablished: censusN}},
	{"closing", makeClosing, StateCounts{StateListen: 1, StateClosing: censusN, StateFinWait2: censusN}},
	{"last ack", makeLastAck, StateCounts{StateListen: 1, StateLastAck: censusN, StateFinWait2: censusN}},
}

func makeListeners(t testing.TB, family int) {
	for range censusN {
		listen(t, loopback(family, 0), 1)
	}
}

func makeEstablished(t testing.TB, family int) {
	eachPair(t, family, func(_, _ int) {})
}

func makeHalfClosed(t testing.TB, family int) {
	eachPair(t, family, func(client, _ int) { shutdown(t, client) })
}

func makeOrphans(t testing.TB, family int) {
	eachPair(t, family, func(client, _ int) { closeSockets(client) })
}

// makeFullOrphans makes orphans that stay full sockets for a while: they are to
// wait for longer than a mini-socket lives.
func makeFullOrphans(t testing.TB, family int) {
	eachPair(t, family, func(client, _ int) {
		qt.Assert(t, qt.IsNil(unix.SetsockoptInt(client, unix.IPPROTO_TCP, unix.TCP_LINGER2, 110)))
		closeSockets(client)
	})
}

func makeTimeWait(t testing.TB, family int) {
	eachPair(t, family, func(client, server int) { closeSockets(client, server) })
}

// makeSynSent connects to a listener that no longer answers: one connection
// fills the queue of a backlog of 0.
func makeSynSent(t testing.TB, family int) {
	l := listen(t, loopback(family, 0), 0)
	for i := range censusN + 1 {
		fd := tcpSocket(t, family)
		if i > 0 {
			qt.Assert(t, qt.IsNil(unix.SetNonblock(fd, true)))
		}
		err := unix.Connect(fd, loopback(family, portOf(t, l)))
		if i > 0 {
			qt.Assert(t, qt.Equals(err, error(unix.EINPROGRESS)))
		} else {
			qt.Assert(t, qt.IsNil(err))
			eventually(t, func() bool { return readable(t, l) }, func() string { return "nothing to accept" })
		}
	}
}

// makeHalfOpen connects to a listener that does not take the final ACK for
// one: it waits for data, and the request socket stays.
func makeHalfOpen(t testing.TB, family int) {
	l := listen(t, loopback(family, 0), 128)
	qt.Assert(t, qt.IsNil(unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60)))
	for range censusN {
		fd := tcpSocket(t, family)
		qt.Assert(t, qt.IsNil(unix.Connect(fd, loopback(family, portOf(t, l)))))
	}
}

// makeFinWait1 closes behind data that the peer has no room for. The peer has
// not seen the FIN and stays in ESTABLISHED.
func makeFinWait1(t testing.TB, family int) {
	eachPair(t, family, func(client, _ int) {
		fillPeer(t, client)
		shutdown(t, client)
	})
}

// makeClosing lets the FINs cross: the client's waits behind data.
func makeClosing(t testing.TB, family int) {
	eachPair(t, family, func(client, server int) {
		fillPeer(t, client)
		shutdown(t, client)
		shutdown(t, server)
	})
}

func makeLastAck(t testing.TB, family int) {
	eachPair(t, family, func(client, server int) {
		shutdown(t, client)
		eventually(t, func() bool { return readable(t, server) }, func() string { return "no FIN came" })
		fillPeer(t, server)
		shutdown(t, server)
	})
}

// eachPair calls f with the two ends of censusN connections.
func eachPair(t testing.TB, family int, f func(client, server int)) {
	t.Helper()
	l := listen(t, loopback(family, 0), 128)
	for range censusN {
		f(connectPair(t, l, family, loopback(family, portOf(t, l))))
	}
}

func connectPair(t testing.TB, listener, family int, to unix.Sockaddr) (client, server int) {
	t.Helper()
	client = tcpSocket(t, family)
	qt.Assert(t, qt.IsNil(unix.Connect(client, to)))
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	qt.Assert(t, qt.IsNil(err))
	closeAtEnd(t, server)
	return client, server
}

func listen(t testing.TB, at unix.Sockaddr, backlog int) int {
	t.Helper()
	family := unix.AF_INET
	if _, ok := at.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd := tcpSocket(t, family)
	qt.Assert(t, qt.IsNil(unix.Bind(fd, at)))
	qt.Assert(t, qt.IsNil(unix.Listen(fd, backlog)))
	return fd
}

// tcpSocket opens a socket with small buffers, so that they fill fast.
func tcpSocket(t testing.TB, family int) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10)))
	qt.Assert(t, qt.IsNil(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10)))
	closeAtEnd(t, fd)
	return fd
}

// openSockets has the sockets that are still to be closed when a test ends.
// The tests that make sockets do not run in parallel.
var openSockets = map[int]bool{}

func closeAtEnd(t testing.TB, fd int) {
	openSockets[fd] = true
	t.Cleanup(func() { closeSockets(fd) })
}

func closeSockets(fds ...int) {
	for _, fd := range fds {
		if openSockets[fd] {
			delete(openSockets, fd)
			unix.Close(fd)
		}
	}
}

func shutdown(t testing.TB, fd int) {
	t.Helper()
	qt.Assert(t, qt.IsNil(unix.Shutdown(fd, unix.SHUT_WR)))
}

// fillPeer writes until neither end has room.
func fillPeer(t testing.TB, fd int) {
	t.Helper()
	qt.Assert(t, qt.IsNil(unix.SetNonblock(fd, true)))
	chunk := make([]byte, 64<<10)
	for quiet := 0; quiet < 3; {
		_, err := unix.Write(fd, chunk)
		if err == nil {
			quiet = 0
			continue
		}
		qt.Assert(t, qt.Equals(err, error(unix.EAGAIN)))
		quiet++
		time.Sleep(time.Millisecond)
	}
}

func readable(t testing.TB, fd int) bool {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	qt.Assert(t, qt.IsNil(err))
	return n == 1
}

func loopback(family, port int) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}
	}
	return &unix.SockaddrInet6{Addr: [16]byte{15: 1}, Port: port}
}

func portOf(t testing.TB, fd int) int {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	qt.Assert(t, qt.IsNil(err))
	if sa, ok := sa.(*unix.SockaddrInet4); ok {
		return sa.Port
	}
	return sa.(*unix.SockaddrInet6).Port
}

func readDir(t testing.TB, path string) []string {
	t.Helper()
	dir, err := os.Open(path)
	qt.Assert(t, qt.IsNil(err))
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	qt.Assert(t, qt.IsNil(err))
	return names
}

func countFDs(t testing.TB) int { return len(readDir(t, "/proc/self/fd")) }

func readlink(t testing.TB, path string) string {
	t.Helper()
	link, err := os.Readlink(path)
	qt.Assert(t, qt.IsNil(err))
	return link
}
