package test

import (
	endian "encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/tracer"
)

// TestOlderOwner has sockets that were there before the tracer: they are whose
// process has them open, and so is what a listener among them accepts.
func TestOlderOwner(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l := newLoop(t, family)
			l.listen()
			old := l.connectAll()
			rec := record(t, nil)
			self := snapshotOwner(t, os.Getpid())
			want := walks{}
			for _, p := range old {
				l.closeInTurn(p.client, p.server)
				want.add(p.client, clientThatClosesFirst[2:])
				want.add(p.server, serverThatClosesLast[3:])
			}
			checkOlder(t, awaitWalks(rec, l.ns, want), self, tracer.RoleUnknown)

			anew := []pair{l.connect(clientPort + connections)}
			l.closeAll(anew, want)
			l.close(l.listener)
			want.add(l.listener, path(tracer.StateListen, tracer.StateClose))
			awaitWalks(rec, l.ns, want)
			sockets := walksOf(rec.stop())
			checkOwners(t, sockets[anew[0].client.cookie])
			checkOlder(t, sockets[anew[0].server.cookie], self, tracer.RoleServer)
			checkOlder(t, sockets[l.listener.cookie], self, tracer.RoleServer)
		})
	}
}

// checkOlder expects that owner and role, and a dwell of all but the first
// state that was seen.
func checkOlder(t *testing.T, events []tracer.Event, owner tracer.Owner, role tracer.Role) {
	t.Helper()
	for _, walk := range walksOf(events) {
		checkDwell(t, walk)
	}
	for _, ev := range events {
		if ev.Owner.Origin == tracer.OriginAccept && ev.Old != tracer.StateClose {
			ev.Owner.Origin = owner.Origin // it has accepted it since
		}
		qt.Check(t, qt.Equals(ev.Owner, owner), qt.Commentf("%v of %s", ev.Transition, ev.Owner.Comm()))
		qt.Check(t, qt.Equals(ev.Role, role), qt.Commentf("%v", ev.Transition))
	}
}

// TestOlderOrphan has sockets that were there before the tracer, and that
// nobody has open.
func TestOlderOrphan(t *testing.T) {
	l, r := newRemoteLoop(t, tracer.FamilyIPv4)
	l.listen()
	want := walks{}
	eachPort(func(port uint16) {
		r.syn(port)
		r.ack(port)
		fd := l.acceptIn()
		e := end{fd: fd, cookie: l.cookie(fd)}
		l.close(e)
		want.add(e, path(tracer.StateFinWait1, tracer.StateClose))
	})
	rec := record(t, nil)
	eachPort(func(port uint16) { r.segment(port, flagRST|flagACK, remoteISN+1, r.awaitSynAck(port)+2) })
	checkOlder(t, awaitWalks(rec, l.ns, want), tracer.Owner{}, tracer.RoleUnknown)
	rec.stop()
}

// several is a way in which more than one process comes by a socket, or another
// than the one that opened it.
type several struct {
	name string
	// make makes a connection, and returns its client and who owns it.
	make func(l *loop) (pair, tracer.Owner)
}

var severals = []several{
	{"inherited", func(l *loop) (pair, tracer.Owner) {
		p := l.connect(0)
		newHolder(l, holderKeep, p.client.fd)
		return p, snapshotOwner(l.t, os.Getpid())
	}},
	{"inherited and closed", func(l *loop) (pair, tracer.Owner) {
		p := l.connect(0)
		h := newHolder(l, holderKeep, p.client.fd)
		l.close(p.client)
		return p, h.owner()
	}},
	{"passed", func(l *loop) (pair, tracer.Owner) {
		p := l.connect(0)
		newHolder(l, holderTake).give(p.client.fd)
		return p, snapshotOwner(l.t, os.Getpid())
	}},
	{"passed and closed", func(l *loop) (pair, tracer.Owner) {
		p := l.connect(0)
		h := newHolder(l, holderTake)
		h.give(p.client.fd)
		l.close(p.client)
		return p, h.owner()
	}},
	{"passed to two and closed", func(l *loop) (pair, tracer.Owner) {
		p := l.connect(0)
		older := newHolder(l, holderTake)
		newHolder(l, holderTake).give(p.client.fd)
		older.give(p.client.fd)
		l.close(p.client)
		return p, older.owner()
	}},
	{"passed to an older process", func(l *loop) (pair, tracer.Owner) {
		h, p := opened(l)
		return p, h.owner()
	}},
	{"passed to an older process and closed", func(l *loop) (pair, tracer.Owner) {
		h, p := opened(l)
		h.end()
		return p, snapshotOwner(l.t, os.Getpid())
	}},
}

// opened has a holder open a connection and pass its client to this process.
func opened(l *loop) (h *holder, p pair) {
	h = newHolder(l, holderOpen)
	p.client.fd = h.take()
	p.client.cookie = l.cookie(p.client.fd)
	p.server.fd = l.acceptIn()
	return h, p
}

