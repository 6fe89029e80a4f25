package netns

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

func currentInode(t *testing.T) uint32 {
	t.Helper()
	var st unix.Stat_t
	qt.Assert(t, qt.IsNil(unix.Stat("/proc/thread-self/ns/net", &st)))
	return uint32(st.Ino)
}

func TestDo(t *testing.T) {
	ns := New(t)
	host := currentInode(t)
	qt.Assert(t, qt.Not(qt.Equals(ns.Inode(), host)))

	ns.Do(func() {
		qt.Check(t, qt.Equals(currentInode(t), ns.Inode()))
		New(t).Do(func() { qt.Check(t, qt.Not(qt.Equals(currentInode(t), ns.Inode()))) })
		qt.Check(t, qt.Equals(currentInode(t), ns.Inode()))
	})
	qt.Assert(t, qt.Equals(currentInode(t), host))
}

func TestDoReturnsAfterPanic(t *testing.T) {
	ns := New(t)
	host := currentInode(t)
	qt.Assert(t, qt.PanicMatches(func() { ns.Do(func() { panic("boom") }) }, "boom"))
	qt.Assert(t, qt.Equals(currentInode(t), host))
}

func TestLoopbackIsUp(t *testing.T) {
	New(t).Do(func() {
		for _, addr := range []unix.Sockaddr{
			&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}},
			&unix.SockaddrInet6{Addr: [16]byte{15: 1}},
		} {
			family := unix.AF_INET
			if _, ok := addr.(*unix.SockaddrInet6); ok {
				family = unix.AF_INET6
			}
			fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			qt.Assert(t, qt.IsNil(err))
			defer unix.Close(fd)
			qt.Assert(t, qt.IsNil(unix.Bind(fd, addr)))
			qt.Assert(t, qt.IsNil(unix.Listen(fd, 1)))
			local, err := unix.Getsockname(fd)
			qt.Assert(t, qt.IsNil(err))
			client, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			qt.Assert(t, qt.IsNil(err))
			defer unix.Close(client)
			qt.Assert(t, qt.IsNil(unix.Connect(client, local)))
		}
	})
}

func TestCommand(t *testing.T) {
	ns := New(t)
	out, err := ns.Command("readlink", "/proc/self/ns/net").CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	qt.Assert(t, qt.Equals(strings.TrimSpace(string(out)), fmt.Sprintf("net:[%d]", ns.Inode())))
}

func TestSysctl(t *testing.T) {
	const path = "/proc/sys/net/ipv4/tcp_fin_timeout"
	host, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))

	ns := New(t)
	ns.Sysctl("net.ipv4.tcp_fin_timeout", "7")
	ns.Do(func() {
		got, err := os.ReadFile(path)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(string(got), "7\n"))
	})
	got, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(string(got), string(host)))
}

// TestNoLeaks makes many namespaces and expects the descriptors and threads
// of the process not to grow with them.
func TestNoLeaks(t *testing.T) {
	RequireRoot(t)
	const many = 23
	make23 := func() {
		t.Run("make", func(t *testing.T) {
			for range many {
				New(t).Do(func() {})
			}
		})
	}
	make23()
	fds, threads := count(t, "/proc/self/fd"), count(t, "/proc/self/task")
	make23()
	qt.Check(t, qt.Equals(count(t, "/proc/self/fd"), fds))
	qt.Check(t, qt.IsTrue(count(t, "/proc/self/task") < threads+many/2))
}

func count(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	qt.Assert(t, qt.IsNil(err))
	return len(entries)
}
