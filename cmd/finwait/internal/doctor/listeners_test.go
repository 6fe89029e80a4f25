package doctor

import (
	"net/netip"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/tracer"
)

var web = netip.MustParseAddrPort("0.0.0.0:80")

type change = func(*observe.Host, *observe.Netns)

// queue is a listener with so many that wait, at both looks.
func queue(backlog, before, after uint32) change {
	return func(_ *observe.Host, n *observe.Netns) {
		n.Listeners = append(n.Listeners, observe.Listener{Local: web, Owner: stranger, Backlog: backlog, Before: true, QueueBefore: before, Queue: after})
	}
}

// opened is connections that came to the listener while it was watched.
func opened(count uint64) change {
	return func(h *observe.Host, _ *observe.Netns) {
		h.Traffic.Flows = append(h.Traffic.Flows, observe.Flow{
			FlowKey: observe.FlowKey{Netns: 1, Role: tracer.RoleServer, Service: netip.MustParseAddrPort("192.0.2.9:80")}, Opened: count,
		})
	}
}

func grown(name string, n uint64) change {
	return func(_ *observe.Host, ns *observe.Netns) { ns.Counted[name] = n }
}

func sysctlIs(name, value string) change {
	return func(_ *observe.Host, n *observe.Netns) { n.Sysctls[name] = value }
}

func fromLog(h *observe.Host, _ *observe.Netns) { h.Traffic.Source = observe.SourceLog }
func unwatched(h *observe.Host, _ *observe.Netns) {
	h.Ended = h.Began
}

