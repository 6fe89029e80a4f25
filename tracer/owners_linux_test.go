package tracer

import (
	"context"
	"os"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

func inodeOf(t testing.TB, fd int) uint32 {
	t.Helper()
	var st unix.Stat_t
	qt.Assert(t, qt.IsNil(unix.Fstat(fd, &st)))
	return uint32(st.Ino)
}

// TestFindOwners has sockets that we hold, that another process holds, that both
// do, and that nobody does any more.
func TestFindOwners(t *testing.T) {
	enterNetns(t)
	self := Process{uint32(os.Getpid()), processName(uint32(os.Getpid()))}
	ours, shared, given, closed := tcpSocket(t, unix.AF_INET), tcpSocket(t, unix.AF_INET), tcpSocket(t, unix.AF_INET6), tcpSocket(t, unix.AF_INET)
	child := Process{uint32(startHolder(t, shared, given)), "sleep"}
	want := map[uint32]Process{inodeOf(t, ours): self, inodeOf(t, shared): self, inodeOf(t, given): child}
	if child.PID < self.PID { // PIDs wrapped
		want[inodeOf(t, shared)] = child
	}
	inodes := []uint32{0, inodeOf(t, ours), inodeOf(t, shared), inodeOf(t, given), inodeOf(t, closed), inodeOf(t, ours)}
	closeSockets(given, closed)

	owners, hidden, err := FindOwners(t.Context(), inodes)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(owners, want))
	qt.Check(t, qt.Equals(hidden, 0))
}

func TestFindOwnersOfNothing(t *testing.T) {
	owners, hidden, err := FindOwners(t.Context(), []uint32{0})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(owners, 0))
	qt.Check(t, qt.Equals(hidden, 0))
}

func TestFindOwnersCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	owners, _, err := FindOwners(ctx, []uint32{1<<32 - 1})
	qt.Assert(t, qt.ErrorIs(err, context.Canceled))
	qt.Check(t, qt.IsNil(owners))
}

// TestFindOwnersUnprivileged counts the processes that it may not look into.
func TestFindOwnersUnprivileged(t *testing.T) {
	if asUnprivileged(t) {
		fd := tcpSocket(t, unix.AF_INET)
		owners, hidden, err := FindOwners(t.Context(), []uint32{inodeOf(t, fd), 1<<32 - 1})
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(owners[inodeOf(t, fd)].PID, uint32(os.Getpid())))
		qt.Check(t, qt.HasLen(owners, 1))
		qt.Check(t, qt.IsTrue(hidden > 0))
	}
}

// TestCensusRepeatedInode gives two sockets one inode number: whose the second is
// cannot be told.
func TestCensusRepeatedInode(t *testing.T) {
	enterNetns(t)
	inode := inodeOf(t, tcpSocket(t, unix.AF_INET))
	sum := newTally(ByProcess)
	sum.files = []socketFile{{inode, StateListen}, {inode, StateEstablished}}
	qt.Assert(t, qt.IsNil(new(Census).assignProcesses(t.Context(), sum)))
	self := groupKey{pid: uint32(os.Getpid())}
	qt.Assert(t, qt.HasLen(sum.groups, 2))
	qt.Check(t, qt.Equals(*sum.groups[self], StateCounts{StateListen: 1}))
	qt.Check(t, qt.Equals(*sum.groups[groupKey{}], StateCounts{StateEstablished: 1}))
}

// BenchmarkFindOwners looks for as many sockets of one process as it may open, up to
// 100,000. They are UNIX sockets, the cheapest. 100,000 are to take well under half a
// second.
func BenchmarkFindOwners(b *testing.B) {
	requireRoot(b)
	var limit unix.Rlimit
	qt.Assert(b, qt.IsNil(unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)))
	inodes := make([]uint32, min(100_000, limit.Cur-100))
	for i := range inodes {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		qt.Assert(b, qt.IsNil(err))
		defer unix.Close(fd)
		inodes[i] = inodeOf(b, fd)
	}
	b.ReportAllocs()
	for b.Loop() {
		owners, _, err := FindOwners(b.Context(), inodes)
		qt.Assert(b, qt.IsNil(err))
		qt.Assert(b, qt.HasLen(owners, len(inodes)))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(inodes)), "ns/socket")
}
