package tracer

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// censusN is how many sockets of a kind the tests make: a prime, so that a
// count that is off by a factor does not pass for another.
const censusN = 23

// TestCensusStates makes sockets in each state and compares the census, with
// and without groups, with what was made and with what ss says.
func TestCensusStates(t *testing.T) {
	requireRoot(t)
	for _, kind := range censusKinds {
		t.Run(kind.name, func(t *testing.T) {
			enterNetns(t)
			var want StateCounts
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				kind.make(t, family)
				want.add(&kind.want)
			}
			assertCensus(t, want)
		})
	}
	t.Run("all at once", func(t *testing.T) {
		enterNetns(t)
		var want StateCounts
		for _, kind := range censusKinds {
			for _, family := range []int{unix.AF_INET6, unix.AF_INET} {
				kind.make(t, family)
				want.add(&kind.want)
			}
		}
		assertCensus(t, want)
	})
}

// assertCensus checks the census of the calling thread's namespace.
func assertCensus(t *testing.T, want StateCounts) {
	t.Helper()
	waitForStates(t, want)
	for by := ByNothing; by <= ByRemote; by++ {
		c := takeCensus(t, SelfNetns, by)
		qt.Assert(t, qt.Equals(c.States, want), qt.Commentf("by %s", by))
		qt.Assert(t, qt.Equals(c.Namespaces, 1))
		qt.Assert(t, qt.HasLen(c.Missed.Netns, 0))
		if by == ByNothing {
			qt.Assert(t, qt.IsNil(c.Groups))
			continue
		}
		var sum StateCounts
		for i := range c.Groups {
			sum.add(&c.Groups[i].States)
		}
		qt.Assert(t, qt.Equals(sum, want), qt.Commentf("groups by %s", by))
	}
}

// waitForStates waits until ss sees those states: the last packets of a
// connection may still be on their way when the call that sent them returns.
func waitForStates(t *testing.T, want StateCounts) {
	t.Helper()
	var got StateCounts
	eventually(t, func() bool {
		got = ssStates(t)
		return got == want
	}, func() string { return "ss counts " + describeStates(got) + ", want " + describeStates(want) })
}

// ssStates counts what ss lists in the calling thread's namespace.
func ssStates(t testing.TB) StateCounts {
	t.Helper()
	out, err := exec.Command("ss", "-Htan").Output()
	qt.Assert(t, qt.IsNil(err))
	var counts StateCounts
	for line := range strings.Lines(string(out)) {
		state, err := ParseState(strings.Fields(line)[0])
		qt.Assert(t, qt.IsNil(err))
		if state != StateClose {
			counts[state]++
		}
	}
	return counts
}

func takeCensus(t testing.TB, scope NetnsScope, by Dimension) *Census {
	t.Helper()
	c, err := TakeCensus(context.Background(), &CensusOptions{Netns: scope, By: by})
	qt.Assert(t, qt.IsNil(err))
	return c
}

// TestDumpPerFamily checks the request that takes one family at a time, for
// kernels that know no other.
func TestDumpPerFamily(t *testing.T) {
	enterNetns(t)
	makeOrphans(t, unix.AF_INET)
	makeTimeWait(t, unix.AF_INET6)
	want := StateCounts{StateListen: 2, StateFinWait2: censusN, StateCloseWait: censusN, StateTimeWait: censusN}
	waitForStates(t, want)
	for _, perFamily := range []bool{false, true} {
		conn, err := openDiag(make([]byte, diagBufSize))
		qt.Assert(t, qt.IsNil(err))
		defer conn.Close()
		conn.perFamily = perFamily
		sum := newTally(ByNothing)
		interrupted, err := conn.dump(context.Background(), listedStates|1<<StateTimeWait, sum.add)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsFalse(interrupted))
		qt.Assert(t, qt.Equals(sum.states, want))
		qt.Assert(t, qt.Equals(sum.orphans, censusN))
		qt.Assert(t, qt.Equals(conn.perFamily, perFamily))
	}
}