func TestListeners(t *testing.T) {
	info, warning, critical, none := []string{"info"}, []string{"warning"}, []string{"critical"}, []string(nil)
	const overflows, passive = "TcpExt.ListenOverflows", "Tcp.PassiveOpens"
	const abort, somaxconn = "net.ipv4.tcp_abort_on_overflow", "net.core.somaxconn"
	runRuleCases(t, []ruleCase{
		{"half full", slowAccept, both(queue(127, 64, 64), opened(1000)), warning},
		{"less than half full", slowAccept, both(queue(127, 63, 64), opened(1000)), none},
		{"half full at one look", slowAccept, both(queue(127, 0, 128), opened(1000)), none},
		{"full", slowAccept, both(queue(127, 128, 128), opened(1000)), critical},
		{"full but for one", slowAccept, both(queue(127, 127, 128), opened(1000)), warning},
		{"full, and nothing else is known", slowAccept, both(queue(127, 128, 128), noTraffic), critical},
		{"one waits in a queue of two", slowAccept, both(queue(1, 1, 1), opened(1000)), none},
		{"one waits in a queue of one", slowAccept, both(queue(0, 1, 1), opened(1000)), none},
		{"two wait in a queue of two", slowAccept, both(queue(1, 2, 2), opened(1000)), critical},
		{"new", slowAccept, func(h *observe.Host, n *observe.Netns) {
			queue(4, 0, 5)(h, n)
			n.Listeners[0].Before = false
		}, none},
		{"ten wait and none is accepted", slowAccept, both(queue(1024, 10, 33), opened(23)), warning},
		{"nine wait and none is accepted", slowAccept, both(queue(1024, 9, 32), opened(23)), none},
		{"ten wait and some are accepted", slowAccept, both(queue(1024, 10, 31), opened(23)), none},
		{"ten wait and hardly any is accepted", slowAccept, both(queue(1024, 10, 105), opened(100)), warning},
		{"ten wait and others come", slowAccept, both(queue(1024, 10, 10), opened(1000)), none},
		{"ten wait, by the counters", slowAccept, both(queue(1024, 10, 33), noTraffic, grown(passive, 23)), warning},
		{"ten wait and others come, by the counters", slowAccept, both(queue(1024, 10, 33), noTraffic, grown(passive, 24)), none},
		{"ten wait and nothing else is known", slowAccept, both(queue(1024, 10, 33), noTraffic), none},
		{"ten wait and some is lost", slowAccept, both(queue(1024, 10, 33), opened(23), lost(1)), none},
		{"ten wait and a log is of another time", slowAccept, both(queue(1024, 10, 33), opened(23), fromLog), none},
		{"one of two on a port is full", slowAccept, both(queue(4, 0, 0), queue(4, 5, 5), opened(1000)), critical},

		{"one", acceptQueueOverflow, both(grown(overflows, 1), grown(passive, 1000)), warning},
		{"none", acceptQueueOverflow, both(grown(overflows, 0), queue(4, 0, 5)), none},
		{"a tenth, ten a second", acceptQueueOverflow, both(grown(overflows, 100), grown(passive, 900)), critical},
		{"less than a tenth", acceptQueueOverflow, both(grown(overflows, 100), grown(passive, 901)), warning},
		{"a tenth, fewer than ten a second", acceptQueueOverflow, both(grown(overflows, 99), grown(passive, 99)), warning},
		{"clients are reset", acceptQueueOverflow, both(grown(overflows, 1), sysctlIs(abort, "1")), critical},
		{"clients are not reset", acceptQueueOverflow, both(grown(overflows, 1), sysctlIs(abort, "0"), unwatched), warning},
		{"a listener is always full", acceptQueueOverflow, both(grown(overflows, 100), queue(4, 5, 5)), none},
		{"a listener is full now", acceptQueueOverflow, both(grown(overflows, 1), queue(4, 4, 5)), warning},

		{"small", listenBacklogSmall, both(queue(49, 0, 0), opened(10_000)), info},
		{"just enough", listenBacklogSmall, both(queue(50, 0, 0), opened(10_000)), none},
		{"just enough together", listenBacklogSmall, both(queue(25, 0, 0), queue(25, 0, 0), opened(10_000)), none},
		{"small, fewer than a hundred a second", listenBacklogSmall, both(queue(4, 0, 0), opened(999)), none},
		{"small, a hundred a second", listenBacklogSmall, both(queue(4, 0, 0), opened(1000)), info},
		{"small, by a log", listenBacklogSmall, both(queue(49, 0, 0), opened(10_000), fromLog), none},
		{"small, by a sample of one", listenBacklogSmall, both(queue(4, 0, 0), opened(1000), ofSample(11)), none},
		{"small and overflows", listenBacklogSmall, both(queue(4, 0, 0), opened(10_000), grown(overflows, 1)), none},
		{"small and slow", listenBacklogSmall, both(queue(4, 5, 5), opened(10_000)), none},
		{"small, and half-open ones find no room", listenBacklogSmall, both(queue(4, 0, 0), opened(10_000), grown("TcpExt.TCPReqQFullDrop", 10), grown(passive, 10_000)), none},
		{"nothing is known", listenBacklogSmall, both(queue(4, 0, 0), noTraffic), none},
		{"flows are not known", listenBacklogSmall, both(queue(4, 0, 0), noFlows), none},
		{"somaxconn is not known", listenBacklogSmall, both(queue(4, 0, 0), opened(10_000)), info},
		{"somaxconn limits", listenBacklogSmall, both(queue(128, 0, 0), opened(100_000), sysctlIs(somaxconn, "128")), info},
	})
}

func TestListenerFacts(t *testing.T) {
	h := watchedHost(both(queue(4, 5, 5), grown("TcpExt.ListenOverflows", 23), opened(3)))
	f := slowAccept.find(h)[0]
	qt.Check(t, qt.Equals(f.Subject, "0.0.0.0:80"))
	qt.Check(t, qt.DeepEquals(f.Facts, []Fact{
		{"waiting", uint64(5)}, {"waiting_before", uint64(5)}, {"backlog", uint64(4)},
		{"listen_overflows", uint64(23)}, {"opened", uint64(3)}, {"pid", uint64(7)}, {"comm", stranger.Comm},
	}))
	qt.Check(t, qt.Equals(f.Summary, processName(stranger)+" does not keep up with accept at 0.0.0.0:80: 5 of 5 wait; 23 SYNs or ACKs dropped, 2.3 a second"))
	h.Files = map[uint32]observe.Files{stranger.PID: {Open: 1023, Limit: 1024}}
	qt.Check(t, qt.Equals(fact(&slowAccept.find(h)[0], "open_files"), nil))
	h.Files[stranger.PID] = observe.Files{Open: 1024, Limit: 1024}
	qt.Check(t, qt.Equals(fact(&slowAccept.find(h)[0], "open_files"), any(uint64(1024))))
	// What is not known is absent.
	h = watchedHost(both(queue(4, 5, 5), noTraffic))
	h.Namespaces[0].Listeners[0].Owner = observe.Process{}
	f = slowAccept.find(h)[0]
	qt.Check(t, qt.DeepEquals(f.Facts, []Fact{{"waiting", uint64(5)}, {"waiting_before", uint64(5)}, {"backlog", uint64(4)}}))
}

