package doctor

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

var portRules = []*Rule{portExhaustion, clientChurn}

const (
	// fewLeft is the share of ports that are taken from which few are left.
	fewLeft = 0.8
	// forecastFrom is the share from which it is worth saying when none will be left: a
	// pool that opens its connections as it starts is no trend.
	forecastFrom = 0.1
	// soon and verySoon are how long it takes until none are left.
	soon, verySoon = 10 * time.Minute, time.Minute
	// starvedFrom is the share from which a connect that failed within the kernel has
	// failed for want of a port. With more to choose from it asked for one in particular.
	starvedFrom = 0.5
	// boundFrom is the same of ports that have any socket, wherever it goes.
	boundFrom = 0.95
)

var portExhaustion = &Rule{
	ID:    "port-exhaustion",
	Title: "Local ports to one destination run out",
	Worst: Critical,
	When: `of the ports that connect may choose from, towards one address and port, none is left, or connects failed for want of
		one, or there will be none within a minute (critical); or more than four fifths are taken, or there will be none
		within ten minutes (warning). What will be is said only once a tenth is taken. It is info if TIME_WAIT alone makes
		them few, and nobody has opened a connection there while the host was watched. Connects that failed
		in a log do not count: it may be of another time.`,
	Why: `A connection is told from others by its four numbers. If source address, destination address and destination port
		are the same, the source port must differ, and connect chooses it from net.ipv4.ip_local_port_range: 28,232 ports by
		default. An open connection has one, and so has one in TIME_WAIT, for a minute, on the side that closed first. When
		none is left, connect fails with EADDRNOTAVAIL ("Cannot assign requested address"), and before that it takes long,
		since the kernel looks at one port after the other. A port that somebody listens on, or that a socket is bound to
		without IP_BIND_ADDRESS_NO_PORT, is lost for all destinations. The time left takes into account when the ports in
		TIME_WAIT get free, and which can be taken over at once (net.ipv4.tcp_tw_reuse). The peer's timestamps, which that
		needs, cannot be seen from here.`,
	Application: []string{
		"Keep connections open and use them again: HTTP keep-alive, a connection pool that is as large as what is in use at once.",
		"If they must be short, let the server close first: then it is the server that has TIME_WAIT, which costs it no port.",
		"Connect to more addresses or ports of the service: each has all local ports for itself.",
		`Connect from more source addresses: bind to each in turn, with port 0 and IP_BIND_ADDRESS_NO_PORT (since Linux 4.2), or
		bind takes a port that no other destination can have.`,
	},
	Sysctls: []Setting{
		{"net.ipv4.ip_local_port_range = 10240 65535", "55,296 ports instead of 28,232; reserve those on which services listen with net.ipv4.ip_local_reserved_ports"},
		reuseSetting,
	},
	Useless: []string{
		"net.ipv4.tcp_fin_timeout: it is for FIN_WAIT2. TIME_WAIT lasts 60 seconds, which is fixed when the kernel is compiled.",
		`net.ipv4.tcp_max_tw_buckets lowered: it does free ports, by ending connections without TIME_WAIT, so that late segments
		reach new ones.`,
		"net.ipv4.tcp_tw_recycle: it does not exist since Linux 4.12, and before that it broke clients behind a NAT.",
		"SO_REUSEADDR: it lets bind have a port that is in TIME_WAIT; connect, which chooses one, does not look at it.",
	},
	Check: "ss -Htan dst ADDRESS:PORT | wc -l stays well below the number of ports; connect no longer fails with EADDRNOTAVAIL.",
	References: []string{
		"Documentation/networking/ip-sysctl.rst: ip_local_port_range, ip_local_reserved_ports, tcp_tw_reuse, tcp_tw_reuse_delay",
		"ip(7): IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE", "RFC 6056 section 3.2", "RFC 6191", "RFC 9293 section 3.6.1",
	},
	find: eachNetns(findPortExhaustion),
}

var reuseSetting = Setting{
	"net.ipv4.tcp_tw_reuse = 1",
	"connect may take over a port that has been in TIME_WAIT for a second (since Linux 4.19 it may by itself, over loopback). " +
		"It is for the side that connects, and does something only if both have timestamps: these keep late segments of the old " +
		"connection out, but for a RST. If the peer still waits for its last ACK, the new connection takes the time of a " +
		"retransmission longer",
}

// scarcity is a portUse with what makes it worth a word.
type scarcity struct {
	portUse
	severity Severity
	failed   failures
	// failuresKnown tells that there are no others than those of failed.
	failuresKnown bool
	// runsOut is how long it takes until there are none, if it comes to that.
	runsOut  time.Duration
	forecast bool
	// over tells that nobody opens any now, and that there are enough once those in
	// TIME_WAIT are free.
	over bool
}

func findPortExhaustion(h *observe.Host, n *observe.Netns) []Finding {
	pool, ok := poolOf(n)
	if !ok {
		return nil
	}
	failed := connectsFailed(h, n)
	var findings []Finding
	for _, s := range scarcitiesOf(h, n, &pool, failed) {
		findings = append(findings, s.finding(h, n))
	}
	return append(fold(findings, "destinations"), findBound(n, &pool, failed)...)
}

