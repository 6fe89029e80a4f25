package procnet

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// TestCounters makes many connections, and expects the kernel to have counted so
// many and nothing that did not happen.
func TestCounters(t *testing.T) {
	enterNetns(t)
	before := readCounters(t)
	l, at := listen(t, loopback4, many)
	clients, servers := connect(t, l, at)
	closeAll(t, clients...)
	closeAll(t, servers...)
	await(t, "TIME_WAIT", func() bool { return readSockstat(t).TimeWait == many })

	grown := readCounters(t).Sub(before)
	qt.Check(t, qt.Equals(grown["Tcp.ActiveOpens"], many))
	qt.Check(t, qt.Equals(grown["Tcp.PassiveOpens"], many))
	for _, name := range []string{"Tcp.AttemptFails", "Tcp.EstabResets", "Tcp.OutRsts", "TcpExt.ListenOverflows", "TcpExt.TCPTimeWaitOverflow"} {
		n, known := grown[name]
		qt.Check(t, qt.IsTrue(known), qt.Commentf("%s", name))
		qt.Check(t, qt.Equals(n, 0), qt.Commentf("%s", name))
	}
	for name := range notCounters {
		qt.Check(t, qt.IsFalse(has(grown, name)), qt.Commentf("%s", name))
	}
}

func has(c Counters, name string) bool {
	_, known := c[name]
	return known
}

// TestListenOverflows has many SYNs come to a listener whose queue is full.
func TestListenOverflows(t *testing.T) {
	enterNetns(t)
	l, at := listen(t, loopback4, 0) // which has room for one
	c := socket(t, unix.AF_INET, 0)
	defer unix.Close(c)
	qt.Assert(t, qt.IsNil(unix.Connect(c, at)))
	await(t, "a connection in the queue", func() bool {
		info, err := unix.GetsockoptTCPInfo(l, unix.SOL_TCP, unix.TCP_INFO)
		qt.Assert(t, qt.IsNil(err))
		return info.Unacked == 1
	})
	before := readCounters(t)
	for range many {
		fd := socket(t, unix.AF_INET, unix.SOCK_NONBLOCK)
		qt.Assert(t, qt.Equals(unix.Connect(fd, at), error(unix.EINPROGRESS)))
		closeAll(t, fd) // or it would send another SYN
	}
	var grown Counters
	await(t, "listen overflows", func() bool {
		grown = readCounters(t).Sub(before)
		return grown["TcpExt.ListenOverflows"] >= many
	})
	qt.Check(t, qt.Equals(grown["TcpExt.ListenOverflows"], many))
	qt.Check(t, qt.Equals(grown["TcpExt.ListenDrops"], many))
	qt.Check(t, qt.Equals(grown["Tcp.PassiveOpens"], 0))
}

// TestCountersAsNstat compares each counter with what nstat shows.
func TestCountersAsNstat(t *testing.T) {
	enterNetns(t)
	l, at := listen(t, loopback6, many)
	clients, servers := connect(t, l, at)
	defer closeAll(t, clients...)
	defer closeAll(t, servers...)

	shown := map[string]string{}
	for line := range strings.Lines(run(t, "nstat", "-a", "-s", "-z")) {
		if fields := strings.Fields(line); len(fields) == 3 {
			shown[fields[0]] = fields[1]
		}
	}
	counters := readCounters(t)
	qt.Assert(t, qt.IsTrue(len(counters) > 100), qt.Commentf("%d counters", len(counters)))
	for name, n := range counters {
		qt.Check(t, qt.Equals(shown[strings.Replace(name, ".", "", 1)], strconv.FormatUint(n, 10)), qt.Commentf("%s", name))
	}
}

// TestSockstat compares it with what the test has made, and with what ss finds in
// the kernel's tables.
func TestSockstat(t *testing.T) {
	enterNetns(t)
	qt.Assert(t, qt.Equals(ofNamespace(readSockstat(t)), Sockstat{}))
	_, err := MemoryPressure() // which is the host's: any answer is right
	qt.Check(t, qt.IsNil(err))

	l4, at4 := listen(t, loopback4, many)
	clients4, servers4 := connect(t, l4, at4)
	qt.Check(t, qt.Equals(ofNamespace(readSockstat(t)), Sockstat{InUse: 2*many + 1}))
	l6, at6 := listen(t, loopback6, many)
	clients6, servers6 := connect(t, l6, at6)
	got := readSockstat(t)
	qt.Check(t, qt.Equals(ofNamespace(got), Sockstat{InUse: 2*many + 1, InUse6: 2*many + 1}))
	qt.Check(t, qt.IsTrue(got.Allocated >= got.InUse+got.InUse6), qt.Commentf("%+v", got))
	qt.Check(t, qt.Equals(lines(run(t, "ss", "-Hant4")), 2*many+1))
	qt.Check(t, qt.Equals(lines(run(t, "ss", "-Hant6")), 2*many+1))

	for _, ends := range [][]int{clients4, servers4, clients6, servers6} {
		closeAll(t, ends...)
	}
	await(t, "TIME_WAIT", func() bool { return ofNamespace(readSockstat(t)) == Sockstat{InUse: 1, InUse6: 1, TimeWait: 2 * many} })
	qt.Check(t, qt.Equals(lines(run(t, "ss", "-Hant", "state", "time-wait")), 2*many))
}

