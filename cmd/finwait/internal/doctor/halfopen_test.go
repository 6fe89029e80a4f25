package doctor

import (
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/tracer"
)

// halfOpen is a listener with half-open connections, some of which are not answered.
func halfOpen(backlog, count, unanswered uint32) change {
	return func(_ *observe.Host, n *observe.Netns) {
		n.Listeners = append(n.Listeners, observe.Listener{
			Local: web, Owner: stranger, Backlog: backlog, Before: true, HalfOpen: count, Unanswered: unanswered, HalfOpenPeers: 7,
		})
	}
}

// gaveUp is half-open connections that ended while it was watched.
func gaveUp(reason tracer.Reason, count uint64) change {
	return func(h *observe.Host, n *observe.Netns) {
		opened(0)(h, n)
		h.Traffic.Flows[len(h.Traffic.Flows)-1].Endings = map[tracer.Ending]uint64{{Old: tracer.StateNewSynRecv, Reason: reason}: count}
	}
}

func cookies(sent, valid uint64) change {
	return both(grown("TcpExt.SyncookiesSent", sent), grown("TcpExt.SyncookiesRecv", valid), grown("TcpExt.TCPReqQFullDoCookies", sent))
}

func mode(value string) change { return sysctlIs("net.ipv4.tcp_syncookies", value) }

// fullOfAccepted has the listeners' accept queues full.
func fullOfAccepted(_ *observe.Host, n *observe.Netns) {
	for i := range n.Listeners {
		n.Listeners[i].Queue = n.Listeners[i].Backlog + 1
	}
}

