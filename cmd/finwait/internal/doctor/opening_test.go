package doctor

import (
	"net/netip"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// watchedHost is a host with one namespace that was watched for ten seconds, in which
// something is changed.
func watchedHost(change func(*observe.Host, *observe.Netns)) *observe.Host {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	h := &observe.Host{
		Began: began,
		Ended: began.Add(10 * time.Second),
		Namespaces: []observe.Netns{{
			Inode: 1, Host: true,
			Sysctls:  sysctl.Values{},
			Counters: procnet.Counters{}, Counted: procnet.Counters{},
		}},
		Traffic: &observe.Traffic{Source: observe.SourceKernel, Since: began, Until: began.Add(10 * time.Second), Flows: []observe.Flow{}},
	}
	change(h, &h.Namespaces[0])
	return h
}

var (
	stranger = observe.Process{PID: 7, Comm: hostile}
	far      = netip.MustParseAddrPort("192.0.2.1:443")
)

// found is the severity of each finding of a rule.
func found(r *Rule, h *observe.Host) (severities []string) {
	for _, f := range r.find(h) {
		severities = append(severities, f.Severity.String())
	}
	return severities
}

func fact(f *Finding, name string) any {
	for _, fact := range f.Facts {
		if fact.Name == name {
			return fact.Value
		}
	}
	return nil
}

// ruleCase is what a rule finds of a host.
type ruleCase struct {
	name   string
	rule   *Rule
	change func(*observe.Host, *observe.Netns)
	want   []string
}

func runRuleCases(t *testing.T, tests []ruleCase) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.rule.ID+"/"+test.name, func(t *testing.T) {
			qt.Check(t, qt.DeepEquals(found(test.rule, watchedHost(test.change)), test.want))
		})
	}
}

func hanging(resent int) func(*observe.Host, *observe.Netns) {
	return func(_ *observe.Host, n *observe.Netns) {
		n.Lasting = append(n.Lasting, observe.Lasting{State: tracer.StateSynSent, Owner: stranger, Remote: far, Sockets: 23, Retransmitted: resent})
	}
}

// attempts is a flow of a client: how many came to be, and how many ended in SYN_SENT.
func clients(opened uint64, ended map[tracer.Reason]uint64) observe.Flow {
	f := observe.Flow{FlowKey: observe.FlowKey{Netns: 1, Role: tracer.RoleClient, Owner: stranger, Service: far}, Opened: opened, Endings: map[tracer.Ending]uint64{}}
	for reason, n := range ended {
		f.Endings[tracer.Ending{Old: tracer.StateSynSent, Reason: reason}] = n
	}
	return f
}

func trafficOf(flows ...observe.Flow) func(*observe.Host, *observe.Netns) {
	return func(h *observe.Host, _ *observe.Netns) { h.Traffic.Flows = flows }
}

// dwell has times in SYN_SENT: of attempts that failed, and of connections that came to be.
func dwell(f observe.Flow, failed, opened map[time.Duration]int) observe.Flow {
	for d, n := range failed {
		for range n {
			f.SynSent.Add(d)
		}
	}
	for d, n := range opened {
		for range n {
			f.SynSent.Add(d)
			f.Handshake.Add(d)
		}
	}
	return f
}

type (
	reasons = map[tracer.Reason]uint64
	times   = map[time.Duration]int
)

func both(changes ...func(*observe.Host, *observe.Netns)) func(*observe.Host, *observe.Netns) {
	return func(h *observe.Host, n *observe.Netns) {
		for _, change := range changes {
			change(h, n)
		}
	}
}

func noTraffic(h *observe.Host, _ *observe.Netns) { h.Traffic = nil }
func noFlows(h *observe.Host, _ *observe.Netns)   { h.Traffic.Flows = nil }

func listenerFull(_ *observe.Host, n *observe.Netns) {
	n.Listeners = []observe.Listener{{Local: netip.AddrPortFrom(netip.IPv6Unspecified(), far.Port()), Backlog: 4, Queue: 5}}
}

// toLoopback has all that goes far go to the loopback address.
func toLoopback(h *observe.Host, n *observe.Netns) {
	near := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), far.Port())
	for i := range n.Lasting {
		n.Lasting[i].Remote = near
	}
	for i := range h.Traffic.Flows {
		h.Traffic.Flows[i].Service = near
	}
}

