package doctor

import (
	"fmt"
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

// hostile is what a process may call itself.
const hostile = "\x1b[2J\"%s\n\xff"

var (
	leaker  = observe.Process{PID: 23, Comm: hostile}
	another = observe.Process{PID: 29, Comm: "another"}

	service   = netip.MustParseAddrPort("192.0.2.1:80")
	elsewhere = netip.MustParseAddrPort("198.51.100.7:5432")
)

// peerNo is what a server's peers have in common; each has another n.
func peerNo(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)}), 0)
}

// endings are the rules that the tests here are about.
var endings = slices.Concat(closingRules, resetRules, memoryRules)

// judge returns what those rules find, and checks what is true of all of their findings.
func judge(t *testing.T, h *observe.Host) (all []Finding) {
	t.Helper()
	for _, r := range endings {
		for _, f := range r.find(h) {
			f.Rule = r
			all = append(all, f)
			qt.Check(t, qt.IsTrue(f.Severity <= r.Worst), qt.Commentf("%s", r.ID))
			qt.Check(t, qt.Not(qt.Equals(f.Subject, "")), qt.Commentf("%s", r.ID))
			qt.Check(t, qt.Not(qt.Equals(f.Summary, "")), qt.Commentf("%s", r.ID))
			qt.Check(t, qt.IsFalse(strings.Contains(f.Summary, "%!")), qt.Commentf("%s", f.Summary))
			names := map[string]bool{}
			for _, fact := range f.Facts {
				qt.Check(t, qt.IsFalse(names[fact.Name]), qt.Commentf("%s: %s is there twice", r.ID, fact.Name))
				names[fact.Name] = true
			}
		}
	}
	return all
}

// in brief: "close-wait-leak warning".
func brief(all []Finding) (lines []string) {
	for _, f := range all {
		lines = append(lines, f.Rule.ID+" "+f.Severity.String())
	}
	return lines
}

func valueOf(t *testing.T, f *Finding, name string) any {
	t.Helper()
	i := slices.IndexFunc(f.Facts, func(fact Fact) bool { return fact.Name == name })
	qt.Assert(t, qt.IsTrue(i >= 0), qt.Commentf("no %s in %v", name, f.Facts))
	return f.Facts[i].Value
}

func hasFact(f *Finding, name string) bool {
	return slices.ContainsFunc(f.Facts, func(fact Fact) bool { return fact.Name == name })
}

// watched is a host that was watched for ten seconds and has these sockets in one
// network namespace.
func watched(sockets ...observe.Lasting) *observe.Host {
	began := time.Unix(1_700_000_000, 0)
	return &observe.Host{
		Began: began, Ended: began.Add(10 * time.Second),
		Namespaces: []observe.Netns{{Inode: 5, Lasting: sockets}},
	}
}

// closeWaits are sockets of a server in CLOSE_WAIT.
func closeWaits(n int, owner observe.Process) observe.Lasting {
	return observe.Lasting{State: tracer.StateCloseWait, Owner: owner, Local: service, Remote: peerNo(1), Sockets: n}
}

func orphansIn(state tracer.State, n, peer int) observe.Lasting {
	l := observe.Lasting{State: state, Orphan: true, Local: service, Remote: peerNo(peer), Sockets: n}
	if state != tracer.StateFinWait2 {
		l.Stalled, l.Retransmitted = n, n
	}
	return l
}

// scatter are as many sockets of peers that have one each.
func scatter(state tracer.State, n int) (all []observe.Lasting) {
	for i := range n {
		all = append(all, orphansIn(state, 1, i))
	}
	return all
}

func with(l observe.Lasting, change func(*observe.Lasting)) observe.Lasting {
	change(&l)
	return l
}

