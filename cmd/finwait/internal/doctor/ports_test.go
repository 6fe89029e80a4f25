package doctor

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// netnsInode is that of the only namespace of portHost.
const netnsInode = 4026531840

// portHost was watched for ten seconds, and has those connections in its only namespace.
func portHost(sysctls sysctl.Values, outgoing ...observe.Outgoing) *observe.Host {
	began := time.Unix(1e9, 0)
	return &observe.Host{
		Began: began, Ended: began.Add(10 * time.Second),
		Namespaces: []observe.Netns{{Inode: netnsInode, Sysctls: sysctls, Outgoing: outgoing}},
	}
}

// waiting returns n ports in TIME_WAIT that have been there for that long.
func waiting(n int, age time.Duration) []time.Duration {
	return slices.Repeat([]time.Duration{time.Minute - age}, n)
}

// spread returns n ports that went to TIME_WAIT evenly over so long a time until now.
func spread(n int, over time.Duration) (left []time.Duration) {
	for i := range n {
		left = append(left, time.Minute-over+over*time.Duration(i)/time.Duration(n))
	}
	return left
}

// portsFrom returns n ports.
func portsFrom(first, n int) (ports []uint16) {
	for i := range n {
		ports = append(ports, uint16(first+i))
	}
	return ports
}

// withFlow adds a flow of clients to what was seen of the host.
func withFlow(h *observe.Host, f observe.Flow) *observe.Host {
	if h.Traffic == nil {
		h.Traffic = &observe.Traffic{Source: observe.SourceKernel, Since: h.Began, Until: h.Ended}
	}
	f.Netns, f.Role = netnsInode, tracer.RoleClient
	h.Traffic.Flows = append(h.Traffic.Flows, f)
	return h
}

// failing is a flow of connects that failed.
func failing(to netip.AddrPort, n uint64, old tracer.State, reason tracer.Reason) observe.Flow {
	return observe.Flow{
		FlowKey: observe.FlowKey{Service: to, Owner: observe.Process{PID: 23, Comm: "app"}},
		Endings: map[tracer.Ending]uint64{{Old: old, Reason: reason}: n},
	}
}

// factOf returns a number of a finding, and false if it is not there.
func factOf(f *Finding, name string) (any, bool) {
	i := slices.IndexFunc(f.Facts, func(fact Fact) bool { return fact.Name == name })
	if i < 0 {
		return nil, false
	}
	return f.Facts[i].Value, true
}

