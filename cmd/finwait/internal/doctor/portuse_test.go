package doctor

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

// away are the ends of connections that leave the host.
var (
	awayFrom = netip.MustParseAddr("192.0.2.1")
	awayTo   = netip.MustParseAddrPort("192.0.2.2:443")
)

// portSysctls are the kernel's defaults, but for what changes says: name, value, and so on.
func portSysctls(changes ...string) sysctl.Values {
	v := sysctl.Values{
		"net.ipv4.ip_local_port_range":     "32768 60999",
		"net.ipv4.ip_local_reserved_ports": "",
		"net.ipv4.tcp_tw_reuse":            "2",
		"net.ipv4.tcp_tw_reuse_delay":      "1000",
		"net.ipv4.tcp_timestamps":          "1",
		"net.ipv4.tcp_max_tw_buckets":      "262144",
	}
	for i := 0; i < len(changes); i += 2 {
		v["net.ipv4."+changes[i]] = changes[i+1]
		if changes[i+1] == "absent" {
			delete(v, "net.ipv4."+changes[i])
		}
	}
	return v
}

func listenersOn(ports ...int) (all []observe.Listener) {
	for _, port := range ports {
		all = append(all, observe.Listener{Local: netip.AddrPortFrom(awayFrom, uint16(port))})
	}
	return all
}

func TestPortPool(t *testing.T) {
	for _, tt := range []struct {
		ports, reserved string
		listening       []int
		size            int // 0 if it is not known
	}{
		{ports: "32768 60999", size: 28232},
		{ports: "32768 60998", size: 28230}, // the kernel leaves the last of an odd number out
		{ports: "1024 65535", size: 64512},
		{ports: "5000 5000", size: 1},
		{ports: "18000 18999", reserved: "18000-18099,17990-18009,80,18999,19000", size: 899},
		{ports: "18000 18999", listening: []int{18000, 18000, 18999, 19000, 80}, size: 998},
		{ports: "18000 18999", reserved: "18500", listening: []int{18500, 18501}, size: 998},
		{ports: "18000 18001", reserved: "18000-18001"},
		{ports: "60999 32768"},
		{ports: "32768"},
		{ports: ""},
		{ports: "absent"},
	} {
		n := &observe.Netns{
			Sysctls:   portSysctls("ip_local_port_range", tt.ports, "ip_local_reserved_ports", tt.reserved),
			Listeners: listenersOn(tt.listening...),
		}
		pool, ok := poolOf(n)
		qt.Check(t, qt.Equals(ok, tt.size > 0), qt.Commentf("%+v", tt))
		if ok {
			qt.Check(t, qt.Equals(pool.size(), tt.size), qt.Commentf("%+v", tt))
		}
	}
}

func TestReuse(t *testing.T) {
	const minute = 61 * time.Second
	for _, tt := range []struct {
		changes  []string
		loopback bool
		lasts    time.Duration // 0 if it is not known
	}{
		{lasts: minute},
		{loopback: true, lasts: time.Second},
		{changes: []string{"tcp_tw_reuse", "0"}, loopback: true, lasts: minute},
		{changes: []string{"tcp_tw_reuse", "1"}, lasts: time.Second},
		{changes: []string{"tcp_tw_reuse", "1", "tcp_tw_reuse_delay", "absent"}, lasts: time.Second},
		{changes: []string{"tcp_tw_reuse", "1", "tcp_tw_reuse_delay", "23"}, lasts: 23 * time.Millisecond},
		{changes: []string{"tcp_tw_reuse", "1", "tcp_tw_reuse_delay", "0"}, lasts: time.Millisecond},
		{changes: []string{"tcp_tw_reuse", "1", "tcp_timestamps", "0"}, lasts: minute},
		{changes: []string{"tcp_tw_reuse", "absent"}},
		{changes: []string{"tcp_timestamps", "absent"}},
	} {
		r, ok := reuseOf(&observe.Netns{Sysctls: portSysctls(tt.changes...)}, tt.loopback)
		qt.Check(t, qt.Equals(ok, tt.lasts > 0), qt.Commentf("%+v", tt))
		qt.Check(t, qt.Equals(r.lasts, tt.lasts), qt.Commentf("%+v", tt))
		qt.Check(t, qt.Equals(r.allowed, tt.lasts > 0 && tt.lasts < minute), qt.Commentf("%+v", tt))
	}
}

// simulated is a client of which all is known: the connections that it has opened and will
// open, at a pace of its own.
type simulated struct {
	ports     int
	perSecond float64
	hold      float64 // seconds, on average
	resets    float64 // the share that ends without TIME_WAIT
	leaks     float64 // the share that stays open
	reuse     bool
	age       float64 // seconds since it started, when the watch ends
	watched   float64 // seconds

	conns []simulatedConn
}

// simulatedConn has the times of a connection, in seconds since the start. It is closed and
// free at once if it is reset.
type simulatedConn struct{ opened, closed, free float64 }

// lasts is how long it goes on after the watch, in seconds.
func (s *simulated) lasts() float64 {
	if s.reuse {
		return 30 // it is settled soon
	}
	return 400
}