func TestHalfOpen(t *testing.T) {
	info, warning, critical, none := []string{"info"}, []string{"warning"}, []string{"critical"}, []string(nil)
	const dropped, drops, overflows = "TcpExt.TCPReqQFullDrop", "TcpExt.ListenDrops", "TcpExt.ListenOverflows"
	const resets, passive, abort = "TcpExt.EmbryonicRsts", "Tcp.PassiveOpens", "net.ipv4.tcp_abort_on_overflow"
	runRuleCases(t, []ruleCase{
		{"a hundred", synFlood, halfOpen(4096, 100, 100), warning},
		{"ninety-nine", synFlood, halfOpen(4096, 99, 99), none},
		{"a hundred, half of them answered in time", synFlood, halfOpen(4096, 100, 50), warning},
		{"a hundred, most of them young", synFlood, halfOpen(4096, 100, 49), none},
		{"half of the backlog", synFlood, halfOpen(20, 10, 10), warning},
		{"less than half of the backlog", synFlood, halfOpen(21, 10, 10), none},
		{"half of a backlog of less than twenty", synFlood, halfOpen(18, 9, 9), none},
		{"a hundred, and as many come to be", synFlood, both(halfOpen(4096, 100, 100), opened(100)), none},
		{"a hundred, and fewer come to be", synFlood, both(halfOpen(4096, 100, 100), opened(99)), warning},
		{"a hundred, all the time", synFlood, both(halfOpen(4096, 100, 100), beforeToo, opened(15)), warning},
		{"a hundred, all the time, and as many come to be", synFlood, both(halfOpen(4096, 100, 100), beforeToo, opened(16)), none},
		{"a hundred, for a shorter time, and as many come to be", synFlood, both(halfOpen(4096, 100, 100), beforeToo, opened(16), sysctlIs("net.ipv4.tcp_synack_retries", "3")), warning},
		{"a hundred given up, and as many come to be", synFlood, both(gaveUpAt(50), beforeToo, opened(50)), none},
		{"a hundred given up, and fewer come to be", synFlood, both(gaveUpAt(50), beforeToo, opened(49)), warning},
		{"given up in a log", synFlood, both(halfOpen(4096, 0, 0), gaveUp(tracer.ReasonTimeoutHandshake, 150), fromLog), none},
		{"a hundred, and many come to another port", synFlood, both(halfOpen(4096, 100, 100), grown(passive, 1000)), warning},
		{"a hundred, many come to another port, and one is lost", synFlood, both(halfOpen(4096, 100, 100), grown(passive, 1000), lost(1)), warning},
		{"a hundred, and many are lost", synFlood, both(halfOpen(4096, 100, 100), grown(passive, 1000), lost(1000)), none},
		{"a hundred, and many come to some port", synFlood, both(halfOpen(4096, 100, 100), noTraffic, grown(passive, 1000)), none},
		{"a hundred, and nothing else is known", synFlood, both(halfOpen(4096, 100, 100), noTraffic), warning},
		{"many come to be and SYNs are dropped", synFlood, both(halfOpen(128, 100, 100), opened(1000), grown(dropped, 1)), warning},
		{"ten, half of them given up", synFlood, gaveUpAt(5), warning},
		{"eight, half of them given up", synFlood, gaveUpAt(4), none},
		{"reset is not given up", synFlood, both(halfOpen(20, 0, 0), gaveUp(tracer.ReasonRSTReceived, 23)), none},
		{"answered, and no room to be accepted", synFlood, both(halfOpen(4096, 200, 200), fullOfAccepted), none},
		{"cookies that do not come back", synFlood, both(cookies(100, 49), mode("1")), warning},
		{"cookies of which half come back", synFlood, both(cookies(100, 50), mode("1")), none},
		{"few cookies", synFlood, both(cookies(99, 0), mode("1")), none},
		{"few cookies a second", synFlood, both(cookies(100, 0), mode("1"), func(h *observe.Host, _ *observe.Netns) { h.Ended = h.Ended.Add(1) }), none},
		{"cookies for all", synFlood, both(cookies(10_001, 1), mode("2")), warning},
		{"cookies for all, and fewer than a thousand a second", synFlood, both(cookies(10_000, 1), mode("2")), none},
		{"SYNs dropped without cookies", synFlood, both(halfOpen(128, 100, 100), mode("0"), grown(drops, 2), grown(overflows, 1)), critical},
		{"no SYN dropped without cookies", synFlood, both(halfOpen(4096, 100, 100), mode("0"), grown(drops, 1), grown(overflows, 1)), warning},
		{"a hundred dropped", synFlood, both(grown(dropped, 100), grown(drops, 100), grown(passive, 49), mode("0")), critical},
		{"a hundred dropped, and half as many come to be", synFlood, both(grown(dropped, 100), grown(passive, 50), mode("0")), none},
		{"a hundred dropped, and no more is known", synFlood, both(grown(dropped, 100), mode("0")), none},
		{"a hundred dropped, and no room to be accepted", synFlood, both(grown(dropped, 100), grown(passive, 0), mode("0"), queue(4, 5, 5)), none},
		{"few dropped", synFlood, both(grown(dropped, 99), grown(passive, 0), mode("0")), none},
		{"a hundred dropped, and not counted by themselves", synFlood, both(grown(dropped, 0), grown(drops, 123), grown(overflows, 23), grown(passive, 49), mode("0")), critical},
		{"a hundred dropped for another cause", synFlood, both(grown(dropped, 0), grown(drops, 123), grown(overflows, 23), grown(passive, 49), mode("1")), none},
		{"SYNs dropped with cookies", synFlood, both(halfOpen(128, 100, 100), mode("1"), grown(drops, 2)), warning},

		{"valid cookies", synBacklogSmall, both(cookies(10, 5), mode("1")), warning},
		{"fewer than ten", synBacklogSmall, both(cookies(9, 9), mode("1")), none},
		{"cookies that do not come back", synBacklogSmall, both(cookies(10, 4), mode("1")), none},
		{"cookies for all", synBacklogSmall, both(cookies(1000, 1000), mode("2")), none},
		{"cookies for an unknown reason", synBacklogSmall, cookies(1000, 1000), none},
		{"dropped, and half as many come to be", synBacklogSmall, both(grown(dropped, 10), grown(passive, 5), mode("0"), noTraffic), warning},
		{"dropped, and not counted by themselves", synBacklogSmall, both(grown(dropped, 0), grown(drops, 10), grown(passive, 5), mode("0")), warning},
		{"dropped, and fewer come to be", synBacklogSmall, both(grown(dropped, 10), grown(passive, 4), mode("0")), none},
		{"dropped, nothing else is known", synBacklogSmall, grown(dropped, 10), none},
		{"dropped in a flood", synBacklogSmall, both(grown(dropped, 1000), grown(passive, 1000), mode("0"), halfOpen(128, 128, 128)), none},
		{"cookies in a flood", synBacklogSmall, both(cookies(1000, 499), mode("1")), none},
		{"the accept queue is the cause", synBacklogSmall, both(cookies(1000, 1000), mode("1"), grown(overflows, 1)), none},

		{"ten a second", halfOpenResets, both(grown(resets, 100), grown(passive, 1900)), info},
		{"fewer than ten a second", halfOpenResets, both(grown(resets, 99), grown(passive, 0)), none},
		{"few of what comes", halfOpenResets, both(grown(resets, 100), grown(passive, 1901)), none},
		{"nothing else is known", halfOpenResets, both(grown(resets, 100), noTraffic), info},
		{"resets of our own", halfOpenResets, both(grown(resets, 199), grown(overflows, 100), sysctlIs(abort, "1")), none},
		{"not resets of our own", halfOpenResets, both(grown(resets, 199), grown(overflows, 100), sysctlIs(abort, "0")), info},
	})
}