func TestPortExhaustion(t *testing.T) {
	const none = Severity(255)
	thousand := []string{"ip_local_port_range", "18000 18999"}
	loopback := netip.MustParseAddrPort("127.0.0.1:80")
	for _, tt := range []struct {
		name    string
		changes []string
		o       observe.Outgoing
		change  func(*observe.Host)
		want    Severity
		summary string
	}{
		{name: "nothing", want: none},
		{name: "four fifths", o: observe.Outgoing{Open: 800, Before: 800}, want: none},
		{name: "more than four fifths", o: observe.Outgoing{Open: 801, Before: 801}, want: Warning, summary: "801 of 1,000 ports taken"},
		{name: "all but one", o: observe.Outgoing{Open: 999, Before: 999}, want: Warning, summary: "999 of 1,000 ports taken"},
		{name: "all", o: observe.Outgoing{Open: 1000, Before: 1000}, want: Critical, summary: "1,000 of 1,000 ports taken; none is left"},
		{
			name: "all, looked at once", o: observe.Outgoing{Open: 1000},
			change: func(h *observe.Host) { h.Ended = h.Began }, want: Critical, summary: "1,000 of 1,000 ports taken; none is left",
		},
		{name: "TIME_WAIT, which is old", o: observe.Outgoing{TimeWait: waiting(801, 30*time.Second)}, want: Info, summary: "801 of 1,000 ports taken, 801 of them in TIME_WAIT; all are free again within 31 s; nobody opens any now"},
		{name: "TIME_WAIT and one that is new", o: observe.Outgoing{TimeWait: waiting(800, 30*time.Second), Open: 1, New: 1}, want: Warning, summary: "801 of 1,000 ports taken, 800 of them in TIME_WAIT"},
		{name: "TIME_WAIT and some that are open", o: observe.Outgoing{TimeWait: waiting(801, 30*time.Second), Open: 23, Before: 23}, want: Info, summary: "824 of 1,000 ports taken, 801 of them in TIME_WAIT; these are free again within 31 s; nobody opens any now"},
		{name: "TIME_WAIT and too many that are open", o: observe.Outgoing{TimeWait: waiting(23, 30*time.Second), Open: 801, Before: 801}, want: Warning, summary: "824 of 1,000 ports taken, 23 of them in TIME_WAIT"},
		{name: "TIME_WAIT of the few", o: observe.Outgoing{TimeWait: waiting(800, 5*time.Second)}, want: none},
		{
			name: "TIME_WAIT alone, and no connect has failed", o: observe.Outgoing{TimeWait: waiting(1000, 30*time.Second)},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 0, tracer.StateSynSent, tracer.ReasonLocalError))
			},
			want: Info, summary: "1,000 of 1,000 ports taken, 1,000 of them in TIME_WAIT; all are free again within 31 s; nobody opens any now",
		},
		{
			name: "TIME_WAIT alone, and connects fail", o: observe.Outgoing{TimeWait: waiting(1000, 30*time.Second)},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 1, tracer.StateSynSent, tracer.ReasonLocalError))
			},
			want: Critical, summary: "1,000 of 1,000 ports taken, 1,000 of them in TIME_WAIT; 1 connect has failed for want of a port",
		},
		{name: "TIME_WAIT alone, and connects may fail", o: observe.Outgoing{TimeWait: waiting(1000, 30*time.Second)}, want: Critical, summary: "1,000 of 1,000 ports taken, 1,000 of them in TIME_WAIT; none is left"},
		{
			name: "TIME_WAIT, looked at once", o: observe.Outgoing{TimeWait: waiting(801, 30*time.Second)},
			change: func(h *observe.Host) { h.Ended = h.Began }, want: Warning, summary: "801 of 1,000 ports taken, 801 of them in TIME_WAIT",
		},
		{name: "TIME_WAIT that is used again", changes: []string{"tcp_tw_reuse", "1"}, o: observe.Outgoing{TimeWait: waiting(1000, 30*time.Second)}, want: none},
		{name: "TIME_WAIT that is too young for that", changes: []string{"tcp_tw_reuse", "1"}, o: observe.Outgoing{TimeWait: spread(802, time.Second), New: 802}, want: Warning, summary: "801 of 1,000 ports taken, 801 of them in TIME_WAIT"},
		{name: "TIME_WAIT on loopback", o: observe.Outgoing{Remote: loopback, TimeWait: waiting(1000, 30*time.Second)}, want: none},
		{
			name: "TIME_WAIT on loopback, not used again", changes: []string{"tcp_tw_reuse", "0"},
			o: observe.Outgoing{Remote: loopback, TimeWait: waiting(1000, 30*time.Second)}, want: Critical,
			summary: "1,000 of 1,000 ports taken, 1,000 of them in TIME_WAIT; none is left",
		},
		{name: "orphans", changes: []string{"tcp_tw_reuse", "1"}, o: observe.Outgoing{FinWait2: 1000, Before: 1000}, want: Critical, summary: "1,000 of 1,000 ports taken; none is left"},
		{name: "reserved ports", changes: []string{"ip_local_reserved_ports", "18000-18099"}, o: observe.Outgoing{Open: 721, Before: 721}, want: Warning, summary: "721 of 900 ports taken"},

		// A tenth is taken, at 10.1 a second: 900 are left for 89 s, of which those of
		// TIME_WAIT get free after 51 s.
		{name: "ten minutes", o: observe.Outgoing{Open: 101, New: 101}, want: Warning, summary: "101 of 1,000 ports taken; at the present rate none is left in 1m29s"},
		{name: "less than a tenth", o: observe.Outgoing{Open: 99, New: 99}, want: none},
		{name: "no more than a while ago", o: observe.Outgoing{Open: 101, New: 101, Gone: 101, Before: 101}, want: none},
		{
			name: "a minute", o: observe.Outgoing{Open: 160, New: 160, Owner: observe.Process{PID: 7, Comm: "a\x1b[2J\"b"}}, want: Critical,
			summary: "160 of 1,000 ports taken; at the present rate none is left in 53s",
		},
		{name: "levels off", o: observe.Outgoing{TimeWait: spread(160, 10*time.Second), New: 160}, want: none},
		{name: "does not", o: observe.Outgoing{TimeWait: waiting(190, 5*time.Second), New: 190}, want: Critical, summary: "190 of 1,000 ports taken, 190 of them in TIME_WAIT; at the present rate none is left in 43s"},
		{name: "grows on", o: observe.Outgoing{Open: 120, New: 120, TimeWait: waiting(10, 5*time.Second)}, want: Warning, summary: "130 of 1,000 ports taken, 10 of them in TIME_WAIT; at the present rate none is left in 1m8s"},
		{
			name: "looked at once", o: observe.Outgoing{Open: 160, New: 160},
			change: func(h *observe.Host) { h.Ended = h.Began }, want: none,
		},

		{
			name: "connects failed", o: observe.Outgoing{Open: 500, Before: 500},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 23, tracer.StateSynSent, tracer.ReasonLocalError))
			},
			want: Critical, summary: "500 of 1,000 ports taken; 23 connects have failed for want of a port",
		},
		{
			name: "a connect failed", o: observe.Outgoing{Open: 500, Before: 500},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 1, tracer.StateSynSent, tracer.ReasonLocalError))
			},
			want: Critical, summary: "500 of 1,000 ports taken; 1 connect has failed for want of a port",
		},
		{
			name: "connects failed in a log", o: observe.Outgoing{Open: 500, Before: 500},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 23, tracer.StateSynSent, tracer.ReasonLocalError)).Traffic.Source = observe.SourceLog
				h.Namespaces[0].UsedPorts = portsFrom(18000, 1000)
			},
			want: none,
		},
		{
			name: "connects failed for something else", o: observe.Outgoing{Open: 499, Before: 499},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 23, tracer.StateSynSent, tracer.ReasonLocalError))
			},
			want: none,
		},
		{
			name: "connects were refused", o: observe.Outgoing{Open: 500, Before: 500},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 23, tracer.StateSynSent, tracer.ReasonRefused))
			},
			want: none,
		},
		{
			name: "connects failed elsewhere", o: observe.Outgoing{Open: 500, Before: 500},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 23, tracer.StateSynSent, tracer.ReasonLocalError))
				h.Traffic.Flows[0].Netns++
			},
			want: none,
		},
		{
			name: "bound", o: observe.Outgoing{Open: 1, Before: 1},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 23, tracer.StateSynSent, tracer.ReasonLocalError)).Namespaces[0].UsedPorts = portsFrom(18000, 950)
			},
			want: Critical,
			summary: "23 connects have failed for want of a port, while 950 of 1,000 ports have a socket: it seems that they are bound " +
				"before connect, without IP_BIND_ADDRESS_NO_PORT",
		},
		{
			name: "not bound", o: observe.Outgoing{Open: 1, Before: 1},
			change: func(h *observe.Host) {
				withFlow(h, failing(awayTo, 23, tracer.StateSynSent, tracer.ReasonLocalError)).Namespaces[0].UsedPorts = append(portsFrom(18000, 949), 17999, 19000)
			},
			want: none,
		},

		{name: "range unknown", changes: []string{"ip_local_port_range", "absent"}, o: observe.Outgoing{Open: 1000}, want: none},
		{name: "reuse unknown", changes: []string{"tcp_tw_reuse", "absent"}, o: observe.Outgoing{TimeWait: waiting(1000, time.Second)}, want: none},
		{name: "agent", o: observe.Outgoing{Open: 801, Before: 801}, change: func(h *observe.Host) { h.Traffic = &observe.Traffic{} }, want: Warning, summary: "801 of 1,000 ports taken"},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			if tt.o.Local = awayFrom; !tt.o.Remote.IsValid() {
				tt.o.Remote = awayTo
			}
			h := portHost(portSysctls(slices.Concat(thousand, tt.changes)...), tt.o)
			if tt.change != nil {
				tt.change(h)
			}
			found := findPortExhaustion(h, &h.Namespaces[0])
			if tt.want == none {
				qt.Assert(t, qt.HasLen(found, 0), qt.Commentf("%+v", found))
				return
			}
			qt.Assert(t, qt.HasLen(found, 1))
			qt.Check(t, qt.Equals(found[0].Severity, tt.want))
			from, says, _ := strings.Cut(found[0].Summary, ": ")
			qt.Check(t, qt.Equals(says, tt.summary))
			if p := tt.o.Owner; p.PID != 0 {
				qt.Check(t, qt.Equals(from, found[0].Subject+", "+processName(p)))
			}
			qt.Check(t, qt.IsTrue(strings.HasPrefix(from, found[0].Subject)), qt.Commentf("%s", from))
		})
	}
}

