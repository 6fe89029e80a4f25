package test

import (
	endian "encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/tracer"
)

// Every loop is a namespace of its own, so that the ports can be fixed. That
// of the listener is not among those that the kernel chooses from.
const (
	listenPort = 4321
	clientPort = 5001 // of the first connection; the next have those that follow
)

// loop is a namespace with a listener on its loopback address. Descriptors are
// blocking, which loopback makes short; an answer that does not come fails the
// test after a while.
type loop struct {
	t        testing.TB
	ns       *netns.NS
	addr     netip.Addr
	listener end
	bound    bool // clients choose their ports themselves
}

// end is one end of a connection, or a listener.
type end struct {
	fd            int
	cookie        uint64
	local, remote netip.AddrPort
}

// pair is a connection between two sockets of this process.
type pair struct{ client, server end }

func newLoop(t testing.TB, family tracer.Family) *loop {
	t.Helper()
	l := &loop{t: t, ns: netns.New(t), addr: netip.AddrFrom4([4]byte{127, 0, 0, 1}), bound: true}
	if family == tracer.FamilyIPv6 {
		l.addr = netip.IPv6Loopback()
	}
	return l
}

// listen opens the listener, on the port that stands above.
func (l *loop) listen() {
	l.t.Helper()
	l.ns.Do(func() {
		fd := l.socket()
		l.bind(fd, listenPort)
		l.must("listen", unix.Listen(fd, 1024))
		l.listener = end{fd: fd, cookie: l.cookie(fd), local: netip.AddrPortFrom(l.addr, listenPort)}
	})
}

func (l *loop) must(what string, err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
}