// beforeToo has all that is half-open be so at the first look.
func beforeToo(_ *observe.Host, n *observe.Netns) {
	n.Listeners[0].HalfOpenBefore = n.Listeners[0].HalfOpen
}

// gaveUpAt is a listener where so many half-open connections have ended, and there are
// as many young ones.
func gaveUpAt(count uint64) change {
	return both(halfOpen(20, uint32(count), 0), gaveUp(tracer.ReasonTimeoutHandshake, count))
}

func TestFloodFacts(t *testing.T) {
	h := watchedHost(both(halfOpen(4096, 161, 160), mode("0"), grown("TcpExt.ListenDrops", 23), grown("TcpExt.TCPReqQFullDrop", 3)))
	f := synFlood.find(h)[0]
	f.Rule = synFlood
	qt.Check(t, qt.DeepEquals(f.Facts, []Fact{
		{"half_open", uint64(161)}, {"synack_retransmitted", uint64(160)}, {"addresses", 7}, {"backlog", uint64(4096)},
		{"opened", uint64(0)}, {"given_up", uint64(0)}, {"pid", uint64(7)}, {"comm", stranger.Comm},
		{"syn_queue_full_dropped", uint64(3)}, {"tcp_syncookies", int64(0)}, {"syns_dropped", uint64(23)},
	}))
	qt.Check(t, qt.Equals(f.Settings()[0].Line, "net.ipv4.tcp_syncookies = 1"))
	h = watchedHost(both(halfOpen(4096, 161, 160), mode("1")))
	f = synFlood.find(h)[0]
	f.Rule = synFlood
	qt.Check(t, qt.Equals(f.Settings()[0].Line, "net.ipv4.tcp_synack_retries = 3"))
}

// The first number is what shows the flood.
func TestFloodSummaries(t *testing.T) {
	other := func(_ *observe.Host, n *observe.Netns) {
		n.Listeners = append(n.Listeners, observe.Listener{Local: far, Backlog: 100})
	}
	const sent = "4,079 SYN cookies sent, 408 a second, 12 came back"
	for _, test := range []struct {
		name, subject, summary string
		change                 change
	}{
		{"cookies", "SYNs", sent, both(cookies(4079, 12), mode("1"))},
		{"cookies at the only listener", "0.0.0.0:80", sent + "; 65 half-open at 0.0.0.0:80, as many as fit", both(cookies(4079, 12), mode("1"), halfOpen(64, 65, 3))},
		{"cookies at the one that is full", "0.0.0.0:80", sent + "; 65 half-open at 0.0.0.0:80, as many as fit", both(cookies(4079, 12), mode("1"), halfOpen(64, 65, 3), other)},
		{"cookies at one of two", "SYNs", sent, both(cookies(4079, 12), mode("1"), halfOpen(64, 3, 3), other)},
		{"cookies and those without an answer", "0.0.0.0:80", sent + "; 65 half-open at 0.0.0.0:80, as many as fit, from 7 addresses, 64 without an answer to their SYN-ACK", both(cookies(4079, 12), mode("1"), halfOpen(64, 65, 64))},
		{"no cookies", "0.0.0.0:80", "161 half-open at 0.0.0.0:80, from 7 addresses, 160 without an answer to their SYN-ACK", both(halfOpen(4096, 161, 160), mode("1"))},
		{"drops", "0.0.0.0:80", "400 SYNs found no room, 40 a second, and 3 connections came to be; 3 half-open at 0.0.0.0:80",
			both(mode("0"), grown("TcpExt.TCPReqQFullDrop", 400), grown("Tcp.PassiveOpens", 3), halfOpen(64, 3, 0))},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := synFlood.find(watchedHost(test.change))[0]
			qt.Check(t, qt.Equals(f.Subject, test.subject))
			qt.Check(t, qt.Equals(f.Summary, test.summary))
		})
	}
}