// A fact is there if it is known, and else not.
func TestPortFacts(t *testing.T) {
	o := observe.Outgoing{
		Local: awayFrom, Remote: awayTo, Owner: observe.Process{PID: 7, Comm: "app"},
		Open: 100, Before: 80, New: 50, FinWait2: 10, TimeWait: slices.Concat(waiting(600, 30*time.Second), waiting(100, 500*time.Millisecond)),
	}
	h := portHost(portSysctls("ip_local_port_range", "18000 18999", "tcp_tw_reuse", "1", "ip_local_reserved_ports", "18000-18022", "tcp_tw_reuse_delay", "50000"), o)
	h.Namespaces[0].Listeners = listenersOn(18500, 80)
	found := findPortExhaustion(withFlow(h, failing(awayTo, 23, tracer.StateSynSent, tracer.ReasonLocalError)), &h.Namespaces[0])
	qt.Assert(t, qt.HasLen(found, 1))
	for _, want := range []Fact{
		{"ports_in_range", 1000}, {"ports_reserved", 23}, {"ports_listening", 1}, {"ports_taken", 810}, {"ports_open", 100},
		{"ports_time_wait", 700}, {"ports_fin_wait2", 10}, {"ports_left", 166}, {"ports_reusable", 0}, {"new_per_second", 5.0},
		{"connects_failed", uint64(23)}, {"pid", uint64(7)}, {"comm", "app"},
	} {
		got, _ := factOf(&found[0], want.Name)
		qt.Check(t, qt.Equals(got, want.Value), qt.Commentf(want.Name))
	}
	qt.Check(t, qt.Equals(found[0].Subject, "192.0.2.1 to 192.0.2.2:443"))

	h = portHost(portSysctls("ip_local_port_range", "18000 18999"), observe.Outgoing{Local: awayFrom, Remote: awayTo, Open: 900, Before: 900})
	found = findPortExhaustion(h, &h.Namespaces[0])
	qt.Assert(t, qt.HasLen(found, 1))
	for _, name := range []string{"time_left_seconds", "connects_failed", "ports_reusable", "pid", "comm"} {
		_, there := factOf(&found[0], name)
		qt.Check(t, qt.IsFalse(there), qt.Commentf(name))
	}
}

