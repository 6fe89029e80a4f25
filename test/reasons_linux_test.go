package test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/tracer"
)

// closing is what is told of the end of a socket.
type closing struct {
	From   tracer.State
	Reason tracer.Reason
	Side   tracer.Side
}

func (c closing) String() string { return fmt.Sprint(c.From, " ", c.Reason, " ", c.Side) }

// closings are what is to be told of the sockets of a namespace, by cookie.
type closings struct {
	*loop
	r    *remote // the peer, in the cases that need one that does what it is told
	want map[uint64][]closing
	// blind says that less may be told: the kernel hides its symbols.
	blind bool
}

// told tells whether it is told rightly.
func (c *closings) told(got, want closing) bool {
	return got == want || c.blind && got.From == want.From && got.Reason == tracer.ReasonUnknown
}

// expect expects the end of a socket to be told so.
func (c *closings) expect(e end, from tracer.State, reason tracer.Reason, side tracer.Side) {
	c.want[e.cookie] = append(c.want[e.cookie], closing{from, reason, side})
}

// closes closes a socket, which is its end.
func (c *closings) closes(e end, from tracer.State, reason tracer.Reason, side tracer.Side) {
	c.t.Helper()
	c.expect(e, from, reason, side)
	c.close(e)
}

// ends waits for the end of a socket, and closes it then.
func (c *closings) ends(e end, from tracer.State, reason tracer.Reason, side tracer.Side) {
	c.t.Helper()
	c.expect(e, from, reason, side)
	c.awaitState(e, tracer.StateClose)
	c.close(e)
}

// closeLate closes a socket when the test is over, which says nothing.
func (c *closings) closeLate(e end) { c.t.Cleanup(func() { unix.Close(e.fd) }) }

// reasonCase is a way in which sockets end.
type reasonCase struct {
	name   string
	remote bool          // needs a peer that does what it is told
	family tracer.Family // the only one with which there is such an end; 0 for both
	slow   bool          // it takes a timer to make the end
	// global says that it changes a sysctl that is the whole host's, which is
	// for guests alone.
	global  bool
	provoke func(*closings)
}

// TestReasons has sockets end in every way, and holds what is told of it to what
// was done, and to the kernel's own counters.
func TestReasons(t *testing.T) {
	rec := shared(t)
	fast := func(c reasonCase) bool { return !c.slow }
	eachReasonCase(t, fast, families, func(t *testing.T, c reasonCase, family tracer.Family) {
		if c.global {
			onlyInGuest(t)
		}
		awaitClosings(rec.in(t), provoke(t, c, family))
	})
	rec.stop()
}

// TestReasonsOfTimers does the same where it takes a timer of the kernel's some
// seconds. They run together.
func TestReasonsOfTimers(t *testing.T) {
	rec := shared(t)
	t.Cleanup(func() { rec.stop() })
	slow := func(c reasonCase) bool { return c.slow }
	eachReasonCase(t, slow, families, func(t *testing.T, c reasonCase, family tracer.Family) {
		made := provoke(t, c, family)
		t.Parallel()
		mine := *rec
		mine.t = t
		awaitClosings(&mine, made)
	})
}

// TestReasonsWithoutSymbols has the kernel hide its symbols. What is told then is
// less, and not wrong.
func TestReasonsWithoutSymbols(t *testing.T) {
	onlyInGuest(t)
	const sysctl = "/proc/sys/kernel/kptr_restrict"
	before, err := os.ReadFile(sysctl)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(os.WriteFile(sysctl, []byte("2"), 0)))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(os.WriteFile(sysctl, before, 0))) })
	rec := record(t, &tracer.Options{Evidence: tracer.EvidenceProbe})
	some := func(c reasonCase) bool { return !c.slow && !c.global }
	eachReasonCase(t, some, families[:1], func(t *testing.T, c reasonCase, family tracer.Family) {
		rec := rec.in(t)
		made := provoke(t, c, family)
		made.blind = true
		awaitClosings(rec, made)
	})
	rec.stop()
}

