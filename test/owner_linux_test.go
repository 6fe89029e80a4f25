package test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

// TestOwnerGone reads events when the process that they are about has ended,
// while its connections are in TIME_WAIT. Each packet of one side is dealt with
// in an interrupt of the other, which owns nothing of it.
func TestOwnerGone(t *testing.T) {
	for _, family := range families {
		t.Run("connect/"+family.String(), func(t *testing.T) {
			l := newStrangerLoop(t, family)
			guards := watchGuards(t)
			tr := newTracer(t, tracer.Filter{Netns: []uint32{l.ns.Inode()}})
			owner := l.serveStranger(newCgroup(t, cgroupRoot(t)))
			awaitEmitted(t, guards, tr, everyone.events())
			events := drain(t, tr)
			qt.Check(t, qt.DeepEquals(countWalks(events), everyone.wanted()))
			checkOwnersBySide(t, events, tracer.RoleClient, owner)
		})
		t.Run("listen/"+family.String(), func(t *testing.T) {
			l := newStrangerLoop(t, family)
			guards := watchGuards(t)
			tr := newTracer(t, tracer.Filter{Netns: []uint32{l.ns.Inode()}})
			owner := l.callStranger(newCgroup(t, cgroupRoot(t)))
			awaitEmitted(t, guards, tr, everyone.events())
			events := drain(t, tr)
			qt.Check(t, qt.DeepEquals(countWalks(events), walkCounts{
				fmt.Sprint(tracer.RoleClient, clientThatClosesLast):                                           connections,
				fmt.Sprint(tracer.RoleServer, serverThatClosesFirst):                                          connections,
				fmt.Sprint(tracer.RoleServer, path(tracer.StateClose, tracer.StateListen, tracer.StateClose)): 1,
			}))
			checkOwnersBySide(t, events, tracer.RoleServer, owner)
		})
	}
}

// newStrangerLoop is a loop for two processes. While both close at a time, one
// may acknowledge a FIN twice, and the second finds no socket any more: the
// reset in answer would end TIME_WAIT early (RFC 1337).
func newStrangerLoop(t *testing.T, family tracer.Family) *loop {
	l := newLoop(t, family)
	l.ns.Sysctl("net.ipv4.tcp_rfc1337", "1")
	return l
}

// serveStranger is the server of a stranger's connections, and returns as what
// the stranger should be known.
func (l *loop) serveStranger(cgroup string) tracer.Owner {
	l.t.Helper()
	s := newStranger(l, "connect", cgroup)
	owner := ownerOf(s, tracer.OriginConnect)
	l.serve(s)
	return owner
}

func (l *loop) serve(s *stranger) {
	l.t.Helper()
	l.listen()
	s.proceed()
	for range connections {
		server := end{fd: l.accept()}
		l.awaitEOF(server)
		l.close(server)
	}
	l.close(l.listener)
	s.wait()
}

// callStranger is the client of a stranger's connections.
func (l *loop) callStranger(cgroup string) tracer.Owner {
	l.t.Helper()
	s := newStranger(l, "listen", cgroup)
	owner := ownerOf(s, tracer.OriginListen)
	s.proceed()
	s.expect("listening")
	for range connections {
		l.ns.Do(func() {
			fd := l.socket()
			l.must("connect", unix.Connect(fd, sockaddrOf(netip.AddrPortFrom(l.addr, listenPort))))
			l.awaitEOF(end{fd: fd})
			l.close(end{fd: fd})
		})
	}
	s.wait()
	return owner
}

// ownerOf is what should be known of the stranger, which has yet to call.
func ownerOf(s *stranger, origin tracer.Origin) tracer.Owner {
	s.t.Helper()
	owner := tracer.Owner{
		Origin: origin, PID: uint32(s.cmd.Process.Pid), UID: strangerUID, CgroupID: cgroupID(s.t, s.cgroup()),
	}
	owner.SetComm(strangerComm)
	return owner
}