// The worst come first, and what is too much for a screen is a number.
func TestPortFindingsAreFew(t *testing.T) {
	var outgoing []observe.Outgoing
	for i := range 23 {
		outgoing = append(outgoing, observe.Outgoing{Local: awayFrom, Remote: netip.AddrPortFrom(awayTo.Addr(), uint16(1+i)), Open: 900 + i, Before: 900 + i})
	}
	h := portHost(portSysctls("ip_local_port_range", "18000 18999"), outgoing...)
	found := findPortExhaustion(h, &h.Namespaces[0])
	qt.Assert(t, qt.HasLen(found, handful+1))
	qt.Check(t, qt.Equals(found[0].Subject, "192.0.2.1 to 192.0.2.2:23"))
	qt.Check(t, qt.Equals(found[handful].Summary, "the same is true of 18 other destinations"))
}

// Failures are said once, where the most ports are taken.
func TestFailuresOfSeveralSources(t *testing.T) {
	h := portHost(portSysctls("ip_local_port_range", "18000 18999"),
		observe.Outgoing{Local: awayFrom, Remote: awayTo, Open: 990, Before: 990},
		observe.Outgoing{Local: awayFrom.Next(), Remote: awayTo, Open: 700, Before: 700})
	withFlow(h, failing(awayTo, 20, tracer.StateSynSent, tracer.ReasonLocalError))
	withFlow(h, failing(awayTo, 3, tracer.StateSynSent, tracer.ReasonLocalError))
	found := findPortExhaustion(h, &h.Namespaces[0])
	qt.Assert(t, qt.HasLen(found, 1))
	failed, _ := factOf(&found[0], "connects_failed")
	qt.Check(t, qt.Equals(failed, any(uint64(23))))
}

