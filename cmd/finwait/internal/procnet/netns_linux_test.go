package procnet

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

const many = 23

// enterNetns moves the test's goroutine into a network namespace of its own, with
// loopback up, until the test ends. It skips the test without root, unless
// CI_PRIVILEGED=1 says that it must run.
func enterNetns(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI_PRIVILEGED") == "1" {
			t.Fatal("CI_PRIVILEGED=1 and not root")
		}
		t.Skip("makes network namespaces: needs root")
	}
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() {
		defer unix.Close(home)
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			t.Error(err) // the thread stays locked and ends with the test
			return
		}
		runtime.UnlockOSThread()
	})
	qt.Assert(t, qt.IsNil(unix.Unshare(unix.CLONE_NEWNET)))
	run(t, "ip", "link", "set", "lo", "up")
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s %s: %s", name, strings.Join(args, " "), out))
	return string(out)
}

// await waits until what the kernel is doing is done.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !done(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

var (
	loopback4 = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	loopback6 = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
)

func socket(t testing.TB, family, flags int) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
	qt.Assert(t, qt.IsNil(err))
	return fd
}

func closeAll(t testing.TB, fds ...int) {
	t.Helper()
	for _, fd := range fds {
		qt.Assert(t, qt.IsNil(unix.Close(fd)))
	}
}

func familyOf(addr unix.Sockaddr) int {
	if _, ok := addr.(*unix.SockaddrInet6); ok {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// listen returns a listener and its address.
func listen(t testing.TB, on unix.Sockaddr, backlog int) (int, unix.Sockaddr) {
	t.Helper()
	fd := socket(t, familyOf(on), 0)
	t.Cleanup(func() { unix.Close(fd) })
	qt.Assert(t, qt.IsNil(unix.Bind(fd, on)))
	qt.Assert(t, qt.IsNil(unix.Listen(fd, backlog)))
	at, err := unix.Getsockname(fd)
	qt.Assert(t, qt.IsNil(err))
	return fd, at
}

// connect returns both ends of many connections.
func connect(t testing.TB, listener int, to unix.Sockaddr) (clients, servers []int) {
	t.Helper()
	for range many {
		c := socket(t, familyOf(to), 0)
		qt.Assert(t, qt.IsNil(unix.Connect(c, to)))
		s, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		qt.Assert(t, qt.IsNil(err))
		clients, servers = append(clients, c), append(servers, s)
	}
	return clients, servers
}

func readCounters(t testing.TB) Counters {
	t.Helper()
	c, err := ReadCounters()
	qt.Assert(t, qt.IsNil(err))
	return c
}

func readSockstat(t testing.TB) Sockstat {
	t.Helper()
	s, err := ReadSockstat()
	qt.Assert(t, qt.IsNil(err))
	return s
}