// onlyInGuest skips a test that changes a sysctl of the whole host.
func onlyInGuest(t *testing.T) {
	t.Helper()
	if os.Getenv("FINWAIT_VM") == "" {
		t.Skip("changes a sysctl of the whole host: for guests alone (FINWAIT_VM)")
	}
}

func eachReasonCase(t *testing.T, wanted func(reasonCase) bool, families []tracer.Family,
	do func(*testing.T, reasonCase, tracer.Family)) {

	for _, cases := range [][]reasonCase{finCases, resetCases, closeCases, killCases, handshakeCases, timeoutCases, heldCases, limitCases} {
		for _, c := range cases {
			for _, family := range families {
				if wanted(c) && (c.family == 0 || c.family == family) {
					t.Run(c.name+"/"+family.String(), func(t *testing.T) { do(t, c, family) })
				}
			}
		}
	}
}

func provoke(t *testing.T, c reasonCase, family tracer.Family) *closings {
	made := &closings{want: map[uint64][]closing{}}
	if c.remote {
		made.loop, made.r = newRemoteLoop(t, family)
	} else {
		made.loop = newLoop(t, family)
	}
	c.provoke(made)
	return made
}

func isClosing(ev *tracer.Event) bool { return ev.New == tracer.StateClose }

// awaitClosings waits for all ends that are expected, and expects no others.
func awaitClosings(rec *recorder, made *closings) {
	rec.t.Helper()
	n := 0
	for _, want := range made.want {
		n += len(want)
	}
	events := rec.await(n, patience, func(ev *tracer.Event) bool {
		return ev.Netns == made.ns.Inode() && isClosing(ev)
	})
	byTime(events)
	got := map[uint64][]closing{}
	for _, ev := range events {
		got[ev.Cookie] = append(got[ev.Cookie], closing{ev.Old, ev.Reason, ev.Side})
	}
	differ := map[string]int{}
	for cookie, want := range made.want {
		if !slices.EqualFunc(got[cookie], want, made.told) {
			differ[fmt.Sprint("told ", got[cookie], ", is ", want)]++
		}
		delete(got, cookie)
	}
	for _, other := range got {
		differ[fmt.Sprint("told ", other, " of a socket that nobody made")]++
	}
	if len(differ) > 0 {
		rec.guards.excuse(rec.t)
	}
	qt.Check(rec.t, qt.HasLen(differ, 0))
	if !made.blind {
		checkCounters(rec.t, made, events)
	}
}

// checkCounters holds the reasons to what the kernel counts itself. It speaks of
// full sockets alone.
func checkCounters(t testing.TB, made *closings, events []tracer.Event) {
	t.Helper()
	snmp, err := oracle.SNMP(made.ns)
	qt.Assert(t, qt.IsNil(err))
	count := func(keep func(*tracer.Event) bool) int {
		return len(only(events, func(ev *tracer.Event) bool { return ev.Evidence == tracer.EvidenceKernel && keep(ev) }))
	}
	because := func(reasons ...tracer.Reason) int {
		n := 0
		for _, reason := range reasons {
			n += count(func(ev *tracer.Event) bool { return ev.Reason == reason })
		}
		return n
	}
	equal := func(name string, got, want int) {
		t.Helper()
		qt.Check(t, qt.Equals(got, want), qt.Commentf("%s", name))
	}
	ext := snmp["TcpExt"]
	equal("EstabResets", count(func(ev *tracer.Event) bool {
		return ev.Old == tracer.StateEstablished || ev.Old == tracer.StateCloseWait
	}), snmp["Tcp"]["EstabResets"])
	equal("TCPAbortOnClose", because(tracer.ReasonRSTSentUnreadData), ext["TCPAbortOnClose"])
	equal("TCPAbortOnData and TCPAbortOnLinger", because(tracer.ReasonRSTSentLinger, tracer.ReasonRSTSentLateData),
		ext["TCPAbortOnData"]+ext["TCPAbortOnLinger"])
	equal("TCPAbortOnMemory", because(tracer.ReasonRSTSentOrphanLimit, tracer.ReasonRSTSentMemory), ext["TCPAbortOnMemory"])
	equal("TCPAbortOnTimeout", count(func(ev *tracer.Event) bool {
		return strings.HasPrefix(ev.Reason.String(), "timeout_")
	}), ext["TCPAbortOnTimeout"])
	equal("TCPTimeWaitOverflow", because(tracer.ReasonTimeWaitRefused), ext["TCPTimeWaitOverflow"])
}