// Of a burst it is said which listener's it was, if that can be told.
func TestBurstNamesListener(t *testing.T) {
	other := func(_ *observe.Host, n *observe.Netns) {
		n.Listeners = append(n.Listeners, observe.Listener{Local: far, Backlog: 100})
	}
	burst := both(cookies(10, 10), mode("1"))
	for _, test := range []struct {
		name, subject string
		change        change
	}{
		{"none", "half-open connections", burst},
		{"the only one", "0.0.0.0:80", both(burst, halfOpen(4, 0, 0))},
		{"the only one that takes connections", "0.0.0.0:80", both(burst, halfOpen(4, 0, 0), other, opened(23))},
		{"the only one that is half full", "0.0.0.0:80", both(burst, halfOpen(4, 2, 0), other)},
		{"one of two", "half-open connections", both(burst, halfOpen(4, 0, 0), other)},
	} {
		qt.Check(t, qt.Equals(synBacklogSmall.find(watchedHost(test.change))[0].Subject, test.subject), qt.Commentf(test.name))
	}
	// Nothing is made smaller than it is, and nothing set that is so already.
	for _, changes := range []change{burst, both(burst, sysctlIs("net.core.somaxconn", "16384"))} {
		f := synBacklogSmall.find(watchedHost(changes))[0]
		f.Rule = synBacklogSmall
		qt.Check(t, qt.HasLen(f.Settings(), 0))
	}
	f := synBacklogSmall.find(watchedHost(both(burst, sysctlIs("net.core.somaxconn", "128"))))[0]
	qt.Check(t, qt.DeepEquals(f.Sysctls, []Setting{longerBacklog}))
}

// A healthy busy host has nothing that these rules find.
func TestBusyHostOpensWell(t *testing.T) {
	h := watchedHost(both(
		queue(511, 3, 0), opened(100_000), mode("1"), sysctlIs("net.core.somaxconn", "4096"),
		grown("Tcp.PassiveOpens", 100_000), grown("TcpExt.EmbryonicRsts", 200), grown("TcpExt.ListenOverflows", 0),
		grown("TcpExt.ListenDrops", 3), grown("TcpExt.SyncookiesSent", 0), grown("TcpExt.TCPReqQFullDoCookies", 0),
		hanging(2),
		func(h *observe.Host, n *observe.Netns) {
			n.Listeners[0].HalfOpen, n.Listeners[0].Unanswered, n.Listeners[0].HalfOpenPeers = 1200, 900, 800
			f := clients(3000, reasons{tracer.ReasonRefused: 3, tracer.ReasonClosed: 12, tracer.ReasonTimeoutHandshake: 1})
			f = dwell(f, times{3e9: 2, 1e6: 13}, times{1e6: 2970, 1e9: 30})
			h.Traffic.Flows = append(h.Traffic.Flows, f)
		},
	))
	for _, rules := range [][]*Rule{openingRules, listenerRules} {
		for _, r := range rules {
			qt.Check(t, qt.IsNil(found(r, h)), qt.Commentf(r.ID))
		}
	}
}

func lost(n uint64) change {
	return func(h *observe.Host, _ *observe.Netns) { h.Traffic.Lost = n }
}
