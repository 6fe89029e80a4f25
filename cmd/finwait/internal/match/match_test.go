package match

import (
	"net/netip"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/cmd/finwait/internal/replay"
	"github.com/finwait/finwait/tracer"
)

func ports(first, last uint16) []tracer.PortRange {
	return []tracer.PortRange{{First: first, Last: last}}
}

func prefixes(words ...string) (nets []netip.Prefix) {
	for _, w := range words {
		nets = append(nets, netip.MustParsePrefix(w))
	}
	return nets
}

func newEvent(local, remote string) tracer.Event {
	ev := tracer.Event{
		Transition: tracer.Transition{Old: tracer.StateFinWait2, New: tracer.StateTimeWait},
		Cookie:     9, Netns: 7, Family: tracer.FamilyIPv6,
		Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote),
		Owner: tracer.Owner{Origin: tracer.OriginConnect, PID: 42, UID: 1000, CgroupID: 77},
	}
	if ev.Local.Addr().Is4() {
		ev.Family = tracer.FamilyIPv4
	}
	ev.Owner.SetComm("curl")
	return ev
}

// The cases are those of TestFilter in package tracer, which has the kernel run
// bpf/filter.h on them, and some more.
func TestFilter(t *testing.T) {
	const (
		a, b   = "192.0.2.1:40000", "198.51.100.7:443"
		unborn = "192.0.2.1:0"
		v6a    = "[2001:db8::1]:1"
		v6b    = "[2001:db8::2]:2"
		mapped = "[::ffff:192.0.2.1]:40000"
	)
	unowned := func(ev *tracer.Event) { ev.Owner = tracer.Owner{PID: 42, UID: 1000, CgroupID: 77} }
	type filter = tracer.Filter
	for _, tt := range []struct {
		name          string
		filter        tracer.Filter
		local, remote string
		edit          func(*tracer.Event)
		socket        Verdict
		transition    bool
	}{
		{"none", filter{}, a, b, nil, Pass, true},
		{"none, unowned", filter{}, a, b, unowned, Pass, true},
		{"family", filter{Family: tracer.FamilyIPv4}, a, b, nil, Pass, true},
		{"other family", filter{Family: tracer.FamilyIPv6}, a, b, nil, Drop, true},
		{"family of an IPv6 socket with IPv4", filter{Family: tracer.FamilyIPv6}, a, b, func(ev *tracer.Event) { ev.Family = tracer.FamilyIPv6 }, Pass, true},
		{"lport", filter{LocalPorts: ports(40000, 40000)}, a, b, nil, Pass, true},
		{"lport of the peer", filter{LocalPorts: ports(443, 443)}, a, b, nil, Drop, true},
		{"lport not chosen", filter{LocalPorts: ports(40000, 40000)}, unborn, b, nil, Later, true},
		{"rport", filter{RemotePorts: ports(440, 450)}, a, b, nil, Pass, true},
		{"rport edge", filter{RemotePorts: ports(444, 450)}, a, b, nil, Drop, true},
		{"rport decides", filter{RemotePorts: ports(80, 80), LocalPorts: ports(1, 65535)}, unborn, b, nil, Drop, true},
		{"rport of a listener", filter{RemotePorts: ports(1, 65535)}, a, "0.0.0.0:0", nil, Later, true},
		{"rport open, lport wrong", filter{RemotePorts: ports(1, 65535), LocalPorts: ports(1, 1)}, a, "0.0.0.0:0", nil, Drop, true},
		{"rport open, lport right", filter{RemotePorts: ports(1, 65535), LocalPorts: ports(40000, 40000)}, a, "0.0.0.0:0", nil, Later, true},
		{"port either end", filter{Ports: ports(443, 443)}, a, b, nil, Pass, true},
		{"port 65535", filter{Ports: ports(65535, 65535)}, "192.0.2.1:65535", b, nil, Pass, true},
		{"port neither end", filter{Ports: ports(80, 80)}, a, b, nil, Drop, true},
		{"port may come", filter{Ports: ports(80, 80)}, unborn, b, nil, Later, true},
		{"port is there already", filter{Ports: ports(443, 443)}, unborn, b, nil, Pass, true},
		{"port is there, lport is not", filter{Ports: ports(443, 443), LocalPorts: ports(1, 9)}, unborn, b, nil, Later, true},
		{"net local", filter{Addrs: prefixes("192.0.2.0/24")}, a, b, nil, Pass, true},
		{"net with bits of a host", filter{Addrs: prefixes("192.0.2.99/24")}, a, b, nil, Pass, true},
		{"net remote", filter{Addrs: prefixes("10.0.0.0/8", "198.51.100.7/32")}, a, b, nil, Pass, true},
		{"net neither", filter{Addrs: prefixes("198.51.100.6/32")}, a, b, nil, Drop, true},
		{"all IPv4", filter{Addrs: prefixes("0.0.0.0/0")}, a, b, nil, Pass, true},
		{"all IPv6 is all", filter{Addrs: prefixes("::/0")}, a, b, nil, Pass, true},
		{"IPv4 as IPv6", filter{Addrs: prefixes("::ffff:192.0.2.0/120")}, a, b, nil, Pass, true},
		{"IPv4 written as IPv6", filter{Addrs: prefixes("192.0.2.0/24")}, mapped, v6b, nil, Pass, true},
		{"IPv6 is not IPv4", filter{Addrs: prefixes("0.0.0.0/0")}, v6a, v6b, nil, Drop, true},
		{"IPv6 net", filter{Addrs: prefixes("2001:db8::/33")}, v6a, "[2001:db8:8000::2]:2", nil, Pass, true},
		{"IPv6 other net", filter{Addrs: prefixes("2001:db8:8000::/33")}, v6a, v6b, nil, Drop, true},
		{"no address", filter{Addrs: prefixes("::/0")}, a, b, func(ev *tracer.Event) { ev.Local, ev.Remote = netip.AddrPort{}, netip.AddrPort{} }, Drop, true},
		{"netns", filter{Netns: []uint32{1, 7}}, a, b, nil, Pass, true},
		{"other netns", filter{Netns: []uint32{1, 2}}, a, b, nil, Drop, true},
		{"pid", filter{PIDs: []uint32{1, 42}}, a, b, nil, Pass, true},
		{"other pid", filter{PIDs: []uint32{1}}, a, b, nil, Pass, false},
		{"pid unknown", filter{PIDs: []uint32{42}}, a, b, unowned, Pass, false},
		{"uid", filter{UIDs: []uint32{1000}}, a, b, nil, Pass, true},
		{"other uid", filter{UIDs: []uint32{0}}, a, b, nil, Pass, false},
		{"uid unknown", filter{UIDs: []uint32{1000}}, a, b, unowned, Pass, false},
		{"comm", filter{Comms: []string{"wget", "curl"}}, a, b, nil, Pass, true},
		{"comm is whole", filter{Comms: []string{"cur"}}, a, b, nil, Pass, false},
		{"comm unknown", filter{Comms: []string{"curl"}}, a, b, unowned, Pass, false},
		{"cgroup", filter{Cgroups: []uint64{7, 77}}, a, b, nil, Pass, true},
		{"other cgroup", filter{Cgroups: []uint64{7}}, a, b, nil, Pass, false},
		{"cgroup unknown", filter{Cgroups: []uint64{77}}, a, b, unowned, Pass, false},
		{"pid and other uid", filter{PIDs: []uint32{42}, UIDs: []uint32{1}}, a, b, nil, Pass, false},
		{"state left", filter{States: []tracer.State{tracer.StateFinWait2}}, a, b, nil, Pass, true},
		{"state entered", filter{States: []tracer.State{tracer.StateTimeWait}}, a, b, nil, Pass, true},
		{"other state", filter{States: []tracer.State{tracer.StateClose}}, a, b, nil, Pass, false},
		{"transition", filter{Transitions: []tracer.Transition{{Old: tracer.StateFinWait2, New: tracer.StateTimeWait}}}, a, b, nil, Pass, true},
		{"other transition", filter{Transitions: []tracer.Transition{{Old: tracer.StateFinWait2, New: tracer.StateClose}}}, a, b, nil, Pass, false},
		{"transition and other state", filter{
			States:      []tracer.State{tracer.StateClose},
			Transitions: []tracer.Transition{{Old: tracer.StateFinWait2, New: tracer.StateTimeWait}},
		}, a, b, nil, Pass, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ev := newEvent(tt.local, tt.remote)
			if tt.edit != nil {
				tt.edit(&ev)
			}
			m := New(&tt.filter)
			qt.Check(t, qt.Equals(m.Socket(&ev), tt.socket))
			qt.Check(t, qt.Equals(m.Transition(&ev), tt.transition))
			if tt.filter.States == nil && tt.filter.Transitions == nil {
				c := tracer.Conn{Netns: ev.Netns, Family: ev.Family, Local: ev.Local, Remote: ev.Remote, Owner: ev.Owner}
				qt.Check(t, qt.Equals(m.Conn(&c), tt.socket == Pass && tt.transition))
			}
		})
	}
}