var closingTests = []struct {
	name string
	host *observe.Host
	want []string
}{
	{"nothing", &observe.Host{}, nil},
	{"a few in CLOSE_WAIT", watched(closeWaits(9, leaker)), nil},
	{"many in CLOSE_WAIT", watched(closeWaits(10, leaker)), []string{"close-wait-leak warning"}},
	{"many that have something to send", watched(with(closeWaits(1000, leaker), func(l *observe.Lasting) { l.Unsent = 991 })), nil},
	{"many that pass", watched(with(closeWaits(9, leaker), func(l *observe.Lasting) { l.New = 500 })), nil},
	{"many that wait to be accepted", watched(with(closeWaits(1000, observe.Process{}), func(l *observe.Lasting) { l.Orphan = true })), nil},
	{"many of one process in two places", watched(
		closeWaits(5, leaker), observe.Lasting{State: tracer.StateCloseWait, Owner: leaker, Remote: elsewhere, Sockets: 5},
	), []string{"close-wait-leak warning"}},
	{"a few of each process", watched(closeWaits(9, leaker), closeWaits(9, another)), nil},
	{"many of each process", watched(closeWaits(10, leaker), closeWaits(11, another)),
		[]string{"close-wait-leak warning", "close-wait-leak warning"}},
	{"many of a process that is not known", watched(closeWaits(10, observe.Process{})), []string{"close-wait-leak warning"}},
	{"a few in each place of processes that are not known", watched(
		closeWaits(9, observe.Process{}), observe.Lasting{State: tracer.StateCloseWait, Remote: elsewhere, Sockets: 9},
	), nil},

	{"a few orphans in FIN_WAIT2", watched(orphansIn(tracer.StateFinWait2, 49, 1)), nil},
	{"many orphans in FIN_WAIT2", watched(orphansIn(tracer.StateFinWait2, 50, 1)), []string{"fin-wait2-orphans warning"}},
	{"orphans of many peers", watched(scatter(tracer.StateFinWait2, 999)...), nil},
	{"orphans of very many peers", watched(scatter(tracer.StateFinWait2, 1000)...), []string{"fin-wait2-orphans info"}},
	{"orphans of very many peers, and a tenth of one", watched(append(scatter(tracer.StateFinWait2, 900), orphansIn(tracer.StateFinWait2, 99, 0))...),
		[]string{"fin-wait2-orphans warning"}},
	{"orphans of very many peers, and less of one", watched(append(scatter(tracer.StateFinWait2, 900), orphansIn(tracer.StateFinWait2, 98, 0))...),
		[]string{"fin-wait2-orphans info"}},
	{"orphans of very many peers near the limit", func() *observe.Host {
		h := watched(scatter(tracer.StateFinWait2, 1000)...)
		h.Namespaces[0].MiniSockets, h.Namespaces[0].Sysctls = 1000, sysctl.Values{"net.ipv4.tcp_max_tw_buckets": "1250"}
		return h
	}(), []string{"fin-wait2-orphans warning"}},
	{"orphans that pass", watched(with(orphansIn(tracer.StateFinWait2, 1, 1), func(l *observe.Lasting) { l.New = 5000 })), nil},
	{"a few held in FIN_WAIT2", watched(with(closeWaits(19, leaker), inFinWait2)), nil},
	{"many held in FIN_WAIT2", watched(with(closeWaits(20, leaker), inFinWait2)), []string{"fin-wait2-held warning"}},
	{"many held in FIN_WAIT2 by two", watched(with(closeWaits(19, leaker), inFinWait2), with(closeWaits(19, another), inFinWait2)), nil},

	{"a few that stall in FIN_WAIT1", watched(orphansIn(tracer.StateFinWait1, 19, 1)), nil},
	{"many that stall in FIN_WAIT1", watched(orphansIn(tracer.StateFinWait1, 20, 1)), []string{"fin-wait1-pileup warning"}},
	{"many that go on in FIN_WAIT1", watched(with(orphansIn(tracer.StateFinWait1, 5000, 1), func(l *observe.Lasting) { l.Stalled = 19 })), nil},
	{"many that stall in FIN_WAIT1 and CLOSING", watched(orphansIn(tracer.StateFinWait1, 10, 1), orphansIn(tracer.StateClosing, 10, 1)),
		[]string{"fin-wait1-pileup warning"}},
	{"stalled ones of many peers", watched(scatter(tracer.StateFinWait1, 999)...), nil},
	{"stalled ones of very many peers", watched(scatter(tracer.StateFinWait1, 1000)...), []string{"fin-wait1-pileup warning"}},
	{"stalled ones that are a tenth", busy(10_000, 0, scatter(tracer.StateFinWait1, 1000)), []string{"fin-wait1-pileup warning"}},
	{"stalled ones that are less", busy(10_001, 0, scatter(tracer.StateFinWait1, 1000)), []string{"fin-wait1-pileup info"}},
	{"stalled ones in LAST_ACK that are less", busy(10_001, 10_001, scatter(tracer.StateLastAck, 1000)), []string{"last-ack-pileup info"}},
	{"stalled ones that are a tenth of the limit", busy(10_001, 10_000, scatter(tracer.StateLastAck, 1000)), []string{"last-ack-pileup warning"}},
	{"stalled ones that are less, and many of one peer", busy(10_001, 0, []observe.Lasting{orphansIn(tracer.StateFinWait1, 20, 1)}),
		[]string{"fin-wait1-pileup warning"}},
	{"a few that stall in LAST_ACK", watched(orphansIn(tracer.StateLastAck, 19, 1)), nil},
	{"many that stall in LAST_ACK", watched(orphansIn(tracer.StateLastAck, 20, 1)), []string{"last-ack-pileup warning"}},
	{"stalled ones in two states", watched(orphansIn(tracer.StateLastAck, 19, 1), orphansIn(tracer.StateFinWait1, 19, 1)), nil},
}

