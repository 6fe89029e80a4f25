package test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

// The last of the ports from which the kernel chooses, and from which clients
// connect. There are more than enough, and an even number: the kernel may leave
// one out of an odd number.
const lastClientPort = clientPort + 2*connections - 1

func clientPorts() []tracer.PortRange {
	return []tracer.PortRange{{First: clientPort, Last: lastClientPort}}
}
func onPort(port uint16) []tracer.PortRange {
	return []tracer.PortRange{{First: port, Last: port}}
}

// newEphemeralLoop is a loop whose kernel chooses the clients' ports.
func newEphemeralLoop(t *testing.T, family tracer.Family) *loop {
	l := newLoop(t, family)
	l.bound = false
	l.ns.Sysctl("net.ipv4.ip_local_port_range", fmt.Sprint(clientPort, lastClientPort))
	return l
}

// makeAndClose makes the connections and closes them, the clients first.
func (l *loop) makeAndClose() {
	l.t.Helper()
	l.listen()
	l.closeAll(l.connectAll(), walks{})
	l.close(l.listener)
}

func TestPortFilters(t *testing.T) {
	cases := []filterCase{
		{"port of the listener", tracer.Filter{Ports: onPort(listenPort)}, everyone},
		{"ports of the clients", tracer.Filter{Ports: clientPorts()}, clients | servers},
		{"local port of the listener", tracer.Filter{LocalPorts: onPort(listenPort)}, servers | listeners},
		{"local ports of the clients", tracer.Filter{LocalPorts: clientPorts()}, clients},
		{"remote port of the clients", tracer.Filter{RemotePorts: onPort(listenPort)}, clients},
		{"remote ports of the servers", tracer.Filter{RemotePorts: clientPorts()}, servers},
		{"both ports", tracer.Filter{LocalPorts: clientPorts(), RemotePorts: onPort(listenPort)}, clients},
		{"one port twice", tracer.Filter{LocalPorts: onPort(listenPort), RemotePorts: onPort(listenPort)}, nobody},
		{"another port", tracer.Filter{Ports: onPort(80)}, nobody},
	}
	for _, family := range families {
		t.Run("bound/"+family.String(), func(t *testing.T) {
			l := newLoop(t, family)
			testFilters(t, l, cases, l.makeAndClose)
		})
		t.Run("chosen/"+family.String(), func(t *testing.T) {
			l := newEphemeralLoop(t, family)
			testFilters(t, l, cases, l.makeAndClose)
		})
	}
}

func TestAddrFilters(t *testing.T) {
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	sockets := []struct {
		name  string
		addr  netip.Addr
		cases []filterCase
	}{
		{"ipv4", netip.MustParseAddr("127.0.0.1"), []filterCase{
			{"network", tracer.Filter{Addrs: prefix("127.0.0.0/8")}, everyone},
			{"all of IPv6", tracer.Filter{Addrs: prefix("::/0"), Family: tracer.FamilyIPv6}, nobody},
			{"another", tracer.Filter{Addrs: prefix("127.0.0.2/32")}, nobody},
		}},
		{"ipv6", netip.IPv6Loopback(), []filterCase{
			{"address", tracer.Filter{Addrs: prefix("::1/128")}, everyone},
			{"all of IPv4", tracer.Filter{Addrs: prefix("0.0.0.0/0")}, nobody},
			{"another", tracer.Filter{Addrs: prefix("fd00::/8")}, nobody},
		}},
		{"mapped", netip.MustParseAddr("::ffff:127.0.0.1"), []filterCase{
			{"network", tracer.Filter{Addrs: prefix("127.0.0.0/8")}, everyone},
			{"address", tracer.Filter{Addrs: prefix("127.0.0.1/32")}, everyone},
			{"all of IPv4", tracer.Filter{Addrs: prefix("0.0.0.0/0")}, everyone},
			{"network and family", tracer.Filter{Addrs: prefix("127.0.0.0/8"), Family: tracer.FamilyIPv6}, everyone},
			{"network and the other family", tracer.Filter{Addrs: prefix("127.0.0.0/8"), Family: tracer.FamilyIPv4}, nobody},
			{"another network", tracer.Filter{Addrs: prefix("10.0.0.0/8")}, nobody},
			{"IPv6 address", tracer.Filter{Addrs: prefix("::1/128")}, nobody},
		}},
	}
	for _, s := range sockets {
		t.Run(s.name, func(t *testing.T) {
			l := newLoop(t, tracer.FamilyIPv4)
			l.addr = s.addr
			testFilters(t, l, s.cases, l.makeAndClose)
		})
	}
}

// TestMappedAddresses expects the truth of both: the socket is IPv6's, and
// what it carries is IPv4.
func TestMappedAddresses(t *testing.T) {
	l := newLoop(t, tracer.FamilyIPv6)
	l.addr = netip.MustParseAddr("::ffff:127.0.0.1")
	guards := watchGuards(t)
	tr := newTracer(t, tracer.Filter{Netns: []uint32{l.ns.Inode()}, RemotePorts: onPort(listenPort)})
	l.makeAndClose()
	awaitEmitted(t, guards, tr, clients.events())
	for _, ev := range drain(t, tr) {
		qt.Check(t, qt.Equals(ev.Family, tracer.FamilyIPv6))
		qt.Check(t, qt.Equals(ev.Remote, netip.MustParseAddrPort("127.0.0.1:4321")), qt.Commentf("%v", ev.Transition))
		if ev.Old != tracer.StateClose { // the address is chosen with the port
			qt.Check(t, qt.Equals(ev.Local.Addr(), netip.MustParseAddr("127.0.0.1")), qt.Commentf("%v", ev.Transition))
		}
	}
}