// step is a transition of a socket that connects.
func step(cookie uint64, old, now tracer.State, lport uint16) *replay.Record {
	ev := newEvent("192.0.2.1:0", "198.51.100.7:443")
	ev.Cookie, ev.Transition = cookie, tracer.Transition{Old: old, New: now}
	ev.Local = netip.AddrPortFrom(ev.Local.Addr(), lport)
	return &replay.Record{Event: &ev, Logged: output.Logged{ContainerID: "c"}}
}

func take(e *Events, r *replay.Record) (told []string) {
	held, pass := e.Take(r)
	if held != nil {
		told = append(told, held.Event.String()+" from "+held.Event.Local.String()+" in "+held.ContainerID)
	}
	if pass {
		told = append(told, r.Event.String())
	}
	return told
}

// A transition without the port on which it hangs is told with the next.
func TestHeld(t *testing.T) {
	e := NewEvents(New(&tracer.Filter{LocalPorts: ports(40000, 40001)}))
	syn := func(cookie uint64) *replay.Record { return step(cookie, tracer.StateClose, tracer.StateSynSent, 0) }
	next := func(cookie uint64, lport uint16) *replay.Record {
		return step(cookie, tracer.StateSynSent, tracer.StateEstablished, lport)
	}
	qt.Check(t, qt.HasLen(take(e, syn(1)), 0))
	qt.Check(t, qt.HasLen(take(e, syn(2)), 0))
	qt.Check(t, qt.HasLen(take(e, next(2, 50000)), 0)) // of another port
	qt.Check(t, qt.DeepEquals(take(e, next(1, 40000)), []string{"CLOSE→SYN_SENT from 192.0.2.1:40000 in c", "SYN_SENT→ESTABLISHED"}))
	qt.Check(t, qt.DeepEquals(take(e, next(1, 40000)), []string{"SYN_SENT→ESTABLISHED"})) // once

	// It failed before it had one.
	qt.Check(t, qt.HasLen(take(e, syn(3)), 0))
	qt.Check(t, qt.HasLen(take(e, step(3, tracer.StateSynSent, tracer.StateClose, 0)), 0))
	qt.Check(t, qt.HasLen(e.held, 0))

	// What is not the next, and what nobody knows the socket of.
	qt.Check(t, qt.HasLen(take(e, syn(4)), 0))
	qt.Check(t, qt.DeepEquals(take(e, step(4, tracer.StateEstablished, tracer.StateFinWait1, 40000)), []string{"ESTABLISHED→FIN_WAIT1"}))
	qt.Check(t, qt.HasLen(take(e, syn(0)), 0))
	qt.Check(t, qt.HasLen(e.held, 0))
	qt.Check(t, qt.Equals(e.Forgotten(), 0))
}

