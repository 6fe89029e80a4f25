package tracer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// TestVisitNetns visits namespaces that only a thread is in, or that are mounted:
// each once, on a thread that is inside.
func TestVisitNetns(t *testing.T) {
	requireRoot(t)
	file := filepath.Join(t.TempDir(), "blue")
	qt.Assert(t, qt.IsNil(os.WriteFile(file, nil, 0o600)))
	mounted := mountNetns(t, file)
	t.Cleanup(func() { qt.Check(t, qt.IsNil(unix.Unmount(file, unix.MNT_DETACH))) })
	own := enterNetns(t)
	setSysctl(t, "net.ipv4.tcp_fin_timeout", "23")
	makeListeners(t, unix.AF_INET6)

	type visit struct {
		name, finTimeout, sockstat string
		thread                     uint32
		listeners                  int
	}
	var (
		mu     sync.Mutex
		visits = map[uint32]visit{}
	)
	missed, err := VisitNetns(t.Context(), AllNetns, func(n *Netns) error {
		thread, err := threadNetns()
		if err != nil {
			return err
		}
		defer thread.close()
		finTimeout, err := os.ReadFile("/proc/sys/net/ipv4/tcp_fin_timeout")
		if err != nil {
			return err
		}
		sockstat, err := os.ReadFile("/proc/thread-self/net/sockstat6")
		if err != nil {
			return err
		}
		sockets, _, err := n.ListSockets(t.Context())
		if err != nil {
			return err
		}
		sockets = slices.DeleteFunc(sockets, func(s Socket) bool { return s.State != StateListen || s.Netns != n.Inode })
		mu.Lock()
		defer mu.Unlock()
		qt.Check(t, qt.Equals(visits[n.Inode], visit{}), qt.Commentf("visited twice"))
		visits[n.Inode] = visit{n.Name, strings.TrimSpace(string(finTimeout)), firstLine(string(sockstat)), thread.inode, len(sockets)}
		return nil
	})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(missed.Netns, 0))
	qt.Check(t, qt.IsTrue(len(visits) >= 3))
	qt.Check(t, qt.Equals(visits[own], visit{"", "23", "TCP6: inuse 23", own, censusN}))
	qt.Check(t, qt.Equals(visits[mounted], visit{"blue", "60", "TCP6: inuse 0", mounted, censusN}))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// TestVisitNetnsErrors has visit fail in one namespace, and in all.
func TestVisitNetnsErrors(t *testing.T) {
	own := enterNetns(t)
	broken := errors.New("broken")
	missed, err := VisitNetns(t.Context(), AllNetns, func(n *Netns) error {
		if n.Inode == own {
			return broken
		}
		return nil
	})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(missed.Netns, 1))
	qt.Check(t, qt.Equals(missed.Netns[0], MissedNetns{Netns: own, Err: broken}))

	missed, err = VisitNetns(t.Context(), SelfNetns, func(*Netns) error { return broken })
	qt.Assert(t, qt.ErrorIs(err, broken))
	qt.Assert(t, qt.ErrorMatches(err, "visit network namespaces: broken"))
	qt.Assert(t, qt.HasLen(missed.Netns, 1))

	_, err = VisitNetns(t.Context(), 9, func(*Netns) error { return nil })
	qt.Assert(t, qt.ErrorMatches(err, "visit network namespaces: unknown network namespace scope 9"))
}

func TestVisitNetnsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := VisitNetns(ctx, SelfNetns, func(*Netns) error {
		cancel()
		return nil
	})
	qt.Assert(t, qt.ErrorIs(err, context.Canceled))
}

// TestVisitNetnsInexact checks that the ledger has what ListSockets has said.
func TestVisitNetnsInexact(t *testing.T) {
	var inode uint32
	missed, err := VisitNetns(t.Context(), SelfNetns, func(n *Netns) error {
		inode, n.inexact = n.Inode, true
		return nil
	})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.DeepEquals(missed, CensusMissed{Inexact: []uint32{inode}}))
}

// TestCensusCannotEnter has a namespace that cannot be entered, and one that can.
func TestCensusCannotEnter(t *testing.T) {
	self, err := threadNetns()
	qt.Assert(t, qt.IsNil(err))
	defer self.close()
	bad := netns{fd: -1, inode: 1, name: "bad"}
	for _, spaces := range [][]netns{{bad}, {bad, self}} {
		var c Census
		err := c.read(t.Context(), spaces, newTally(ByNothing))
		if len(spaces) == 1 {
			qt.Check(t, qt.ErrorIs(err, error(unix.EBADF)))
		} else {
			qt.Check(t, qt.IsNil(err))
		}
		qt.Check(t, qt.Equals(c.Namespaces, len(spaces)-1))
		qt.Assert(t, qt.HasLen(c.Missed.Netns, 1))
		qt.Check(t, qt.Equals(c.Missed.Netns[0].Name, "bad"))
	}
}

func TestUntilExact(t *testing.T) {
	dumps := 0
	after := func(n int) func() (bool, error) {
		dumps = 0
		return func() (bool, error) { dumps++; return dumps <= n, nil }
	}
	for interruptions, want := range []bool{false, false, false, false, true} {
		inexact, err := untilExact(after(interruptions))
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(inexact, want))
		qt.Check(t, qt.Equals(dumps, min(interruptions+1, dumpAttempts)))
	}
}

// TestVisitNetnsEnded keeps a namespace for longer than it is valid.
func TestVisitNetnsEnded(t *testing.T) {
	var kept *Netns
	_, err := VisitNetns(t.Context(), SelfNetns, func(n *Netns) error {
		kept = n
		return nil
	})
	qt.Assert(t, qt.IsNil(err))
	_, _, err = kept.ListSockets(t.Context())
	qt.Assert(t, qt.ErrorMatches(err, "list sockets: the visit to the network namespace has ended"))
}

func TestVisitNetnsLeavesNothingBehind(t *testing.T) {
	requireRoot(t)
	visit := func() {
		_, err := VisitNetns(t.Context(), AllNetns, func(n *Netns) error {
			_, _, err := n.ListSockets(t.Context())
			return err
		})
		qt.Assert(t, qt.IsNil(err))
	}
	visit()
	fds, space := countFDs(t), readlink(t, "/proc/thread-self/ns/net")
	for range 20 {
		visit()
	}
	qt.Assert(t, qt.Equals(countFDs(t), fds))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, task := range readDir(t, "/proc/self/task") {
		link, err := os.Readlink("/proc/self/task/" + task + "/ns/net")
		if err == nil {
			qt.Assert(t, qt.Equals(link, space), qt.Commentf("thread %s", task))
		}
	}
}