// busy has so many sockets in ESTABLISHED besides, and a limit of orphans.
func busy(established, maxOrphans uint64, sockets []observe.Lasting) *observe.Host {
	h := watched(sockets...)
	h.Namespaces[0].States[tracer.StateEstablished], h.Memory.MaxOrphans = established, maxOrphans
	return h
}

// What is there at both looks of a short watch may be on its way.
func TestLasts(t *testing.T) {
	for _, sockets := range []observe.Lasting{
		closeWaits(23, leaker), with(closeWaits(23, leaker), inFinWait2), orphansIn(tracer.StateFinWait2, 53, 1),
		orphansIn(tracer.StateFinWait1, 23, 1), orphansIn(tracer.StateLastAck, 23, 1),
	} {
		h := watched(sockets)
		h.Ended = h.Began.Add(lasts)
		qt.Check(t, qt.HasLen(judge(t, h), 1), qt.Commentf("%v", sockets.State))
		h.Ended = h.Ended.Add(-time.Millisecond)
		qt.Check(t, qt.HasLen(judge(t, h), 0), qt.Commentf("%v", sockets.State))
	}
}

func inFinWait2(l *observe.Lasting) { l.State = tracer.StateFinWait2 }

func TestClosingRules(t *testing.T) {
	for _, tt := range closingTests {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			qt.Check(t, qt.DeepEquals(brief(judge(t, tt.host)), tt.want))
		})
	}
}

// A leak is critical when the process has few files left.
func TestLeakedFiles(t *testing.T) {
	tests := []struct {
		open, limit int
		want        Severity
	}{{79, 100, Warning}, {80, 100, Critical}, {100, 100, Critical}}
	for _, tt := range tests {
		h := watched(closeWaits(10, leaker))
		h.Files = map[uint32]observe.Files{leaker.PID: {Open: tt.open, Limit: uint64(tt.limit)}}
		all := judge(t, h)
		qt.Assert(t, qt.HasLen(all, 1))
		qt.Check(t, qt.Equals(all[0].Severity, tt.want))
		qt.Check(t, qt.Equals(valueOf(t, &all[0], "files_open").(uint64), uint64(tt.open)))
		qt.Check(t, qt.IsFalse(hasFact(&all[0], "limit_reached_in_seconds")))
	}
}