func TestPortSettings(t *testing.T) {
	const reuse1, timestamps, wider = "net.ipv4.tcp_tw_reuse = 1", "net.ipv4.tcp_timestamps = 1", "net.ipv4.ip_local_port_range = 10240 65535"
	const reserve = "net.ipv4.ip_local_reserved_ports = "
	timeWait := observe.Outgoing{TimeWait: waiting(28000, 30*time.Second)}
	for _, tt := range []struct {
		name      string
		changes   []string
		listening []int
		o         observe.Outgoing
		want      []string
	}{
		{name: "default", o: timeWait, want: []string{wider, reuse1}},
		{name: "open", o: observe.Outgoing{Open: 28000, Before: 28000}, want: []string{wider}},
		{name: "no timestamps", changes: []string{"tcp_timestamps", "0"}, o: timeWait, want: []string{wider, timestamps, reuse1}},
		{
			name: "reused", changes: []string{"tcp_tw_reuse", "1"}, o: observe.Outgoing{TimeWait: waiting(28000, time.Second/2)},
			want: []string{wider},
		},
		{
			name: "services", listening: []int{22, 80, 10240, 27017, 27018, 33333, 65535}, o: timeWait,
			want: []string{reserve + "10240,27017-27018,65535", wider, reuse1},
		},
		{
			name: "services of which some are reserved", changes: []string{"ip_local_reserved_ports", "5000-6000,27017,40000"}, listening: []int{27017, 27018},
			o: timeWait, want: []string{reserve + "5000-6000,27017-27018,40000", wider, reuse1},
		},
		{name: "wide", changes: []string{"ip_local_port_range", "15000 65535"}, o: observe.Outgoing{Open: 50000, Before: 50000}, want: nil},
		{name: "wide and low", changes: []string{"ip_local_port_range", "1024 32767"}, o: observe.Outgoing{TimeWait: waiting(31000, time.Second*30)}, want: []string{"net.ipv4.ip_local_port_range = 1024 65535", reuse1}},
	} {
		tt.o.Local, tt.o.Remote = awayFrom, awayTo
		h := portHost(portSysctls(tt.changes...), tt.o)
		h.Namespaces[0].Listeners = listenersOn(tt.listening...)
		found := findPortExhaustion(h, &h.Namespaces[0])
		qt.Assert(t, qt.HasLen(found, 1), qt.Commentf(tt.name))
		found[0].Rule = portExhaustion
		var lines []string
		for _, s := range found[0].Settings() {
			lines = append(lines, s.Line)
		}
		qt.Check(t, qt.DeepEquals(lines, tt.want), qt.Commentf(tt.name))
	}
}