// scarcitiesOf returns where ports are scarce, the worst first. It takes what has failed
// there out of failed, which is nil if that was not seen.
func scarcitiesOf(h *observe.Host, n *observe.Netns, pool *portPool, failed map[netip.AddrPort]failures) (all []scarcity) {
	seen := failed != nil
	for i := range n.Outgoing {
		u, ok := portUseOf(h, n, pool, &n.Outgoing[i])
		if !ok {
			continue
		}
		s := scarcity{portUse: u, failuresKnown: seen}
		if f := failed[u.Remote]; u.share() >= starvedFrom {
			s.failed = f
			delete(failed, u.Remote) // of several source addresses it is that with the most ports
		}
		if s.judge(h) {
			all = append(all, s)
		}
	}
	slices.SortStableFunc(all, func(a, b scarcity) int {
		return cmp.Or(cmp.Compare(b.severity, a.severity), cmp.Compare(a.left(), b.left()))
	})
	return all
}

// judge says whether ports are scarce, and how bad it is.
func (s *scarcity) judge(h *observe.Host) bool {
	if h.Watched() > 0 && s.share() >= forecastFrom {
		s.runsOut, s.forecast = s.timeLeft()
	}
	switch s.over = s.isOver(h); {
	case s.over:
		s.severity = Info
		return s.share() > fewLeft
	case s.left() == 0, s.failed.count > 0, s.forecast && s.runsOut < verySoon:
		s.severity = Critical
	case s.share() > fewLeft, s.forecast && s.runsOut < soon:
		s.severity = Warning
	default:
		return false
	}
	return true
}

// isOver reports whether nobody needs the ports that TIME_WAIT takes. Where none is left,
// connects may fail without a trace in the sockets: they must have been watched.
func (s *scarcity) isOver(h *observe.Host) bool {
	quiet := h.Watched() > 0 && s.New == 0 && s.failed.count == 0 && (s.left() > 0 || s.failuresKnown)
	return quiet && len(s.waiting) > 0 && float64(s.Open+s.FinWait2) <= fewLeft*float64(s.pool.size())
}

func (s *scarcity) finding(h *observe.Host, n *observe.Netns) Finding {
	f := Finding{
		Severity: s.severity,
		Subject:  s.subject(),
		Summary:  whose(s.subject(), s.Owner) + s.summary(),
		Facts: []Fact{
			{"ports_in_range", s.pool.inRange()}, {"ports_reserved", s.pool.numReserved}, {"ports_listening", s.pool.numListening},
			{"ports_taken", s.taken()}, {"ports_open", s.Open}, {"ports_time_wait", len(s.waiting)}, {"ports_fin_wait2", s.FinWait2},
			{"ports_left", s.left()},
		},
		Sysctls: portSettings(n, s),
	}
	if s.reuse.allowed {
		f.Facts = append(f.Facts, Fact{"ports_reusable", len(s.TimeWait) - len(s.waiting)})
	}
	if h.Watched() > 0 {
		f.Facts = append(f.Facts, Fact{"new_per_second", h.PerSecond(uint64(s.New))})
	}
	if s.over {
		f.Facts = append(f.Facts, Fact{"free_again_in_seconds", s.freeAgain().Seconds()})
	} else if s.forecast {
		f.Facts = append(f.Facts, Fact{"time_left_seconds", s.runsOut.Seconds()})
	}
	if s.failuresKnown {
		f.Facts = append(f.Facts, Fact{"connects_failed", s.failed.count})
	}
	f.Facts = append(f.Facts, processFacts(s.Owner)...)
	return f
}

// freeAgain returns when the last of the ports in TIME_WAIT is free.
func (s *scarcity) freeAgain() time.Duration { return s.waiting[len(s.waiting)-1] }

func (s *scarcity) subject() string { return s.Local.String() + " to " + s.Remote.String() }

func (s *scarcity) summary() string {
	text := fmt.Sprintf("%s of %s ports taken", prose.Number(uint64(s.taken())), prose.Number(uint64(s.pool.size())))
	if waiting := len(s.waiting); waiting > 0 {
		text += fmt.Sprintf(", %s of them in TIME_WAIT", prose.Number(uint64(waiting)))
	}
	switch {
	case s.over:
		which := "these"
		if len(s.waiting) == s.taken() {
			which = "all"
		}
		text += fmt.Sprintf("; %s are free again within %.0f s; nobody opens any now", which, math.Ceil(s.freeAgain().Seconds()))
	case s.failed.count > 0:
		text += "; " + connectsHave(s.failed.count) + " failed for want of a port"
	case s.left() == 0:
		text += "; none is left"
	case s.forecast && s.runsOut < soon:
		text += fmt.Sprintf("; at the present rate none is left in %s", s.runsOut.Round(time.Second))
	}
	return text
}