// How fast a leak grows is told as far as it is known: as many as have come, and have not
// taken the place of others.
func TestLeakGrows(t *testing.T) {
	leak := with(closeWaits(10, leaker), func(l *observe.Lasting) { l.New = 30 })
	others := with(closeWaits(3, another), func(l *observe.Lasting) { l.New = 7 })
	tests := []struct {
		before uint64 // in CLOSE_WAIT at the first look
		want   float64
	}{{13, 3}, {23, 2}, {42, 0.1}, {43, 0}, {1000, 0}}
	for _, tt := range tests {
		h := watched(leak, others)
		h.Namespaces[0].StatesBefore[tracer.StateCloseWait] = tt.before
		h.Files = map[uint32]observe.Files{leaker.PID: {Open: 40, Limit: 100}}
		all := judge(t, h)
		qt.Assert(t, qt.HasLen(all, 1))
		if tt.want == 0 {
			qt.Check(t, qt.IsFalse(hasFact(&all[0], "grown_per_second")))
			qt.Check(t, qt.IsFalse(hasFact(&all[0], "limit_reached_in_seconds")))
			continue
		}
		qt.Check(t, qt.Equals(valueOf(t, &all[0], "grown_per_second").(float64), tt.want))
		qt.Check(t, qt.Equals(valueOf(t, &all[0], "limit_reached_in_seconds").(float64), 60/tt.want))
	}
}

// What to change goes by whether the process looks at its connections.
func TestLeakKinds(t *testing.T) {
	for unread, want := range map[int]string{0: "does not close on some path", 11: "does not close on some path", 12: "nobody looks", 23: "nobody looks"} {
		all := judge(t, watched(with(closeWaits(23, leaker), func(l *observe.Lasting) { l.UnreadEnd = unread })))
		qt.Assert(t, qt.HasLen(all, 1))
		advice := all[0].Advice()
		qt.Check(t, qt.StringContains(advice[0], want))
		qt.Check(t, qt.HasLen(advice, 2))
		for _, text := range append(advice, closeWaitLeak.Application...) {
			checkText(t, text, true)
			qt.Check(t, qt.IsFalse(strings.Contains(text, "unread_end")), qt.Commentf("%s", text))
		}
		qt.Check(t, qt.Equals(valueOf(t, &all[0], "biggest_peers").(string), "198.51.0.1 (23)"))
		qt.Check(t, qt.Equals(valueOf(t, &all[0], "biggest_locals").(string), "192.0.2.1:80 (23)"))
	}
}

// A leak says whose it is, where, and how long it goes well.
func TestLeakSummary(t *testing.T) {
	grows := with(closeWaits(89, leaker), func(l *observe.Lasting) { l.New = 131 })
	client := observe.Lasting{State: tracer.StateCloseWait, Owner: leaker, Local: peerNo(1), Remote: elsewhere, Sockets: 23}
	unknown := closeWaits(23, observe.Process{})
	for _, tt := range []struct {
		sockets     []observe.Lasting
		open, limit int // 0 if they are not known
		want        string
	}{
		{[]observe.Lasting{grows}, 548, 20000, hostile + " (23) at 192.0.2.1:80: 89 connections not closed for all of 6.5 s, 220 in CLOSE_WAIT now, 20 more a second; out of descriptors in 16 min (548 of 20,000 open)"},
		{[]observe.Lasting{grows}, 0, 0, hostile + " (23) at 192.0.2.1:80: 89 connections not closed for all of 6.5 s, 220 in CLOSE_WAIT now, 20 more a second"},
		{[]observe.Lasting{grows}, 100, 100, hostile + " (23) at 192.0.2.1:80: 89 connections not closed for all of 6.5 s, 220 in CLOSE_WAIT now, 20 more a second; out of descriptors (100 of 100 open)"},
		{[]observe.Lasting{client, closeWaits(22, leaker)}, 0, 0, hostile + " (23) to 198.51.100.7:5432: 45 connections not closed for all of 6.5 s" + watchLonger},
		{[]observe.Lasting{unknown}, 0, 0, "an unknown process at 192.0.2.1:80: 23 connections not closed for all of 6.5 s" + watchLonger},
		{[]observe.Lasting{closeWaits(23, leaker)}, 79, 100, hostile + " (23) at 192.0.2.1:80: 23 connections not closed for all of 6.5 s; 79 of 100 descriptors open" + watchLonger},
	} {
		h := watched(tt.sockets...)
		h.Ended = h.Began.Add(6550 * time.Millisecond)
		for _, l := range tt.sockets {
			h.Namespaces[0].StatesBefore[tracer.StateCloseWait] += uint64(l.Sockets)
		}
		if tt.limit > 0 {
			h.Files = map[uint32]observe.Files{leaker.PID: {Open: tt.open, Limit: uint64(tt.limit)}}
		}
		all := judge(t, h)
		qt.Assert(t, qt.HasLen(all, 1))
		qt.Check(t, qt.Equals(all[0].Summary, tt.want))
	}
}