func (s *simulated) run(rnd *rand.Rand) {
	for at := rnd.Float64() / s.perSecond; at < s.age+s.lasts(); at += (0.5 + rnd.Float64()) / s.perSecond {
		c := simulatedConn{opened: at, closed: at + rnd.ExpFloat64()*s.hold}
		switch chance := rnd.Float64(); {
		case chance < s.leaks:
			c.closed, c.free = math.Inf(1), math.Inf(1)
		case chance < s.leaks+s.resets:
			c.free = c.closed
		default:
			c.free = c.closed + 60 + 2*rnd.Float64()
		}
		s.conns = append(s.conns, c)
	}
}

// blocked is until when connect cannot have the port of c.
func (s *simulated) blocked(c simulatedConn) float64 {
	if s.reuse {
		return min(c.free, c.closed+1)
	}
	return c.free
}

// runsOut returns after how many seconds from the end of the watch no port is left.
func (s *simulated) runsOut() (float64, bool) {
	type change struct {
		at float64
		by int
	}
	var changes []change
	for _, c := range s.conns {
		changes = append(changes, change{c.opened, 1}, change{s.blocked(c), -1})
	}
	slices.SortFunc(changes, func(a, b change) int {
		if a.at < b.at {
			return -1
		}
		return 1
	})
	taken := 0
	for _, c := range changes {
		taken += c.by
		if taken >= s.ports {
			return c.at - s.age, c.at < s.age+s.lasts()
		}
	}
	return 0, false
}

// host is what is seen of it.
func (s *simulated) host() *observe.Host {
	began := time.Unix(1e9, 0)
	o := observe.Outgoing{Local: awayFrom, Remote: awayTo}
	then, now := s.age-s.watched, s.age
	for _, c := range s.conns {
		if c.opened > now {
			break
		}
		wasOpen := c.opened <= then && c.closed > then
		switch {
		case wasOpen:
			o.Before++
			if c.free <= now {
				o.Gone++
			}
		case c.opened > then && c.free > now:
			o.New++
		}
		switch {
		case c.closed > now:
			o.Open++
		case c.free > now:
			o.TimeWait = append(o.TimeWait, toDuration(max(0, c.closed+60-now)))
		}
	}
	slices.Sort(o.TimeWait)
	changes := []string{"ip_local_port_range", fmt.Sprintf("10000 %d", 10000+s.ports-1)}
	if s.reuse {
		changes = append(changes, "tcp_tw_reuse", "1")
	}
	return &observe.Host{
		Began: began, Ended: began.Add(toDuration(s.watched)),
		Namespaces: []observe.Netns{{Sysctls: portSysctls(changes...), Outgoing: []observe.Outgoing{o}}},
	}
}

func (s *simulated) String() string {
	return fmt.Sprintf("%d ports, %.0f/s for %.1fs on average, resets %.2f, leaks %.2f, reuse %v, age %.0fs, watched %.0fs",
		s.ports, s.perSecond, s.hold, s.resets, s.leaks, s.reuse, s.age, s.watched)
}

// What is forecast comes about, over many clients of which the future is known.
func TestTimeLeft(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 23))
	among := func(low, high float64) float64 { return low + (high-low)*rnd.Float64() }
	var never, straight, later, sooner int
	for range 250 {
		s := simulated{
			ports: 2 * int(among(500, 1500)), hold: among(0.01, 5), watched: among(3, 10), age: among(2, 100), reuse: rnd.IntN(4) == 0,
		}
		s.resets, s.leaks = among(0, 0.3)*float64(rnd.IntN(2)), among(0.5, 1)*float64(rnd.IntN(2))
		if s.leaks > 0 && !s.reuse {
			s.ports *= 4 // or it is over too soon to tell
		}
		lasts := 61.0
		if s.reuse {
			lasts, s.age, s.hold = 1, s.age/5, s.hold+1
		}
		s.age += s.watched + 3*s.hold // as many are open as are going to be
		// How full it gets, if nothing leaks: not quite, or in any case.
		level := among(0.2, 2)
		if level > 0.93 && level < 1.1 {
			continue
		}
		s.perSecond = level * float64(s.ports) / (s.hold + lasts*(1-s.resets))
		if s.leaks > 0 && s.leaks*s.perSecond*s.watched < 200 {
			continue // too few to tell how many a second
		}
		s.run(rnd)
		truth, ends := s.runsOut()
		if ends && truth < 2 || !ends && s.leaks > 0 {
			continue // it is over, or takes so long that it is of no interest
		}
		h := s.host()
		n := &h.Namespaces[0]
		pool, ok := poolOf(n)
		qt.Assert(t, qt.IsTrue(ok))
		u, ok := portUseOf(h, n, &pool, &n.Outgoing[0])
		qt.Assert(t, qt.IsTrue(ok))
		left, forecast := u.timeLeft()
		comment := qt.Commentf("%v\ntruth %.1fs %v, forecast %v %v, taken %d", &s, truth, ends, left, forecast, u.taken())
		if qt.Check(t, qt.Equals(forecast, ends), comment) && ends {
			qt.Check(t, qt.IsTrue(math.Abs(left.Seconds()-truth) <= 0.2*truth), comment)
		}
		line := float64(u.left()) / (float64(u.New) / s.watched) // what a straight line says
		switch {
		case !ends:
			never++
			if line < 600 {
				straight++
			}
		case truth > 61:
			later++
		default:
			sooner++
		}
	}
	t.Logf("never %d (a straight line says otherwise of %d), within a minute %d, later %d", never, straight, sooner, later)
	qt.Check(t, qt.IsTrue(min(never, straight, sooner, later) >= 10))
}
