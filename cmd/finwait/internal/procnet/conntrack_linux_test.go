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

const conntrackMax = "/proc/sys/net/netfilter/nf_conntrack_max"

// track has the namespace's connections tracked.
func track(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft: ", err)
	}
	run(t, "nft", "add table inet t; add chain inet t c { type filter hook output priority 0; }; add rule inet t c ct state new counter")
}

func readConntrack(t testing.TB) Conntrack {
	t.Helper()
	c, err := ReadConntrack()
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("no connection tracking here")
	}
	qt.Assert(t, qt.IsNil(err))
	return c
}

// TestConntrack expects nothing to be tracked before a rule asks for it, and then
// each connection, in the namespace where it is.
func TestConntrack(t *testing.T) {
	enterNetns(t)
	l, at := listen(t, loopback4, many)
	untracked, peers := connect(t, l, at)
	defer closeAll(t, untracked...)
	defer closeAll(t, peers...)
	qt.Check(t, qt.Equals(readConntrack(t).Entries, 0))

	track(t)
	clients, servers := connect(t, l, at)
	defer closeAll(t, clients...)
	defer closeAll(t, servers...)
	got := readConntrack(t)
	qt.Check(t, qt.Equals(got.Entries, many))
	qt.Check(t, qt.DeepEquals(got.Drops, Counters{"drop": 0, "early_drop": 0, "insert_failed": 0}))
	limit, err := os.ReadFile(conntrackMax)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(strconv.FormatUint(got.Max, 10), strings.TrimSpace(string(limit))))

	enterNetns(t)
	qt.Check(t, qt.Equals(readConntrack(t).Entries, 0))
}

// TestConntrackDrops fills a namespace's table, and loses many packets more. The
// limit is one for the host, so it is lowered only where that disturbs nobody.
func TestConntrackDrops(t *testing.T) {
	if os.Getenv("CI_PRIVILEGED") != "1" {
		t.Skip("lowers a limit of the whole host: needs CI_PRIVILEGED=1")
	}
	host := readConntrack(t)
	enterNetns(t)
	track(t)
	l, at := listen(t, loopback4, many)
	clients, servers := connect(t, l, at)
	defer closeAll(t, clients...)
	defer closeAll(t, servers...)
	before := readConntrack(t)

	lowerMax(t, host.Max)
	got := readConntrack(t)
	qt.Assert(t, qt.Equals(got.Max, many))
	qt.Assert(t, qt.Equals(got.Entries, many))
	sendDatagrams(t)
	grown := readConntrack(t).Drops.Sub(before.Drops)
	qt.Check(t, qt.DeepEquals(grown, Counters{"drop": many, "early_drop": 0, "insert_failed": 0}))
	qt.Check(t, qt.Equals(readConntrack(t).Entries, many))
}

// lowerMax lets namespaces track no more than many connections each, until the
// test ends.
func lowerMax(t testing.TB, was uint64) {
	t.Helper()
	t.Cleanup(func() { setMax(t, was) })
	setMax(t, many)
}

// setMax writes on a goroutine of its own, whose thread is in the namespace of the
// process: elsewhere it can only be read.
func setMax(t testing.TB, limit uint64) {
	t.Helper()
	written := make(chan error)
	go func() { written <- os.WriteFile(conntrackMax, strconv.AppendUint(nil, limit, 10), 0) }()
	qt.Assert(t, qt.IsNil(<-written))
}

// sendDatagrams sends many, each from a socket of its own and so a connection to
// be tracked, and expects none to be let through.
func sendDatagrams(t testing.TB) {
	t.Helper()
	for range many {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		qt.Assert(t, qt.IsNil(err))
		to := &unix.SockaddrInet4{Port: 9, Addr: loopback4.Addr}
		qt.Check(t, qt.ErrorIs(unix.Sendto(fd, []byte("x"), 0, to), error(unix.EPERM)))
		closeAll(t, fd)
	}
}