// A short watch does not tell a process that works from one that has forgotten.
func TestMayBeAtWork(t *testing.T) {
	grows := func(l *observe.Lasting) { l.New = 1 }
	unseen := func(l *observe.Lasting) { l.UnreadEnd = 12 }
	for _, tt := range []struct {
		sockets observe.Lasting
		watched time.Duration
		want    Severity
	}{
		{closeWaits(23, leaker), young - 1, Info},
		{closeWaits(23, leaker), young, Warning},
		{with(closeWaits(23, leaker), grows), young - 1, Warning},
		{with(closeWaits(23, leaker), unseen), young - 1, Warning},
		{with(closeWaits(23, leaker), inFinWait2), young - 1, Info},
		{with(closeWaits(23, leaker), inFinWait2), young, Warning},
		{with(with(closeWaits(23, leaker), inFinWait2), grows), young - 1, Warning},
	} {
		h := watched(tt.sockets)
		h.Ended = h.Began.Add(tt.watched)
		h.Namespaces[0].StatesBefore[tt.sockets.State] = 23
		all := judge(t, h)
		qt.Assert(t, qt.HasLen(all, 1))
		qt.Check(t, qt.Equals(all[0].Severity, tt.want), qt.Commentf("%+v, %v", tt.sockets, tt.watched))
		qt.Check(t, qt.Equals(strings.HasSuffix(all[0].Summary, watchLonger), tt.want == Info), qt.Commentf("%s", all[0].Summary))
	}

	h := watched(closeWaits(23, leaker)) // near the limit it does not matter
	h.Ended = h.Began.Add(young - 1)
	h.Files = map[uint32]observe.Files{leaker.PID: {Open: 80, Limit: 100}}
	all := judge(t, h)
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Check(t, qt.Equals(all[0].Severity, Critical))
}

// Of orphans whose other ends are on this host, those are to be looked at.
func TestOrphansOfThisHost(t *testing.T) {
	server := orphansIn(tracer.StateFinWait2, 53, 1) // of a server at service
	client := observe.Lasting{State: tracer.StateFinWait2, Orphan: true, Local: peerNo(1), Remote: elsewhere, Sockets: 53}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(elsewhere.Addr().As16()), elsewhere.Port())
	closeWait := func(local, remote netip.AddrPort) observe.Lasting {
		return observe.Lasting{State: tracer.StateCloseWait, Owner: leaker, Local: local, Remote: remote, Sockets: 3}
	}
	loopback := with(client, func(l *observe.Lasting) { l.Remote = netip.MustParseAddrPort("[::ffff:127.0.0.1]:80") })
	for i, tt := range []struct {
		orphans   observe.Lasting
		elsewhere observe.Lasting // in another namespace
		here      bool
	}{
		{orphans: server},
		{orphans: client},
		{orphans: loopback, here: true},
		{orphans: server, elsewhere: closeWait(peerNo(1), service), here: true},
		{orphans: client, elsewhere: closeWait(elsewhere, peerNo(1)), here: true},
		{orphans: client, elsewhere: closeWait(mapped, peerNo(1)), here: true},
		{orphans: client, elsewhere: closeWait(elsewhere, peerNo(2))},
		{orphans: client, elsewhere: closeWait(service, peerNo(1))},
		{orphans: client, elsewhere: with(closeWait(elsewhere, peerNo(1)), inFinWait2)},
	} {
		h := watched(tt.orphans)
		h.Namespaces[0].Sysctls = sysctl.Values{"net.ipv4.tcp_fin_timeout": "60"}
		h.Namespaces = append(h.Namespaces, observe.Netns{Inode: 7, Lasting: []observe.Lasting{tt.elsewhere}})
		all := judge(t, h)
		qt.Assert(t, qt.HasLen(all, 1))
		qt.Check(t, qt.Equals(strings.Contains(all[0].Advice()[0], "on this host, and"), tt.here), qt.Commentf("%d", i))
		qt.Check(t, qt.Equals(len(all[0].Settings()) == 0, tt.here), qt.Commentf("%d", i))
		qt.Check(t, qt.IsTrue(hasFact(&all[0], "tcp_fin_timeout_seconds")))
	}
}