// What is held passes by itself, or not.
func TestHeldFiltered(t *testing.T) {
	e := NewEvents(New(&tracer.Filter{LocalPorts: ports(40000, 40001), States: []tracer.State{tracer.StateEstablished}}))
	take(e, step(1, tracer.StateClose, tracer.StateSynSent, 0))
	qt.Check(t, qt.DeepEquals(take(e, step(1, tracer.StateSynSent, tracer.StateEstablished, 40000)), []string{"SYN_SENT→ESTABLISHED"}))
}

// A log that never says the next does not make finwait grow.
func TestHeldBounded(t *testing.T) {
	e := NewEvents(New(&tracer.Filter{LocalPorts: ports(40000, 40000)}))
	r := step(1, tracer.StateClose, tracer.StateSynSent, 0)
	const n = 2 * maxHeld
	for i := range uint64(n) {
		r.Event.Cookie = i + 1
		e.Take(r)
	}
	qt.Check(t, qt.IsTrue(len(e.held) <= maxHeld && len(e.queue) <= maxHeld))
	qt.Check(t, qt.Equals(uint64(len(e.held))+e.Forgotten(), n))
	qt.Check(t, qt.HasLen(take(e, step(n, tracer.StateSynSent, tracer.StateEstablished, 40000)), 2)) // the youngest is there

	// Sockets that do go on need no room.
	e = NewEvents(e.filter)
	for i := range uint64(n) {
		e.Take(step(i+1, tracer.StateClose, tracer.StateSynSent, 0))
		if held, pass := e.Take(step(i+1, tracer.StateSynSent, tracer.StateEstablished, 40000)); held == nil || !pass {
			t.Fatalf("socket %d: %v, %v", i, held, pass)
		}
	}
	qt.Check(t, qt.Equals(e.Forgotten(), 0))
}