// connectsHave begins a sentence about connects that failed.
func connectsHave(failed uint64) string { return prose.Count(failed, "connect has", "connects have") }

// whose begins a summary about connections with where they go and, if it is known, the
// process that has the most of them.
func whose(subject string, p observe.Process) string {
	if p.PID == 0 {
		return subject + ": "
	}
	return subject + ", " + processName(p) + ": "
}

// findBound returns where connects failed although connections there have few ports: if
// all ports have a socket, those are bound, and so taken for every destination.
func findBound(n *observe.Netns, pool *portPool, failed map[netip.AddrPort]failures) []Finding {
	used := 0
	for _, port := range n.UsedPorts {
		if pool.has(int(port)) {
			used++
		}
	}
	if float64(used) < boundFrom*float64(pool.size()) {
		return nil
	}
	var total uint64
	var worst netip.AddrPort
	for to, f := range failed {
		total += f.count
		if was := failed[worst]; f.count > was.count || f.count == was.count && to.Compare(worst) < 0 {
			worst = to
		}
	}
	if total == 0 {
		return nil
	}
	subject := "any to " + worst.String()
	f := Finding{
		Severity: Critical,
		Subject:  subject,
		Summary: whose(subject, failed[worst].owner) + fmt.Sprintf("%s failed for want of a port, while %s of %s ports have a socket: "+
			"it seems that they are bound before connect, without IP_BIND_ADDRESS_NO_PORT",
			connectsHave(total), prose.Number(uint64(used)), prose.Number(uint64(pool.size()))),
		Facts: []Fact{
			{"ports_in_range", pool.inRange()}, {"ports_reserved", pool.numReserved}, {"ports_listening", pool.numListening},
			{"ports_used", used}, {"connects_failed", total}, {"destinations", len(failed)},
		},
		Sysctls: rangeSettings(pool),
	}
	f.Facts = append(f.Facts, processFacts(failed[worst].owner)...)
	return []Finding{f}
}

// portSettings returns the settings that help a namespace that is short of ports.
func portSettings(n *observe.Netns, s *scarcity) []Setting {
	settings := rangeSettings(s.pool)
	if s.reuse.allowed || len(s.waiting) < s.taken()/2 {
		return settings
	}
	if on, _ := n.Sysctls.Int("net.ipv4.tcp_timestamps"); on == 0 {
		settings = append(settings, Setting{"net.ipv4.tcp_timestamps = 1", "the kernel's default; tcp_tw_reuse needs it, on both sides"})
	}
	return append(settings, reuseSetting)
}

// widest is the range that is proposed: registered ports below it are in use all over,
// and the kernel likes one end to be even and the other odd.
var widest = [2]int{10240, math.MaxUint16}

// rangeSettings returns the settings for a wider range, none if it is wide already. It
// keeps clear of the ports on which somebody listens outside of the present range.
func rangeSettings(pool *portPool) []Setting {
	first, last := min(widest[0], pool.first), widest[1]
	if wider := last - first + 1; wider <= pool.inRange()*5/4 {
		return []Setting{}
	}
	var settings []Setting
	if ports := servicesOutside(pool, first); len(ports) > 0 {
		settings = append(settings, Setting{
			"net.ipv4.ip_local_reserved_ports = " + portList(slices.Concat(pool.reserved, ports)),
			"first: services listen on these, and connect must not choose them. Add those of services that do not run now",
		})
	}
	return append(settings, Setting{
		fmt.Sprintf("net.ipv4.ip_local_port_range = %d %d", first, last),
		fmt.Sprintf("%s ports instead of %s, for new connections; see that no firewall or node port (Kubernetes: 30000-32767) counts on the old ones",
			prose.Number(uint64(last-first+1)), prose.Number(uint64(pool.inRange()))),
	})
}

// servicesOutside returns the ports from the first on that somebody listens on outside of
// the range, and that are not reserved yet.
func servicesOutside(pool *portPool, first int) (ports []sysctl.PortRange) {
	for _, port := range pool.listeners {
		if outside := port < pool.first || port > pool.last; outside && port >= first && !pool.isReserved(port) {
			ports = append(ports, sysctl.PortRange{First: uint16(port), Last: uint16(port)})
		}
	}
	return ports
}

// portList returns ports as the kernel reads them, in order.
func portList(ranges []sysctl.PortRange) string {
	slices.SortFunc(ranges, func(a, b sysctl.PortRange) int { return cmp.Compare(a.First, b.First) })
	var list []string
	for i := 0; i < len(ranges); i++ {
		r := ranges[i]
		for ; i+1 < len(ranges) && int(ranges[i+1].First) <= int(r.Last)+1; i++ {
			r.Last = max(r.Last, ranges[i+1].Last)
		}
		if r.First == r.Last {
			list = append(list, fmt.Sprint(r.First))
		} else {
			list = append(list, fmt.Sprintf("%d-%d", r.First, r.Last))
		}
	}
	return strings.Join(list, ",")
}