// checkOwnersBySide expects the stranger on the side of that role, and this
// process on the other.
func checkOwnersBySide(t *testing.T, events []tracer.Event, role tracer.Role, stranger tracer.Owner) {
	t.Helper()
	theirs := func(ev *tracer.Event) bool { return ev.Role == role }
	for _, ev := range only(events, theirs) {
		ev.Owner.Origin = opening(ev.Owner.Origin)
		qt.Check(t, qt.Equals(ev.Owner, stranger), qt.Commentf("%v of %s", ev.Transition, ev.Owner.Comm()))
	}
	checkOwners(t, only(events, func(ev *tracer.Event) bool { return !theirs(ev) }))
}

// TestOwnerFilters has filters choose between a stranger, who is the client,
// and this process, which is the server.
func TestOwnerFilters(t *testing.T) {
	parent := newCgroup(t, cgroupRoot(t))
	child, other := newCgroup(t, parent), newCgroup(t, parent)
	l := newStrangerLoop(t, tracer.FamilyIPv4)
	s := newStranger(l, "connect", child)
	pid, self := uint32(s.cmd.Process.Pid), uint32(os.Getpid())
	in := func(dir string) []uint64 { return []uint64{cgroupID(t, dir)} }
	cases := []filterCase{
		{"pid of the client", tracer.Filter{PIDs: []uint32{pid}}, clients},
		{"pid of the server", tracer.Filter{PIDs: []uint32{self}}, servers | listeners},
		{"both pids", tracer.Filter{PIDs: []uint32{self, pid}}, everyone},
		{"uid of the client", tracer.Filter{UIDs: []uint32{strangerUID}}, clients},
		{"uid of the server", tracer.Filter{UIDs: []uint32{0}}, servers | listeners},
		{"pid of one and uid of the other", tracer.Filter{PIDs: []uint32{pid}, UIDs: []uint32{0}}, nobody},
		{"comm of the client", tracer.Filter{Comms: []string{strangerComm}}, clients},
		{"beginning of the comm", tracer.Filter{Comms: []string{strangerComm[:8]}}, nobody},
		{"comm of its thread", tracer.Filter{Comms: []string{threadComm}}, nobody},
		{"cgroup of the client", tracer.Filter{Cgroups: in(child)}, clients},
		{"cgroup above", tracer.Filter{Cgroups: in(parent)}, clients},
		{"cgroup beside", tracer.Filter{Cgroups: in(other)}, nobody},
		{"root cgroup", tracer.Filter{Cgroups: in(cgroupRoot(t))}, everyone},
		{"another namespace", tracer.Filter{Netns: []uint32{l.ns.Inode() - 1}, PIDs: []uint32{pid, self}}, nobody},
	}
	testFilters(t, l, cases, func() { l.serve(s) })
}

// TestOwnerBeyondFilter has a listener on every address, which a filter by
// address does not let through. What it accepts passes, and has its owner.
func TestOwnerBeyondFilter(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	qt.Assert(t, qt.IsNil(err))
	l := newLoop(t, tracer.FamilyIPv4)
	rec := record(t, &tracer.Options{Filter: tracer.Filter{
		Netns: []uint32{l.ns.Inode()},
		Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		Comms: []string{strings.TrimSpace(string(comm))},
	}})
	l.ns.Do(func() {
		fd := l.socket()
		l.must("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: listenPort}))
		l.must("listen", unix.Listen(fd, 1024))
		l.listener = end{fd: fd, cookie: l.cookie(fd), local: netip.AddrPortFrom(l.addr, listenPort)}
	})
	want := walks{}
	for _, c := range l.connectAll() {
		l.closeInTurn(c.client, c.server)
		want.add(c.client, clientThatClosesFirst)
		want.add(c.server, serverThatClosesLast)
	}
	l.ns.Do(func() { l.close(l.listener) })
	awaitWalks(rec, l.ns, want)
	checkOwners(t, rec.stop())
}