func TestOpening(t *testing.T) {
	one, none := []string{"warning"}, []string(nil)
	slow := dwell(clients(100, nil), nil, times{time.Millisecond: 95, time.Second: 5})
	runRuleCases(t, []ruleCase{
		{"nine wait", synSentPileup, hanging(9), none},
		{"ten wait", synSentPileup, hanging(10), one},
		{"ten wait and nothing else is known", synSentPileup, both(hanging(10), noTraffic), one},
		{"ten wait and flows are not known", synSentPileup, both(hanging(10), noFlows), one},
		{"one each of ten processes", synSentPileup, func(_ *observe.Host, n *observe.Netns) {
			for pid := range uint32(10) {
				n.Lasting = append(n.Lasting, observe.Lasting{State: tracer.StateSynSent, Owner: observe.Process{PID: pid}, Remote: far, Sockets: 1, Retransmitted: 1})
			}
		}, one},
		{"one each to ten ports", synSentPileup, func(_ *observe.Host, n *observe.Netns) {
			for port := range uint16(10) {
				n.Lasting = append(n.Lasting, observe.Lasting{State: tracer.StateSynSent, Remote: netip.AddrPortFrom(far.Addr(), port), Sockets: 1, Retransmitted: 1})
			}
		}, none},
		{"in another state", synSentPileup, func(h *observe.Host, n *observe.Netns) {
			hanging(23)(h, n)
			n.Lasting[0].State = tracer.StateFinWait1
		}, none},
		{"nine ended", synSentPileup, trafficOf(clients(0, reasons{tracer.ReasonTimeoutHandshake: 5, tracer.ReasonUnreachable: 4})), none},
		{"ten ended", synSentPileup, trafficOf(clients(0, reasons{tracer.ReasonTimeoutHandshake: 5, tracer.ReasonUnreachable: 5})), one},
		{"ten of two hundred", synSentPileup, trafficOf(clients(190, reasons{tracer.ReasonTimeoutHandshake: 10})), one},
		{"ten of two hundred and one", synSentPileup, trafficOf(clients(191, reasons{tracer.ReasonTimeoutHandshake: 10})), none},
		{"ten wait and many come to be", synSentPileup, both(hanging(10), trafficOf(clients(10_000, nil))), one},
		{"ten of a sample of ten seen", synSentPileup, both(trafficOf(clients(0, reasons{tracer.ReasonTimeoutHandshake: 100})), ofSample(10)), one},
		{"ten of a sample of one seen", synSentPileup, both(trafficOf(clients(0, reasons{tracer.ReasonTimeoutHandshake: 100})), ofSample(100)), none},
		{"given up at once", synSentPileup, trafficOf(dwell(clients(0, reasons{tracer.ReasonClosed: 23}), times{999 * time.Millisecond: 23}, nil)), none},
		{"given up after a second", synSentPileup, trafficOf(dwell(clients(0, reasons{tracer.ReasonClosed: 23}), times{time.Second: 10, time.Millisecond: 13}, nil)), one},
		{"some given up at once, others slow", synSentPileup, trafficOf(dwell(clients(23, reasons{tracer.ReasonClosed: 23}), times{time.Millisecond: 23}, times{time.Second: 23})), none},
		{"another side", synSentPileup, func(h *observe.Host, _ *observe.Netns) {
			f := clients(0, reasons{tracer.ReasonTimeoutHandshake: 23})
			f.Role = tracer.RoleServer
			h.Traffic.Flows = []observe.Flow{f}
		}, none},
		{"another namespace", synSentPileup, func(h *observe.Host, _ *observe.Netns) {
			f := clients(0, reasons{tracer.ReasonTimeoutHandshake: 23})
			f.Netns = 2
			h.Traffic.Flows = []observe.Flow{f}
		}, none},
		{"a log alone", synSentPileup, func(h *observe.Host, _ *observe.Netns) {
			h.Traffic.Flows = []observe.Flow{clients(0, reasons{tracer.ReasonTimeoutHandshake: 23})}
			h.Namespaces, h.Traffic.Source = nil, observe.SourceLog
		}, one},
		{"a log of another namespace", synSentPileup, func(h *observe.Host, _ *observe.Netns) {
			f := clients(0, reasons{tracer.ReasonTimeoutHandshake: 23})
			f.Netns = 2
			h.Traffic.Flows, h.Traffic.Source = []observe.Flow{f}, observe.SourceLog
		}, one},
		{"a listener here that is full", synSentPileup, both(hanging(23), toLoopback, listenerFull), none},
		{"a listener of that port elsewhere", synSentPileup, both(hanging(23), listenerFull), one},

		{"nine", connectRefused, trafficOf(clients(0, reasons{tracer.ReasonRefused: 9})), none},
		{"ten", connectRefused, trafficOf(clients(0, reasons{tracer.ReasonRefused: 10})), one},
		{"ten and one came to be", connectRefused, trafficOf(clients(1, reasons{tracer.ReasonRefused: 10})), []string{"info"}},
		{"ten and one timed out", connectRefused, trafficOf(clients(0, reasons{tracer.ReasonRefused: 10, tracer.ReasonTimeoutHandshake: 1})), []string{"info"}},
		{"a hundredth in an hour", connectRefused, both(trafficOf(clients(990, reasons{tracer.ReasonRefused: 10})), lasted(time.Hour)), []string{"info"}},
		{"less than a hundredth in an hour", connectRefused, both(trafficOf(clients(991, reasons{tracer.ReasonRefused: 10})), lasted(time.Hour)), none},
		{"ten in ten seconds, for an hour", connectRefused, both(trafficOf(clients(1_000_000, reasons{tracer.ReasonRefused: 3600})), lasted(time.Hour)), []string{"info"}},
		{"less than ten in ten seconds, for an hour", connectRefused, both(trafficOf(clients(1_000_000, reasons{tracer.ReasonRefused: 3599})), lasted(time.Hour)), none},
		{"few in a minute", connectRefused, both(trafficOf(clients(1_000_000, reasons{tracer.ReasonRefused: 10})), lasted(time.Minute)), []string{"info"}},
		{"a sample of nine", connectRefused, both(trafficOf(clients(0, reasons{tracer.ReasonRefused: 99})), ofSample(10)), none},
		{"nothing is known", connectRefused, noTraffic, none},
		{"flows are not known", connectRefused, noFlows, none},

		{"five of a hundred", slowHandshake, trafficOf(slow), one},
		{"five of a sample of one", slowHandshake, both(trafficOf(slow), ofSample(5)), none},
		{"four of four", slowHandshake, trafficOf(dwell(clients(4, nil), nil, times{time.Second: 4})), none},
		{"five of a hundred and one", slowHandshake, trafficOf(dwell(clients(101, nil), nil, times{time.Millisecond: 96, time.Second: 5})), none},
		{"a long way", slowHandshake, trafficOf(dwell(clients(100, nil), nil, times{999 * time.Millisecond: 100})), none},
		{"those that failed do not count", slowHandshake, trafficOf(dwell(clients(100, reasons{tracer.ReasonClosed: 23}), times{time.Second: 23}, times{time.Millisecond: 100})), none},
		{"a listener here that overflows", slowHandshake, both(trafficOf(slow), toLoopback, listenerFull, func(_ *observe.Host, n *observe.Netns) {
			n.Counted["TcpExt.ListenOverflows"] = 1
		}), none},
		{"a listener here that does not", slowHandshake, both(trafficOf(slow), toLoopback, listenerFull), one},
		{"nothing is known", slowHandshake, noTraffic, none},
	})
}