// There are no more findings than fit on a screen.
func TestLeaksFolded(t *testing.T) {
	var leaks []observe.Lasting
	for i := range 23 {
		leaks = append(leaks, closeWaits(10+i, observe.Process{PID: uint32(100 + i), Comm: "x"}))
	}
	all := judge(t, watched(leaks...))
	qt.Assert(t, qt.HasLen(all, handful+1))
	qt.Check(t, qt.Equals(all[0].Subject, "x (122)"))
	qt.Check(t, qt.Equals(all[handful].Summary, "the same is true of 18 other processes"))
	qt.Check(t, qt.Equals(all[handful].Netns.Inode, uint32(5)))
	all[handful].Rule = finWait1PileUp // which has settings, for those that are not folded
	qt.Check(t, qt.HasLen(all[handful].Settings(), 0))
	qt.Check(t, qt.HasLen(judge(t, watched(leaks[:handful+1]...)), handful+1))
}

// The values that are recommended go by those that are set.
func TestClosingSysctls(t *testing.T) {
	tests := []struct {
		name, value string
		sockets     observe.Lasting
		want        []string
	}{
		{"net.ipv4.tcp_fin_timeout", "60", orphansIn(tracer.StateFinWait2, 50, 1), []string{"net.ipv4.tcp_fin_timeout = 30"}},
		{"net.ipv4.tcp_fin_timeout", "15", orphansIn(tracer.StateFinWait2, 50, 1), []string{"net.ipv4.tcp_fin_timeout = 10"}},
		{"net.ipv4.tcp_fin_timeout", "10", orphansIn(tracer.StateFinWait2, 50, 1), nil},
		{"", "", orphansIn(tracer.StateFinWait2, 50, 1), []string{"net.ipv4.tcp_fin_timeout = 30"}},
		{"net.ipv4.tcp_orphan_retries", "0", orphansIn(tracer.StateFinWait1, 20, 1), []string{"net.ipv4.tcp_orphan_retries = 6"}},
		{"net.ipv4.tcp_orphan_retries", "6", orphansIn(tracer.StateLastAck, 20, 1), nil},
		{"net.ipv4.tcp_orphan_retries", "7", orphansIn(tracer.StateLastAck, 20, 1), []string{"net.ipv4.tcp_orphan_retries = 6"}},
		// The peer answers: its window is closed.
		{"net.ipv4.tcp_orphan_retries", "0", with(orphansIn(tracer.StateFinWait1, 20, 1), func(l *observe.Lasting) { l.Retransmitted = 0 }), nil},
		{"net.ipv4.tcp_orphan_retries", "0", with(orphansIn(tracer.StateFinWait1, 20, 1), func(l *observe.Lasting) { l.Orphan, l.Owner = false, leaker }), nil},
	}
	for _, tt := range tests {
		h := watched(tt.sockets)
		h.Namespaces[0].Sysctls = sysctl.Values{tt.name: tt.value}
		all := judge(t, h)
		qt.Assert(t, qt.HasLen(all, 1))
		var lines []string
		for _, s := range all[0].Settings() {
			lines = append(lines, s.Line)
		}
		qt.Check(t, qt.DeepEquals(lines, tt.want), qt.Commentf("%s = %s", tt.name, tt.value))
	}
}