// TestCensusBoundSocket checks that a socket without a connection is not counted.
func TestCensusBoundSocket(t *testing.T) {
	enterNetns(t)
	fd := tcpSocket(t, unix.AF_INET)
	qt.Assert(t, qt.IsNil(unix.Bind(fd, loopback(unix.AF_INET, 0))))
	assertCensus(t, StateCounts{})
}

// TestCensusMappedIPv4 checks that IPv6 sockets that carry IPv4 are counted
// once, TIME_WAIT and half-open ones among them.
func TestCensusMappedIPv4(t *testing.T) {
	enterNetns(t)
	l := listen(t, &unix.SockaddrInet6{}, 128)
	for range censusN {
		c, s := connectPair(t, l, unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: portOf(t, l)})
		closeSockets(s, c)
	}
	var want StateCounts
	want[StateListen] = 1
	want[StateTimeWait] = censusN
	assertCensus(t, want)
}

func TestCensusLeavesNothingBehind(t *testing.T) {
	requireRoot(t)
	takeCensus(t, AllNetns, ByProcess)
	fds, space := countFDs(t), readlink(t, "/proc/thread-self/ns/net")
	for range 20 {
		takeCensus(t, AllNetns, ByProcess)
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

func TestCensusCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c, err := TakeCensus(ctx, &CensusOptions{Netns: SelfNetns})
	qt.Assert(t, qt.ErrorIs(err, context.Canceled))
	qt.Assert(t, qt.IsNil(c))
}

func TestCensusOptions(t *testing.T) {
	_, err := TakeCensus(context.Background(), &CensusOptions{Netns: 9})
	qt.Assert(t, qt.ErrorMatches(err, "census: unknown network namespace scope 9"))
	_, err = TakeCensus(context.Background(), &CensusOptions{By: 9})
	qt.Assert(t, qt.ErrorMatches(err, "census: unknown dimension 9"))
}

// TestMiniSockets checks when the kernel's sum can stand in for a list.
func TestMiniSockets(t *testing.T) {
	tests := []struct {
		name         string
		orphans, sum uint64
		ok           bool
		want         uint64
	}{
		{"none", 0, 0, true, 0},
		{"time wait only", 0, 23, true, 23},
		{"orphans only", 23, 23, true, 0},
		{"both", 11, 23, true, 12},
		{"orphans ended meanwhile", 23, 22, false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tally := newTally(ByProcess)
			tally.orphans = tt.orphans
			qt.Assert(t, qt.Equals(tally.addMiniSockets(tt.sum), tt.ok))
			qt.Assert(t, qt.Equals(tally.states[StateTimeWait], tt.want))
		})
	}
}

func TestParseSockstat(t *testing.T) {
	tests := []struct {
		name, text string
		want       uint64
		ok         bool
	}{
		{"kernel", "sockets: used 12\nTCP: inuse 1 orphan 0 tw 2345 alloc 1 mem 43\nUDP: inuse 0 mem 0\n", 2345, true},
		{"empty", "", 0, false},
		{"no tw", "TCP: inuse 1 orphan 0\n", 0, false},
		{"not a number", "TCP: inuse 1 tw x alloc 1\n", 0, false},
		{"tw of another protocol", "DCCP: inuse 1 tw 7 alloc 1\n", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseSockstat([]byte(tt.text))
			qt.Assert(t, qt.Equals(ok, tt.ok))
			qt.Assert(t, qt.Equals(got, tt.want))
		})
	}
}

func TestParseSocketLink(t *testing.T) {
	inode, ok := parseSocketLink([]byte("socket:[4294967295]"))
	qt.Assert(t, qt.IsTrue(ok))
	qt.Assert(t, qt.Equals(inode, uint32(1<<32-1)))
	for _, link := range []string{"", "socket:[", "socket:[]", "socket:[4294967296]", "socket:[1x]", "pipe:[1]", "/tmp/socket:[1]"} {
		_, ok := parseSocketLink([]byte(link))
		qt.Assert(t, qt.IsFalse(ok), qt.Commentf("%q", link))
	}
}