func TestOlderOwnerOfSeveral(t *testing.T) {
	netns.RequireRoot(t)
	type made struct {
		pair
		owner tracer.Owner
		l     *loop
	}
	var all []made
	for _, s := range severals {
		l := newLoop(t, tracer.FamilyIPv4)
		l.listen()
		p, owner := s.make(l)
		all = append(all, made{p, owner, l})
	}
	rec := record(t, nil)
	for i, m := range all {
		t.Run(severals[i].name, func(t *testing.T) {
			m.l.close(m.server)
			closes := func(ev *tracer.Event) bool { return ev.Cookie == m.client.cookie }
			events := rec.await(1, patience, closes)
			qt.Check(t, qt.DeepEquals(transitions(events), path(tracer.StateEstablished, tracer.StateCloseWait)))
			checkOlder(t, events, m.owner, tracer.RoleUnknown)
		})
	}
	rec.stop()
}

// TestOlderFilters has filters by owner choose between sockets that were there
// before: the clients are a holder's, the servers this process's.
func TestOlderFilters(t *testing.T) {
	l := newLoop(t, tracer.FamilyIPv4)
	l.listen()
	all := l.connectAll()
	var fds []int
	for _, p := range all {
		fds = append(fds, p.client.fd)
	}
	h := newHolder(l, holderKeep, fds...)
	for _, p := range all {
		l.close(p.client)
	}
	const closesFirst = 2 // ESTABLISHED→FIN_WAIT1→FIN_WAIT2, then there is a mini-socket
	cases := []struct {
		name   string
		filter tracer.Filter
		want   int
	}{
		{"pid of the holder", tracer.Filter{PIDs: []uint32{uint32(h.cmd.Process.Pid)}}, connections},
		{"comm of the holder", tracer.Filter{Comms: []string{holderComm}}, connections},
		{"comm of this process", tracer.Filter{Comms: []string{string(commOf(t))}}, closesFirst * connections},
		{"cgroup", tracer.Filter{Cgroups: []uint64{cgroupID(t, cgroupRoot(t))}}, (closesFirst + 1) * connections},
		{"user", tracer.Filter{UIDs: []uint32{strangerUID}}, 0},
		{"namespace", tracer.Filter{}, (closesFirst + 1) * connections},
	}
	guards := watchGuards(t)
	var tracers []*tracer.Tracer
	for _, c := range cases {
		c.filter.Netns = []uint32{l.ns.Inode()}
		c.filter.States = []tracer.State{tracer.StateCloseWait, tracer.StateFinWait1}
		tr := newTracer(t, c.filter)
		_, err := tr.Gauges(t.Context()) // returns when what was there is claimed
		qt.Assert(t, qt.IsNil(err))
		tracers = append(tracers, tr)
	}
	for _, p := range all {
		l.close(p.server)
	}
	awaitEmitted(t, guards, tracers[len(tracers)-1], cases[len(cases)-1].want)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) { qt.Check(t, qt.HasLen(drain(t, tracers[i]), c.want)) })
	}
}

func commOf(t *testing.T) []byte {
	owner := snapshotOwner(t, os.Getpid())
	return owner.Comm()
}

// TestOlderHalfOpen has half-open connections that were there before the
// tracer: the kernel knows to the microsecond since when.
func TestOlderHalfOpen(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l, r := newRemoteLoop(t, family)
			l.listen()
			from := time.Now()
			eachPort(r.syn)
			eachPort(func(port uint16) { r.awaitSynAck(port) })
			to := time.Now()
			time.Sleep(1500 * time.Millisecond) // the answer is repeated after a second
			rec := record(t, nil)
			eachPort(func(port uint16) {
				if port%2 == 0 {
					r.rst(port)
				} else {
					r.ack(port)
				}
			})
			ended := func(ev *tracer.Event) bool {
				return ev.Netns == l.ns.Inode() && ev.Old == tracer.StateNewSynRecv
			}
			for _, ev := range rec.await(connections, patience, ended) {
				checkSince(t, &ev, from, to)
			}
			rec.stop()
		})
	}
}

// TestOlderSynSent has connects that were there before the tracer, to a host
// that does not answer.
func TestOlderSynSent(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l, r := newRemoteLoop(t, family)
			from := time.Now()
			var clients []end
			for range connections {
				clients = append(clients, r.startConnect())
			}
			to := time.Now()
			waiting := l.deferConnect()
			time.Sleep(1500 * time.Millisecond) // the SYN is repeated after a second
			rec := record(t, nil)
			want := walks{}
			for _, c := range append(clients, waiting) {
				l.close(c)
				want.add(c, path(tracer.StateSynSent, tracer.StateClose))
			}
			for _, ev := range awaitWalks(rec, l.ns, want) {
				if ev.Cookie == waiting.cookie {
					qt.Check(t, qt.IsFalse(ev.DwellKnown), qt.Commentf("it has sent no SYN"))
					continue
				}
				checkSince(t, &ev, from, to)
			}
			rec.stop()
		})
	}
}