func TestPilesName(t *testing.T) {
	all := judge(t, watched(orphansIn(tracer.StateFinWait1, 23, 1), orphansIn(tracer.StateFinWait1, 5, 2)))
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Check(t, qt.Equals(all[0].Subject, "198.51.0.1"))
	qt.Check(t, qt.Equals(all[0].Summary,
		"28 sockets in FIN_WAIT1 or CLOSING whose peers acknowledge nothing: 2 peers, of which 198.51.0.1 has 23"))
	all = judge(t, watched(scatter(tracer.StateLastAck, 1000)...))
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Check(t, qt.Equals(all[0].Subject, "many peers"))
	qt.Check(t, qt.Equals(valueOf(t, &all[0], "peers").(int), 1000))
	all = judge(t, watched(observe.Lasting{State: tracer.StateFinWait2, Orphan: true, Remote: elsewhere, Sockets: 53}))
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Check(t, qt.Equals(all[0].Subject, elsewhere.String()))
}

// dwelt is a flow whose sockets left CLOSE_WAIT after these times.
func dwelt(n int, d time.Duration) observe.Flow {
	f := observe.Flow{FlowKey: observe.FlowKey{Netns: 5, Role: tracer.RoleServer, Owner: leaker, Service: service}}
	for range n {
		f.CloseWait.Add(d)
	}
	return f
}

func TestSlowClose(t *testing.T) {
	tests := []struct {
		flow observe.Flow
		want []string
	}{
		{dwelt(20, 1100*time.Millisecond), []string{"slow-close info"}},
		{dwelt(19, 1100*time.Millisecond), nil},
		{dwelt(1000, 990*time.Millisecond), nil},
		{func() observe.Flow { f := dwelt(19, time.Minute); f.CloseWait.Unknown = 100; return f }(), nil},
	}
	for i, tt := range tests {
		h := watched()
		h.Traffic = &observe.Traffic{Flows: []observe.Flow{tt.flow}}
		all := judge(t, h)
		qt.Check(t, qt.DeepEquals(brief(all), tt.want), qt.Commentf("%d", i))
		if tt.want != nil {
			qt.Check(t, qt.Equals(all[0].Netns, &h.Namespaces[0]))
			qt.Check(t, qt.StringContains(all[0].Subject, hostile))
		}
	}
}

// Those of the most connections come first, and a process without a name has its number.
func TestSlowCloses(t *testing.T) {
	h := watched()
	h.Traffic = &observe.Traffic{}
	for i := range 23 {
		f := dwelt(20+i, 2*time.Second)
		f.Owner = observe.Process{PID: uint32(100 + i)}
		h.Traffic.Flows = append(h.Traffic.Flows, f)
	}
	all := judge(t, h)
	qt.Assert(t, qt.HasLen(all, handful+1))
	qt.Check(t, qt.Equals(all[0].Subject, "process 122"))
	qt.Check(t, qt.StringContains(all[0].Summary, " half of 42 connections"))

	// What stands for many was seen once.
	h.Traffic.Estimated, h.Traffic.Weight = true, 2
	all = judge(t, h)
	qt.Assert(t, qt.HasLen(all, 3))
	qt.Check(t, qt.StringContains(all[0].Summary, " half of about 42 connections"))
}

// Every rule says all there is to say.
func TestEndingRulesAreComplete(t *testing.T) {
	for _, r := range endings {
		for what, text := range map[string]string{
			"title": r.Title, "when": r.When, "why": r.Why, "check": r.Check,
			"application": fmt.Sprint(r.Application), "useless": fmt.Sprint(r.Useless), "references": fmt.Sprint(r.References),
		} {
			qt.Check(t, qt.IsTrue(len(text) > len("[]")), qt.Commentf("%s has no %s", r.ID, what))
		}
	}
}