func (l *loop) domain() int {
	if l.addr.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// socket makes a socket in the namespace of the calling thread.
func (l *loop) socket() int {
	l.t.Helper()
	fd, err := unix.Socket(l.domain(), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	l.must("socket", err)
	patient := unix.Timeval{Sec: 30}
	l.must("SO_RCVTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patient))
	l.must("SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	return fd
}

func (l *loop) bind(fd int, port uint16) {
	l.t.Helper()
	l.must("bind", unix.Bind(fd, sockaddrOf(netip.AddrPortFrom(l.addr, port))))
}

func (l *loop) addrPort(port uint16) netip.AddrPort { return netip.AddrPortFrom(l.addr, port) }

func (l *loop) cookie(fd int) uint64 {
	l.t.Helper()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	l.must("SO_COOKIE", err)
	return cookie
}

// connect makes a connection to the listener, from a port that the kernel
// chooses if from is 0.
func (l *loop) connect(from uint16) (c pair) {
	l.t.Helper()
	l.ns.Do(func() {
		fd := l.socket()
		if from != 0 {
			l.bind(fd, from)
		}
		l.must("connect", unix.Connect(fd, sockaddrOf(l.listener.local)))
		peer := l.accept()
		local := l.name(fd)
		c.client = end{fd, l.cookie(fd), local, l.listener.local}
		c.server = end{peer, l.cookie(peer), l.listener.local, local}
	})
	return c
}

// accept takes a connection off the listener's queue.
func (l *loop) accept() (fd int) {
	l.t.Helper()
	l.must("accept", uninterrupted(func() (err error) {
		fd, _, err = unix.Accept4(l.listener.fd, unix.SOCK_CLOEXEC)
		return err
	}))
	return fd
}

// uninterrupted calls f again when a signal has interrupted it, which the
// kernel does not do itself for a socket that has a timeout.
func uninterrupted(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// connectAll makes as many connections as there are of everything.
func (l *loop) connectAll() (pairs []pair) {
	l.t.Helper()
	for i := range uint16(connections) {
		from := clientPort + i
		if !l.bound {
			from = 0
		}
		pairs = append(pairs, l.connect(from))
	}
	return pairs
}

func (l *loop) name(fd int) netip.AddrPort {
	l.t.Helper()
	sa, err := unix.Getsockname(fd)
	l.must("getsockname", err)
	return addrPortOf(sa)
}

func (l *loop) peer(fd int) netip.AddrPort {
	l.t.Helper()
	sa, err := unix.Getpeername(fd)
	l.must("getpeername", err)
	return addrPortOf(sa)
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	if sa, ok := sa.(*unix.SockaddrInet4); ok {
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	}
	six := sa.(*unix.SockaddrInet6)
	return netip.AddrPortFrom(netip.AddrFrom16(six.Addr), uint16(six.Port))
}

func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (l *loop) close(e end) {
	l.t.Helper()
	l.must("close", unix.Close(e.fd))
}

// awaitEOF reads until the peer's FIN is there.
func (l *loop) awaitEOF(e end) {
	l.t.Helper()
	var n int
	l.must("read", uninterrupted(func() (err error) {
		n, err = unix.Read(e.fd, make([]byte, 1))
		return err
	}))
	if n != 0 {
		l.t.Fatal("data where there should be an end")
	}
}

// closeInTurn closes first and then last. The second FIN carries the answer to
// the first, and both sockets have an owner until they have ended: what happens
// does not depend on delayed acknowledgements.
func (l *loop) closeInTurn(first, last end) {
	l.t.Helper()
	l.must("shutdown", unix.Shutdown(first.fd, unix.SHUT_WR))
	l.awaitEOF(last)
	l.close(last)
	l.awaitEOF(first)
	l.close(first)
}

// orphan closes first, and has the kernel answer in the name of last, without
// the delay that it may otherwise take.
func (l *loop) orphan(first, last end) {
	l.t.Helper()
	l.close(first)
	l.awaitState(last, tracer.StateCloseWait)
	l.must("TCP_QUICKACK", unix.SetsockoptInt(last.fd, unix.SOL_TCP, unix.TCP_QUICKACK, 1))
}

func (l *loop) awaitState(e end, want tracer.State) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Microsecond) {
		info, err := unix.GetsockoptTCPInfo(e.fd, unix.SOL_TCP, unix.TCP_INFO)
		l.must("TCP_INFO", err)
		if tracer.State(info.State) == want {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("in %v, not in %v", tracer.State(info.State), want)
		}
	}
}

// sendRaw sends a TCP segment to the loopback address, and from it.
func (l *loop) sendRaw(segment []byte) {
	l.t.Helper()
	l.ns.Do(func() {
		fd, err := unix.Socket(l.domain(), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		l.must("raw socket", err)
		defer unix.Close(fd)
		l.must("send raw", unix.Sendto(fd, segment, 0, sockaddrOf(netip.AddrPortFrom(l.addr, 0))))
	})
}

// bareACK is a segment without data whose numbers are those of no connection.
func bareACK(from, to netip.AddrPort) []byte {
	const headerWords, ack = 5, 1 << 4
	s := make([]byte, headerWords*4)
	endian.BigEndian.PutUint16(s[0:], from.Port())
	endian.BigEndian.PutUint16(s[2:], to.Port())
	s[12], s[13] = headerWords<<4, ack
	endian.BigEndian.PutUint16(s[16:], tcpChecksum(from.Addr(), to.Addr(), s))
	return s
}

// tcpChecksum is that of RFC 9293, 3.1, for segments of an even length.
func tcpChecksum(from, to netip.Addr, segment []byte) uint16 {
	return onesComplement(append(tcpPseudoHeader(from, to, len(segment)), segment...))
}

// tcpPseudoHeader is that of RFC 793, or of RFC 8200.
func tcpPseudoHeader(from, to netip.Addr, segment int) []byte {
	header := append(from.AsSlice(), to.AsSlice()...)
	if from.Is4() {
		return append(header, 0, unix.IPPROTO_TCP, byte(segment>>8), byte(segment))
	}
	return append(header, 0, 0, byte(segment>>8), byte(segment), 0, 0, 0, unix.IPPROTO_TCP)
}

// path is a walk through these states.
func path(states ...tracer.State) []tracer.Transition {
	var walk []tracer.Transition
	for i := 1; i < len(states); i++ {
		walk = append(walk, tracer.Transition{Old: states[i-1], New: states[i]})
	}
	return walk
}

// The walks of sockets that close in turn.
var (
	clientThatClosesFirst = path(tracer.StateClose, tracer.StateSynSent, tracer.StateEstablished,
		tracer.StateFinWait1, tracer.StateFinWait2, tracer.StateTimeWait)
	clientThatClosesLast = path(tracer.StateClose, tracer.StateSynSent, tracer.StateEstablished,
		tracer.StateCloseWait, tracer.StateLastAck, tracer.StateClose)
	serverThatClosesFirst = path(tracer.StateClose, tracer.StateNewSynRecv, tracer.StateSynRecv, tracer.StateEstablished,
		tracer.StateFinWait1, tracer.StateFinWait2, tracer.StateTimeWait)
	serverThatClosesLast = path(tracer.StateClose, tracer.StateNewSynRecv, tracer.StateSynRecv, tracer.StateEstablished,
		tracer.StateCloseWait, tracer.StateLastAck, tracer.StateClose)
	timeWaitEnds = path(tracer.StateTimeWait, tracer.StateClose)
)

// walks are what each socket is to have done, by cookie.
type walks map[uint64][]tracer.Transition

func (w walks) add(e end, walk []tracer.Transition) {
	w[e.cookie] = append(w[e.cookie][:len(w[e.cookie]):len(w[e.cookie])], walk...)
}

func (w walks) len() (n int) {
	for _, walk := range w {
		n += len(walk)
	}
	return n
}

// awaitWalks waits for all that want speaks of, and returns the namespace's
// events up to now, in the order of their times. There may be no others.
func awaitWalks(rec *recorder, ns *netns.NS, want walks) []tracer.Event {
	rec.t.Helper()
	return awaitWalksAmong(rec, inNetns(ns.Inode()), want)
}

// awaitWalksAmong is awaitWalks for those events that keep lets through.
func awaitWalksAmong(rec *recorder, keep func(*tracer.Event) bool, want walks) []tracer.Event {
	rec.t.Helper()
	events := rec.await(want.len(), patience, keep)
	byTime(events)
	got := walks{}
	for cookie, walk := range walksOf(events) {
		got[cookie] = transitions(walk)
	}
	qt.Assert(rec.t, qt.DeepEquals(got, want))
	return events
}