// ofSample has each connection that was recorded stand for that many.
func ofSample(weight uint64) change {
	return func(h *observe.Host, _ *observe.Netns) { h.Traffic.Estimated, h.Traffic.Weight = true, weight }
}

// lasted is for how long traffic was seen.
func lasted(d time.Duration) change {
	return func(h *observe.Host, _ *observe.Netns) { h.Traffic.Until = h.Traffic.Since.Add(d) }
}

// A log tells of namespaces that are not there: which one it is, the summary says.
func TestPeersOfLog(t *testing.T) {
	h := watchedHost(both(trafficOf(clients(0, reasons{tracer.ReasonTimeoutHandshake: 100})), fromLog, ofSample(10)))
	h.Traffic.Flows[0].Netns = 2
	f := synSentPileup.find(h)[0]
	qt.Check(t, qt.IsNil(f.Netns))
	qt.Check(t, qt.Equals(f.Summary, "netns 2: about 100 of 100 connections to 192.0.2.1:443 failed without an answer"))
	qt.Check(t, qt.Equals(fact(&f, "netns"), any(uint64(2))))
}

// What is low already is not lowered.
func TestFewerRetries(t *testing.T) {
	settingsOf := func(r *Rule, changes ...change) (lines []string) {
		f := r.find(watchedHost(both(changes...)))[0]
		f.Rule = r
		for _, s := range f.Settings() {
			lines = append(lines, s.Line)
		}
		return lines
	}
	for value, want := range map[string][]string{"1": nil, "3": nil, "4": {"net.ipv4.tcp_syn_retries = 3"}, "": {"net.ipv4.tcp_syn_retries = 3"}} {
		qt.Check(t, qt.DeepEquals(settingsOf(synSentPileup, hanging(10), sysctlIs("net.ipv4.tcp_syn_retries", value)), want), qt.Commentf("%q", value))
	}
	const synAcks, on = "net.ipv4.tcp_synack_retries = 3", "net.ipv4.tcp_syncookies = 1"
	for value, want := range map[string][]string{"0": nil, "3": nil, "4": {synAcks}, "": {synAcks}} {
		retries := sysctlIs("net.ipv4.tcp_synack_retries", value)
		qt.Check(t, qt.DeepEquals(settingsOf(synFlood, halfOpen(4096, 100, 100), retries), want), qt.Commentf("%q", value))
		qt.Check(t, qt.DeepEquals(settingsOf(synFlood, halfOpen(4096, 100, 100), retries, mode("0")), append([]string{on}, want...)), qt.Commentf("%q", value))
	}
}