// startConnect begins to connect to the remote, which does not answer.
func (r *remote) startConnect() (e end) {
	r.l.t.Helper()
	r.l.ns.Do(func() {
		e.fd = r.l.socket()
		r.l.must("non-blocking", unix.SetNonblock(e.fd, true))
		if err := unix.Connect(e.fd, r.sockaddr()); err != unix.EINPROGRESS {
			r.l.t.Fatalf("connect: %v", err)
		}
		e.cookie = r.l.cookie(e.fd)
	})
	return e
}

const silentPort = 9 // of the remote, where nothing answers

func (r *remote) sockaddr() unix.Sockaddr {
	return sockaddrOf(netip.AddrPortFrom(r.addr, silentPort))
}

// deferConnect makes a socket that is in SYN_SENT and sends its SYN with the
// first data. It has been connected before, and has a stamp from then.
func (l *loop) deferConnect() (e end) {
	l.t.Helper()
	l.listen()
	p := l.connect(0)
	l.ns.Do(func() {
		l.awaitState(p.server, tracer.StateEstablished)
		l.close(p.server)
		_, err := unix.Read(p.client.fd, make([]byte, 1))
		l.must("read", err)
		disconnect(p.client.fd)
	})
	l.ns.Do(func() {
		l.must("TCP_FASTOPEN_CONNECT", unix.SetsockoptInt(p.client.fd, unix.SOL_TCP, unix.TCP_FASTOPEN_CONNECT, 1))
		l.must("TCP_FASTOPEN_NO_COOKIE", unix.SetsockoptInt(p.client.fd, unix.SOL_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1))
		l.must("connect", unix.Connect(p.client.fd, sockaddrOf(l.listener.local)))
		l.awaitState(p.client, tracer.StateSynSent)
	})
	l.close(l.listener)
	return p.client
}

// TestOlderSynSentMicroseconds connects by a route that has the kernel's stamps
// in microseconds (since Linux 6.7), of which 32 bits say too little.
func TestOlderSynSentMicroseconds(t *testing.T) {
	l, r := newRemoteLoop(t, tracer.FamilyIPv4)
	if err := r.stampMicroseconds(); err != nil {
		t.Skipf("tcp_usec_ts: %v", err)
	}
	client := r.startConnect()
	time.Sleep(2500 * time.Millisecond) // the SYN is repeated after a second
	rec := record(t, nil)
	s := stuckOf(t, rec.tracer, &tracer.StuckOptions{Over: map[tracer.State]time.Duration{tracer.StateSynSent: time.Second}})
	sockets := keep(s.Sockets, func(s tracer.StuckSocket) bool { return s.Cookie == client.cookie })
	qt.Assert(t, qt.HasLen(sockets, 1))
	qt.Check(t, qt.IsTrue(sockets[0].AtLeast))
	l.close(client)
	want := walks{}
	want.add(client, path(tracer.StateSynSent, tracer.StateClose))
	for _, ev := range awaitWalks(rec, l.ns, want) {
		qt.Check(t, qt.IsFalse(ev.DwellKnown), qt.Commentf("%v", ev.Dwell))
	}
	rec.stop()
}

// stampMicroseconds makes a route to the remote with the feature tcp_usec_ts,
// for which ip has no word before 6.7.
func (r *remote) stampMicroseconds() (err error) {
	r.l.ns.Do(func() {
		link, linkErr := net.InterfaceByName(remoteDevice)
		if linkErr != nil {
			err = linkErr
			return
		}
		const rtaxFeatures, tcpUsecTS = 12, 1 << 4 // of linux/rtnetlink.h
		attr := func(kind uint16, data []byte) []byte {
			b := endian.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
			return append(endian.NativeEndian.AppendUint16(b, kind), data...)
		}
		number := func(n uint32) []byte { return endian.NativeEndian.AppendUint32(nil, n) }
		body := []byte{unix.AF_INET, 32, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0}
		body = append(body, attr(unix.RTA_DST, r.addr.AsSlice())...)
		body = append(body, attr(unix.RTA_OIF, number(uint32(link.Index)))...)
		body = append(body, attr(unix.RTA_METRICS, attr(rtaxFeatures, number(tcpUsecTS)))...)
		err = netlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, body)
	})
	return err
}

// netlinkRequest sends a request of rtnetlink and returns what the kernel says.
func netlinkRequest(kind, flags uint16, body []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := endian.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = endian.NativeEndian.AppendUint16(b, kind)
	b = endian.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	b = append(append(b, make([]byte, 8)...), body...)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	if _, _, err := unix.Recvfrom(fd, answer, 0); err != nil {
		return err
	}
	if code := int32(endian.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}