func TestEnds(t *testing.T) {
	c := tracer.Conn{Reason: tracer.ReasonFIN, TimeWaitReason: tracer.ReasonReused}
	c.SetWalk(
		tracer.Visit{State: tracer.StateSynSent, Dwell: time.Millisecond, DwellKnown: true},
		tracer.Visit{State: tracer.StateEstablished, Dwell: time.Hour}, // not known
	)
	type slow = map[tracer.State]time.Duration
	for _, tt := range []struct {
		opts tracer.ConnOptions
		want bool
	}{
		{tracer.ConnOptions{}, true},
		{tracer.ConnOptions{Slow: slow{tracer.StateSynSent: time.Millisecond}}, true},
		{tracer.ConnOptions{Slow: slow{tracer.StateSynSent: time.Millisecond + 1}}, false},
		{tracer.ConnOptions{Slow: slow{tracer.StateEstablished: time.Second, tracer.StateTimeWait: 1}}, false},
		{tracer.ConnOptions{Reasons: []tracer.Reason{tracer.ReasonFIN}}, true},
		{tracer.ConnOptions{Reasons: []tracer.Reason{tracer.ReasonReused}}, true},
		{tracer.ConnOptions{Reasons: []tracer.Reason{tracer.ReasonExpired, tracer.ReasonUnknown}}, false},
		{tracer.ConnOptions{Reasons: []tracer.Reason{tracer.ReasonExpired}, Slow: slow{tracer.StateSynSent: time.Millisecond}}, true},
	} {
		qt.Check(t, qt.Equals(NewEnds(&tt.opts).Wants(&c), tt.want), qt.Commentf("%+v", tt.opts))
	}
	c.TimeWaitReason = tracer.ReasonUnknown
	unknown := NewEnds(&tracer.ConnOptions{Reasons: []tracer.Reason{tracer.ReasonUnknown}})
	qt.Check(t, qt.IsFalse(unknown.Wants(&c)))
	c.Reason = tracer.ReasonUnknown
	qt.Check(t, qt.IsTrue(unknown.Wants(&c)))
}