// The listeners that are named are those that may have overflowed, and the settings those
// that would help them.
func TestOverflowNamesListeners(t *testing.T) {
	overflows := grown("TcpExt.ListenOverflows", 23)
	for _, test := range []struct {
		name     string
		change   change
		subject  string
		likely   any
		settings []string
	}{
		{"none is known", overflows, "accept queues", nil, nil},
		{"none is known, and somaxconn is small", both(overflows, sysctlIs("net.core.somaxconn", "4095")), "accept queues", nil, []string{"net.core.somaxconn = 4096"}},
		{"none is known, and somaxconn is large", both(overflows, sysctlIs("net.core.somaxconn", "65535")), "accept queues", nil, nil},
		{"the only one", both(overflows, queue(4096, 0, 0), opened(1_000_000), fromLog), "0.0.0.0:80", "0.0.0.0:80 (0 of 4097)", nil},
		{"the only one, whose backlog somaxconn does not cut", both(overflows, queue(4, 0, 0), sysctlIs("net.core.somaxconn", "128"), noTraffic), "0.0.0.0:80", "0.0.0.0:80 (0 of 5)", nil},
		{"the only one of two that can be it", both(overflows, queue(4, 0, 0), opened(3), ssh, sysctlIs("net.core.somaxconn", "128")), "0.0.0.0:80", "0.0.0.0:80 (0 of 5)", nil},
		{"one of two, by what is known", both(overflows, queue(4, 0, 0), ssh, sysctlIs("net.core.somaxconn", "129"), noTraffic), "accept queues", nil, nil},
		{"full at one look", both(overflows, queue(4, 0, 5), sysctlIs("net.core.somaxconn", "4096")), "0.0.0.0:80", "0.0.0.0:80 (5 of 5)", nil},
		{"half full", both(overflows, queue(127, 0, 64), sysctlIs("net.core.somaxconn", "127")), "0.0.0.0:80", "0.0.0.0:80 (64 of 128)", []string{"net.core.somaxconn = 4096"}},
		{"too small for what comes", both(overflows, queue(4096, 0, 0), opened(1_000_000), sysctlIs("net.core.somaxconn", "4096")), "0.0.0.0:80", "0.0.0.0:80 (0 of 4097)", []string{"net.core.somaxconn = 16384"}},
		{"idle", both(overflows, queue(4096, 0, 0)), "accept queues", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := acceptQueueOverflow.find(watchedHost(test.change))[0]
			f.Rule = acceptQueueOverflow
			qt.Check(t, qt.Equals(f.Subject, test.subject))
			qt.Check(t, qt.Equals(fact(&f, "likely_listeners"), test.likely))
			var lines []string
			for _, s := range f.Settings() {
				lines = append(lines, s.Line)
			}
			qt.Check(t, qt.DeepEquals(lines, test.settings))
		})
	}
}

// ssh is a second listener, to which nothing comes.
func ssh(_ *observe.Host, n *observe.Netns) {
	n.Listeners = append(n.Listeners, observe.Listener{Local: netip.MustParseAddrPort("0.0.0.0:22"), Backlog: 128, Before: true})
}