// ofNamespace is without the host's.
func ofNamespace(s Sockstat) Sockstat {
	return Sockstat{InUse: s.InUse, InUse6: s.InUse6, TimeWait: s.TimeWait}
}

func lines(text string) int { return strings.Count(text, "\n") }

// TestOrphans leaves sockets to the kernel whose peer's window is closed.
func TestOrphans(t *testing.T) {
	enterNetns(t)
	l, at := listen(t, loopback4, many)
	clients, servers := connect(t, l, at)
	before := readSockstat(t)
	for _, fd := range clients {
		fill(t, fd)
	}
	filled := readSockstat(t)
	closeAll(t, clients...)
	// Others of the host may come and go, but not so many.
	await(t, "orphans", func() bool { return readSockstat(t).Orphans >= before.Orphans+many/2 })
	qt.Check(t, qt.IsTrue(filled.MemoryPages > before.MemoryPages), qt.Commentf("%+v, %+v", before, filled))
	closeAll(t, servers...)
}

// fill writes until nothing more fits.
func fill(t testing.TB, fd int) {
	t.Helper()
	qt.Assert(t, qt.IsNil(unix.SetNonblock(fd, true)))
	qt.Assert(t, qt.IsNil(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<16)))
	for block := make([]byte, 1<<16); ; {
		if _, err := unix.Write(fd, block); err != nil {
			qt.Assert(t, qt.Equals(err, error(unix.EAGAIN)))
			return
		}
	}
}

// TestEstablishedHash expects a namespace to share the host's table, unless it was
// made to have its own.
func TestEstablishedHash(t *testing.T) {
	slots, shared, err := EstablishedHash()
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("Linux 6.1 tells it")
	}
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(slots > 0 && slots&(slots-1) == 0), qt.Commentf("%d slots", slots))
	if shared {
		t.Skip("not in the initial network namespace")
	}

	enterNetns(t)
	theirs, shared, err := EstablishedHash()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(shared))
	qt.Check(t, qt.Equals(theirs, slots))

	const children = "/proc/sys/net/ipv4/tcp_child_ehash_entries"
	qt.Assert(t, qt.IsNil(os.WriteFile(children, []byte("1024"), 0)))
	enterNetns(t) // made by this namespace, which is another's child
	own, shared, err := EstablishedHash()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsFalse(shared))
	qt.Check(t, qt.Equals(own, 1024))
}

// TestFileLimit looks at a process that has a limit of its own and many files open.
func TestFileLimit(t *testing.T) {
	process := startCat(t)
	pid := uint32(process.Pid)
	open, soft, ok := FileLimit(pid)
	qt.Assert(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(open, 3+many))
	qt.Check(t, qt.Equals(soft, 1009))
	counted, err := countFiles("/proc/"+strconv.Itoa(process.Pid)+"/fd", pid)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(counted, 3+many))

	qt.Assert(t, qt.IsNil(process.Kill()))
	_, err = process.Wait()
	qt.Assert(t, qt.IsNil(err))
	open, soft, ok = FileLimit(pid)
	qt.Check(t, qt.IsFalse(ok))
	qt.Check(t, qt.Equals(open, 0))
	qt.Check(t, qt.Equals(soft, 0))
}

// startCat starts a process that may open 1009 files, has many beside its standard
// ones, and is cat when it returns.
func startCat(t *testing.T) *os.Process {
	t.Helper()
	for fd := 3; fd < 256; fd++ {
		unix.CloseOnExec(fd) // what the test has inherited is not for its child
	}
	cmd := exec.Command("sh", "-c", "ulimit -Sn 1009 && exec cat")
	in, err := cmd.StdinPipe()
	qt.Assert(t, qt.IsNil(err))
	out, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	null, err := os.Open(os.DevNull)
	qt.Assert(t, qt.IsNil(err))
	defer null.Close()
	for range many {
		cmd.ExtraFiles = append(cmd.ExtraFiles, null)
	}
	qt.Assert(t, qt.IsNil(cmd.Start()))
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // or it has been
		_ = cmd.Wait()
	})
	_, err = in.Write([]byte("x"))
	qt.Assert(t, qt.IsNil(err))
	_, err = out.Read(make([]byte, 1))
	qt.Assert(t, qt.IsNil(err))
	return cmd.Process
}

// TestFileLimitOfSelf compares it with what the process knows of itself.
func TestFileLimitOfSelf(t *testing.T) {
	var limit unix.Rlimit
	qt.Assert(t, qt.IsNil(unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)))
	open, soft, ok := FileLimit(uint32(os.Getpid()))
	qt.Assert(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(soft, limit.Cur))
	counted, err := countFiles("/proc/self/fd", uint32(os.Getpid()))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(counted, open))
}

// BenchmarkNetns reads all that there is of a network namespace.
func BenchmarkNetns(b *testing.B) {
	enterNetns(b)
	b.ReportAllocs()
	for b.Loop() {
		readCounters(b)
		readSockstat(b)
		if _, err := ReadConntrack(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.Fatal(err)
		}
		if _, _, err := EstablishedHash(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.Fatal(err)
		}
	}
}

// BenchmarkFileLimit reads that of one process.
func BenchmarkFileLimit(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, _, ok := FileLimit(uint32(os.Getpid())); !ok {
			b.Fatal("not ok")
		}
	}
}