func TestPeerFacts(t *testing.T) {
	h := watchedHost(both(hanging(10), trafficOf(clients(0, reasons{tracer.ReasonTimeoutHandshake: 3}))))
	h.Namespaces[0].Sysctls["net.ipv4.tcp_syn_retries"] = "6"
	f := synSentPileup.find(h)[0]
	qt.Check(t, qt.Equals(f.Subject, "192.0.2.1:443"))
	qt.Check(t, qt.Equals(f.Netns, &h.Namespaces[0]))
	qt.Check(t, qt.DeepEquals(f.Facts, []Fact{
		{"waiting_sockets", 23}, {"syn_retransmitted_sockets", 10},
		{"opened", uint64(0)}, {"timed_out", uint64(3)}, {"unreachable", uint64(0)}, {"given_up", uint64(0)},
		{"tcp_syn_retries", int64(6)}, {"connect_fails_after_seconds", 127.0},
		{"pid", uint64(7)}, {"comm", stranger.Comm},
	}))
	h = watchedHost(both(hanging(10), noTraffic))
	h.Namespaces[0].Lasting[0].Owner = observe.Process{}
	h.Namespaces[0].Lasting[0].Remote = netip.AddrPortFrom(far.Addr(), 0)
	f = synSentPileup.find(h)[0]
	qt.Check(t, qt.Equals(f.Subject, "192.0.2.1"))
	qt.Check(t, qt.DeepEquals(f.Facts, []Fact{{"waiting_sockets", 23}, {"syn_retransmitted_sockets", 10}}))
}

// Of many destinations the worst are told, and how many there are more.
func TestPeersAreFolded(t *testing.T) {
	h := watchedHost(func(h *observe.Host, _ *observe.Netns) {
		for port := range uint16(23) {
			f := clients(0, reasons{tracer.ReasonRefused: 10 + uint64(port)})
			f.Service = netip.AddrPortFrom(far.Addr(), 1+port)
			h.Traffic.Flows = append(h.Traffic.Flows, f)
		}
	})
	all := connectRefused.find(h)
	qt.Assert(t, qt.HasLen(all, handful+1))
	qt.Check(t, qt.Equals(all[0].Subject, "192.0.2.1:23"))
	qt.Check(t, qt.Equals(all[handful-1].Subject, "192.0.2.1:19"))
	qt.Check(t, qt.Equals(all[handful].Summary, "the same is true of 18 other destinations"))
	qt.Check(t, qt.Equals(all[handful].Netns, &h.Namespaces[0]))
}

func TestConnectTimeoutSeconds(t *testing.T) {
	for _, test := range []struct {
		retries, linear, most string
		want                  float64
	}{
		{"6", "", "", 127},
		{"6", "4", "", 131},
		{"5", "4", "120000", 67},
		{"1", "0", "", 3},
		{"7", "", "", 127 + 120},
		{"127", "", "", 127 + 121*120},
		{"6", "4", "1000", 11},
	} {
		v := sysctl.Values{"net.ipv4.tcp_syn_retries": test.retries}
		if test.linear != "" {
			v["net.ipv4.tcp_syn_linear_timeouts"] = test.linear
		}
		if test.most != "" {
			v["net.ipv4.tcp_rto_max_ms"] = test.most
		}
		got, ok := connectTimeout(v)
		qt.Check(t, qt.IsTrue(ok))
		qt.Check(t, qt.Equals(got, test.want), qt.Commentf("%+v", test))
	}
	_, ok := connectTimeout(nil)
	qt.Check(t, qt.IsFalse(ok))
}