// pairs makes connections between sockets of this process.
func (c *closings) pairs(do func(p pair)) {
	c.t.Helper()
	c.listen()
	for _, p := range c.connectAll() {
		do(p)
	}
	c.closes(c.listener, tracer.StateListen, tracer.ReasonClosed, tracer.SideUnknown)
}

// remotes makes connections with the remote, which says no more than it is told
// to. The listener stays.
func (c *closings) remotes(do func(e end, port uint16)) {
	c.t.Helper()
	c.listen()
	eachPort(c.r.syn)
	eachPort(c.r.ack)
	for range connections {
		e := c.acceptRemote()
		do(e, e.remote.Port())
	}
	c.closeLate(c.listener)
}

func (c *closings) acceptRemote() end {
	c.t.Helper()
	fd := c.acceptIn()
	return end{fd: fd, cookie: c.cookie(fd), local: c.listener.local, remote: c.peer(fd)}
}

// connecting makes a socket that connects to where nobody may answer.
func (c *closings) connecting(to unix.Sockaddr) (e end) {
	c.t.Helper()
	c.ns.Do(func() {
		e.fd = c.socket()
		e.cookie = c.cookie(e.fd)
		c.must("non-blocking", unix.SetNonblock(e.fd, true))
		if err := unix.Connect(e.fd, to); err != unix.EINPROGRESS {
			c.must("connect", err)
		}
		e.local = c.name(e.fd)
	})
	return e
}

func (c *closings) shutdown(e end, how int) {
	c.t.Helper()
	c.must("shutdown", unix.Shutdown(e.fd, how))
}

func (c *closings) write(e end, n int) {
	c.t.Helper()
	_, err := unix.Write(e.fd, make([]byte, n))
	c.must("write", err)
}

func (c *closings) setTCP(e end, option, value int) {
	c.t.Helper()
	c.must(fmt.Sprintf("TCP option %d", option), unix.SetsockoptInt(e.fd, unix.SOL_TCP, option, value))
}

// awaitAll waits until as many sockets as there are connections are in the state.
// A process has gone on when the kernel has yet to deal with what it has sent.
func (c *closings) awaitAll(state tracer.State) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		counts, err := oracle.SS(c.ns)
		c.must("ss", err)
		if counts[state] == connections {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%d sockets in %v", counts[state], state)
		}
	}
}

// killAll has ss -K end the sockets in the state, of which there are so many.
func (c *closings) killAll(state tracer.State) {
	c.t.Helper()
	c.awaitAll(state)
	c.kill("state", strings.NewReplacer("_", "-", "WAIT1", "WAIT-1", "WAIT2", "WAIT-2").Replace(state.String()))
}

// awaitUnread waits until there is data that could be read.
func (c *closings) awaitUnread(e end) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Microsecond) {
		n, err := unix.IoctlGetInt(e.fd, unix.SIOCINQ)
		c.must("SIOCINQ", err)
		if n > 0 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatal("no data has come")
		}
	}
}