// A finding says whose queue it is, as surely as that is known.
func TestListenerSummaries(t *testing.T) {
	who, overflows := processName(stranger), grown("TcpExt.ListenOverflows", 23)
	for _, test := range []struct {
		name   string
		rule   *Rule
		change change
		want   string
	}{
		{"accepts none", slowAccept, both(queue(5, 6, 6), overflows), who + " accepted none in 10 s at 0.0.0.0:80: 6 of 6 wait; 23 SYNs or ACKs dropped, 2.3 a second"},
		{"accepts none, not full", slowAccept, queue(1024, 10, 10), who + " accepted none in 10 s at 0.0.0.0:80: 10 of 1,025 wait"},
		{"full, and nothing comes", slowAccept, both(queue(5, 6, 6), grown("TcpExt.ListenOverflows", 0)), who + " accepted none in 10 s at 0.0.0.0:80: 6 of 6 wait, as many as fit"},
		{"nothing else is known", slowAccept, both(queue(5, 6, 6), noTraffic), who + " does not keep up with accept at 0.0.0.0:80: 6 of 6 wait, as many as fit"},
		{"another cannot have dropped", slowAccept, both(queue(5, 6, 6), overflows, ssh), who + " accepted none in 10 s at 0.0.0.0:80: 6 of 6 wait; 23 SYNs or ACKs dropped, 2.3 a second"},
		{"another may have dropped", slowAccept, both(queue(5, 6, 6), overflows, ssh, noTraffic), who + " does not keep up with accept at 0.0.0.0:80: 6 of 6 wait; 23 SYNs or ACKs dropped, 2.3 a second, here and at other listeners"},
		{"the only one", acceptQueueOverflow, both(overflows, queue(4, 0, 0), opened(100)), "23 SYNs or ACKs dropped, 2.3 a second, because the accept queue of " + who + " at 0.0.0.0:80 (backlog 4) was full: bursts, which were over at both looks"},
		{"the likely one", acceptQueueOverflow, both(overflows, queue(4, 0, 5), ssh, noTraffic), "23 SYNs or ACKs dropped, 2.3 a second, because an accept queue was full, most likely that of " + who + " at 0.0.0.0:80 (backlog 4)"},
		{"none is known", acceptQueueOverflow, overflows, "23 SYNs or ACKs dropped, 2.3 a second, because an accept queue was full: bursts, which were over at both looks"},
	} {
		t.Run(test.name, func(t *testing.T) {
			qt.Check(t, qt.Equals(test.rule.find(watchedHost(test.change))[0].Summary, test.want))
		})
	}
	h := watchedHost(queue(5, 6, 6))
	h.Namespaces[0].Listeners[0].Owner = observe.Process{}
	qt.Check(t, qt.StringContains(slowAccept.find(h)[0].Summary, "a process that is not known accepted none in 10 s at 0.0.0.0:80"))
}

// What goes to an address is its own listener's, else that of all addresses.
func TestEntrances(t *testing.T) {
	listen := func(local string) change {
		return func(_ *observe.Host, n *observe.Netns) {
			n.Listeners = append(n.Listeners, observe.Listener{Local: netip.MustParseAddrPort(local)})
		}
	}
	openedOf := func(changes ...change) (counts []uint64) {
		h := watchedHost(both(append(changes, opened(23))...))
		for _, e := range entrancesOf(h, &h.Namespaces[0]) {
			counts = append(counts, e.opened)
		}
		return counts
	}
	qt.Check(t, qt.DeepEquals(openedOf(listen("192.0.2.9:80"), listen("0.0.0.0:80")), []uint64{23, 0}))
	qt.Check(t, qt.DeepEquals(openedOf(listen("192.0.2.8:80"), listen("0.0.0.0:80")), []uint64{0, 23}))
	qt.Check(t, qt.DeepEquals(openedOf(listen("0.0.0.0:80"), listen("[::]:80")), []uint64{23, 0}))
	qt.Check(t, qt.DeepEquals(openedOf(listen("[::]:80"), listen("0.0.0.0:81")), []uint64{23, 0}))
	qt.Check(t, qt.DeepEquals(openedOf(listen("0.0.0.0:80"), listen("0.0.0.0:80")), []uint64{23}))
}