// TestHeldConnect has a filter on the local port, which a client does not have
// when it enters SYN_SENT: that is told along with what comes next.
func TestHeldConnect(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l := newEphemeralLoop(t, family)
			rec := record(t, &tracer.Options{Filter: tracer.Filter{LocalPorts: clientPorts(), Netns: []uint32{l.ns.Inode()}}})
			l.listen()
			all := l.connectAll()
			connected := time.Now()
			l.closeAll(all, walks{})
			want := walks{}
			for _, p := range all {
				want.add(p.client, clientThatClosesFirst)
			}
			awaitWalks(rec, l.ns, want)
			told := walksOf(rec.stop())
			for _, p := range all {
				checkHeld(t, told[p.client.cookie], p.client, connected)
			}
		})
	}
}

// checkHeld expects a walk in the order told that begins with SYN_SENT, with
// the port and with the time it happened, which was before the given one.
func checkHeld(t *testing.T, walk []tracer.Event, e end, before time.Time) {
	t.Helper()
	qt.Assert(t, qt.Equals(walk[0].Transition, tracer.Transition{Old: tracer.StateClose, New: tracer.StateSynSent}))
	qt.Check(t, qt.IsTrue(walk[0].Time.Before(before.Add(clockSlack))))
	qt.Check(t, qt.IsTrue(walk[0].Time.Before(walk[1].Time)))
	for _, ev := range walk {
		qt.Check(t, qt.Equals(ev.Local, e.local), qt.Commentf("%v", ev.Transition))
		qt.Check(t, qt.Equals(ev.Remote, e.remote), qt.Commentf("%v", ev.Transition))
	}
	checkDwell(t, walk)
	checkOwners(t, walk)
}

// TestHeldUnanswered has connections that come to nothing.
func TestHeldUnanswered(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l := newEphemeralLoop(t, family)
			rec := record(t, &tracer.Options{Filter: tracer.Filter{LocalPorts: clientPorts(), Netns: []uint32{l.ns.Inode()}}})
			l.listen()
			l.dropAll()
			var all []end
			for range connections {
				all = append(all, l.dial())
			}
			connected := time.Now()
			time.Sleep(10 * clockSlack) // to tell the time of one from the time of the other
			qt.Check(t, qt.HasLen(rec.seen(), 0))
			want := walks{}
			for _, e := range all {
				l.close(e)
				want.add(e, path(tracer.StateClose, tracer.StateSynSent, tracer.StateClose))
			}
			awaitWalks(rec, l.ns, want)
			told := walksOf(rec.stop())
			for _, e := range all {
				checkHeld(t, told[e.cookie], e, connected)
				qt.Check(t, qt.IsTrue(told[e.cookie][1].Dwell > 9*clockSlack))
			}
		})
	}
}

// dropAll has the listener take no notice of any segment.
func (l *loop) dropAll() {
	l.t.Helper()
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	l.must("SO_ATTACH_FILTER", unix.SetsockoptSockFprog(l.listener.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(drop)), Filter: &drop[0]}))
}

// dial begins to connect to the listener.
func (l *loop) dial() (e end) {
	l.t.Helper()
	l.ns.Do(func() {
		fd := l.socket()
		l.must("O_NONBLOCK", unix.SetNonblock(fd, true))
		if err := unix.Connect(fd, sockaddrOf(l.listener.local)); !errors.Is(err, unix.EINPROGRESS) {
			l.t.Fatalf("connect: %v", err)
		}
		e = end{fd, l.cookie(fd), l.name(fd), l.listener.local}
	})
	return e
}

// TestHeldListen has listeners that are bound to no port: the kernel chooses
// one after they have entered LISTEN.
func TestHeldListen(t *testing.T) {
	l := newEphemeralLoop(t, tracer.FamilyIPv4)
	rec := record(t, &tracer.Options{Filter: tracer.Filter{LocalPorts: clientPorts(), Netns: []uint32{l.ns.Inode()}}})
	want := walks{}
	var ports []uint16
	for range connections {
		l.ns.Do(func() {
			fd := l.socket()
			l.must("listen", unix.Listen(fd, 1))
			e := end{fd: fd, cookie: l.cookie(fd), local: l.name(fd)}
			ports = append(ports, e.local.Port())
			l.close(e)
			want.add(e, path(tracer.StateClose, tracer.StateListen, tracer.StateClose))
		})
	}
	for _, ev := range awaitWalks(rec, l.ns, want) {
		qt.Check(t, qt.IsTrue(slices.Contains(ports, ev.Local.Port())), qt.Commentf("%v", ev.Local))
	}
	checkOwners(t, rec.stop())
}