// linger has close send a reset.
func (c *closings) linger(e end) {
	c.t.Helper()
	c.must("SO_LINGER", unix.SetsockoptLinger(e.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
}

func (c *closings) family() tracer.Family {
	if c.addr.Is6() {
		return tracer.FamilyIPv6
	}
	return tracer.FamilyIPv4
}

// unaccepted makes connections that nobody accepts, some of which the client
// has shut down.
func (c *closings) unaccepted() {
	c.t.Helper()
	c.listen()
	for i := range connections {
		c.ns.Do(func() {
			e := end{fd: c.socket()}
			e.cookie = c.cookie(e.fd)
			c.must("connect", unix.Connect(e.fd, sockaddrOf(c.listener.local)))
			if i%2 == 0 {
				c.expect(e, estab, tracer.ReasonRSTReceived, peer)
			} else {
				c.shutdown(e, unix.SHUT_WR)
				c.awaitState(e, finWait2)
				c.expect(e, finWait2, tracer.ReasonRSTReceived, local)
			}
			c.closeLate(e)
		})
	}
	c.expectQueued(tracer.ReasonRSTSentUnaccepted)
	for _, cookie := range c.cookies("close-wait") {
		c.expect(end{cookie: cookie}, closeWait, tracer.ReasonRSTSentUnaccepted, peer)
	}
}

// expectQueued waits until all connections wait to be accepted, and expects the
// established ones to be ended from here.
func (c *closings) expectQueued(reason tracer.Reason) {
	c.t.Helper()
	c.awaitQueued(connections)
	for tuple, cookie := range c.cookies("established") {
		if tuple.Local == c.listener.local {
			c.expect(end{cookie: cookie}, estab, reason, local)
		}
	}
}

func (c *closings) cookies(state string) map[oracle.Tuple]uint64 {
	c.t.Helper()
	cookies, err := oracle.Cookies(c.ns, state)
	c.must("ss", err)
	return cookies
}

// listenFastOpen has the listener take data in SYNs.
func (c *closings) listenFastOpen() {
	c.t.Helper()
	c.ns.Sysctl("net.ipv4.tcp_fastopen", "3")
	c.listen()
	c.setTCP(c.listener, unix.TCP_FASTOPEN, connections)
	c.setTCP(c.listener, unix.TCP_FASTOPEN_NO_COOKIE, 1)
}

// fastOpens makes connections whose SYN carried a byte and is not answered yet:
// they are accepted in SYN_RECV.
func (c *closings) fastOpens(do func(e end, port uint16)) {
	c.t.Helper()
	c.listenFastOpen()
	eachPort(func(port uint16) { c.r.segment(port, flagSYN, remoteISN, 0, 'x') })
	for range connections {
		e := c.acceptRemote()
		do(e, e.remote.Port())
	}
	c.closeLate(c.listener)
}

// connectings makes sockets in SYN_SENT, each to another of the remote's ports.
func (c *closings) connectings(do func(e end)) {
	c.t.Helper()
	var all []end
	eachPort(func(port uint16) {
		all = append(all, c.connecting(sockaddrOf(netip.AddrPortFrom(c.r.addr, port))))
	})
	for _, e := range all {
		do(e)
	}
}

// giveUpSoon has the kernel repeat nothing more than once.
func (c *closings) giveUpSoon() {
	c.t.Helper()
	c.ns.Sysctl("net.ipv4.tcp_retries2", "1")
	c.ns.Sysctl("net.ipv4.tcp_orphan_retries", "1")
}

// keepAlive has the kernel probe the peer every second.
func (c *closings) keepAlive(e end, probes int) {
	c.t.Helper()
	c.must("SO_KEEPALIVE", unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1))
	c.setTCP(e, unix.TCP_KEEPIDLE, 1)
	c.setTCP(e, unix.TCP_KEEPINTVL, 1)
	c.setTCP(e, unix.TCP_KEEPCNT, probes)
}

// limit sets a sysctl of the whole host until the test is over.
func (c *closings) limit(name, value string) {
	c.t.Helper()
	path := "/proc/sys/net/ipv4/" + name
	before, err := os.ReadFile(path)
	c.must("read sysctl", err)
	c.must("set sysctl", os.WriteFile(path, []byte(value), 0))
	c.t.Cleanup(func() {
		if err := os.WriteFile(path, before, 0); err != nil {
			c.t.Error(err)
		}
	})
}
