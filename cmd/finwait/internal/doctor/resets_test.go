package doctor

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/tracer"
)

const (
	unread  = tracer.ReasonRSTSentUnreadData
	byZero  = tracer.ReasonRSTSentLinger
	late    = tracer.ReasonRSTSentLateData
	byPeer  = tracer.ReasonRSTReceived
	orderly = tracer.ReasonFIN
)

// way is an ending in ESTABLISHED, or of what is usual for the reason.
func way(reason tracer.Reason) tracer.Ending {
	old := tracer.StateEstablished
	if reason == orderly {
		old = tracer.StateLastAck
	}
	return tracer.Ending{Old: old, Reason: reason, Side: tracer.SideLocal}
}

// flow is connections of a server, of which so many ended for the reason, and so many
// others as they should.
func flow(owner observe.Process, reason tracer.Reason, n, others uint64) observe.Flow {
	return observe.Flow{
		FlowKey: observe.FlowKey{Netns: 5, Role: tracer.RoleServer, Owner: owner, Service: service},
		Endings: map[tracer.Ending]uint64{way(reason): n, way(orderly): others},
	}
}

func saw(flows ...observe.Flow) *observe.Host {
	h := watched()
	t := &observe.Traffic{Source: observe.SourceKernel, Since: h.Began, Until: h.Ended, Flows: flows}
	for i := range flows {
		for way, n := range flows[i].Endings {
			t.Endings.Add(way, n)
		}
	}
	h.Traffic = t
	return h
}

// sawAll has the same without flows, as an agent's counters do.
func sawAll(flows ...observe.Flow) *observe.Host {
	h := saw(flows...)
	h.Traffic.Source, h.Traffic.Flows = observe.SourceAgent, nil
	return h
}

// counted is a host on which nobody saw connections end.
func counted(c procnet.Counters) *observe.Host {
	h := watched()
	h.Namespaces[0].Counted = c
	return h
}

// asClient has the same connections opened by the process.
func asClient(f observe.Flow) observe.Flow {
	f.Role, f.Service = tracer.RoleClient, elsewhere
	return f
}

// sampled has one of so many recorded.
func sampled(weight uint64, flows ...observe.Flow) *observe.Host {
	h := saw(flows...)
	h.Traffic.Source, h.Traffic.Estimated, h.Traffic.Weight = observe.SourceLog, true, weight
	return h
}

func changed(f observe.Flow, change func(*observe.Flow)) observe.Flow {
	change(&f)
	return f
}

var nobody observe.Process

var resetTests = []struct {
	name string
	host *observe.Host
	want []string
}{
	{"no flows", saw(), nil},
	{"many clients closed with unread data", saw(asClient(flow(leaker, unread, 10, 990))), []string{"rst-unread-data info"}},
	{"clients and as many servers closed with unread data", saw(asClient(flow(leaker, unread, 10, 0)), flow(leaker, unread, 10, 0)),
		[]string{"rst-unread-data warning"}},
	{"more clients than servers closed with unread data", saw(asClient(flow(leaker, unread, 11, 0)), flow(leaker, unread, 10, 0)),
		[]string{"rst-unread-data info"}},
	{"many clients reset by SO_LINGER", saw(asClient(flow(leaker, byZero, 10, 990))), []string{"linger-zero warning"}},
	{"many in a sample", sampled(10, flow(leaker, unread, 100, 0)), []string{"rst-unread-data warning"}},
	{"a few in a sample", sampled(10, flow(leaker, unread, 99, 0)), nil},
	{"a few resets by peers in a sample", sampled(10, flow(leaker, byPeer, 199, 0)), nil},
	{"a few closed with unread data", saw(flow(leaker, unread, 9, 0)), nil},
	{"many closed with unread data", saw(flow(leaker, unread, 10, 990)), []string{"rst-unread-data warning"}},
	{"a small share closed with unread data", saw(flow(leaker, unread, 10, 991)), nil},
	{"a small share, with TIME_WAIT", saw(changed(flow(leaker, unread, 10, 0), func(f *observe.Flow) { f.TimeWait = 991 })), nil},
	{"many of one process in two flows", saw(flow(leaker, unread, 5, 0), changed(flow(leaker, unread, 5, 0), func(f *observe.Flow) {
		f.Role, f.Service = tracer.RoleClient, elsewhere
	})), []string{"rst-unread-data warning"}},
	{"a few of each process", saw(flow(leaker, unread, 9, 0), flow(another, unread, 9, 0)), nil},
	{"many of a process that is not known", saw(flow(nobody, unread, 10, 0)), []string{"rst-unread-data warning"}},
	{"a few of each service of processes that are not known", saw(flow(nobody, unread, 9, 0), changed(flow(nobody, unread, 9, 0), func(f *observe.Flow) {
		f.Service = elsewhere
	})), nil},
	{"a few half-open ones do not count", saw(changed(flow(leaker, unread, 10, 900), func(f *observe.Flow) {
		f.Endings[tracer.Ending{Old: tracer.StateNewSynRecv, Reason: tracer.ReasonTimeoutHandshake}] = 10_000
	})), []string{"rst-unread-data warning"}},

	{"many reset by SO_LINGER", saw(flow(leaker, byZero, 10, 990)), []string{"linger-zero warning"}},
	{"a few reset by SO_LINGER", saw(flow(leaker, byZero, 9, 0)), nil},
	{"much late data", saw(flow(leaker, late, 10, 990)), []string{"late-data info"}},
	{"some late data", saw(flow(leaker, late, 10, 991)), nil},

	{"many resets by peers", saw(flow(leaker, byPeer, 20, 180)), []string{"peer-resets info"}},
	{"some resets by peers", saw(flow(leaker, byPeer, 20, 181)), nil},
	{"a few resets by peers", saw(flow(leaker, byPeer, 19, 0)), nil},
	{"resets by peers of several workers", saw(flow(leaker, byPeer, 10, 0), flow(another, byPeer, 10, 0)), []string{"peer-resets info"}},
	{"resets by peers in TIME_WAIT", saw(changed(flow(leaker, orderly, 1, 0), func(f *observe.Flow) {
		f.Endings[tracer.Ending{Old: tracer.StateTimeWait, Reason: byPeer}] = 1000
	})), nil},
	{"resets by peers before the handshake was done", saw(changed(flow(leaker, orderly, 1, 0), func(f *observe.Flow) {
		f.Endings[tracer.Ending{Old: tracer.StateSynRecv, Reason: byPeer}] = 1000
		f.Endings[tracer.Ending{Old: tracer.StateNewSynRecv, Reason: byPeer}] = 1000
	})), nil},

	{"agent: many closed with unread data", sawAll(flow(leaker, unread, 10, 990)), []string{"rst-unread-data warning"}},
	{"agent: some closed with unread data", sawAll(flow(leaker, unread, 10, 991)), nil},
	{"agent: many resets by peers", sawAll(flow(leaker, byPeer, 20, 180)), []string{"peer-resets info"}},
	{"agent: some resets by peers", sawAll(flow(leaker, byPeer, 20, 181)), nil},

	{"counters: many closed with unread data", counted(procnet.Counters{"TcpExt.TCPAbortOnClose": 10, "Tcp.ActiveOpens": 500, "Tcp.PassiveOpens": 500}),
		[]string{"rst-unread-data warning"}},
	{"counters: some closed with unread data", counted(procnet.Counters{"TcpExt.TCPAbortOnClose": 10, "Tcp.ActiveOpens": 501, "Tcp.PassiveOpens": 500}), nil},
	{"counters: a few closed with unread data", counted(procnet.Counters{"TcpExt.TCPAbortOnClose": 9}), nil},
	{"counters: many by SO_LINGER or late data", counted(procnet.Counters{"TcpExt.TCPAbortOnData": 10, "Tcp.ActiveOpens": 10}), []string{"linger-zero info"}},
	{"counters: nothing", counted(procnet.Counters{}), nil},
	// What was seen is better than what was counted.
	{"counters beside flows", func() *observe.Host {
		h := saw(flow(leaker, orderly, 1000, 0))
		h.Namespaces[0].Counted = procnet.Counters{"TcpExt.TCPAbortOnClose": 1000, "TcpExt.TCPAbortOnData": 1000, "TcpExt.TCPAbortOnMemory": 1000}
		return h
	}(), nil},
}

func TestResetRules(t *testing.T) {
	for _, tt := range resetTests {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			qt.Check(t, qt.DeepEquals(brief(judge(t, tt.host)), tt.want))
		})
	}
}

func TestResetFacts(t *testing.T) {
	h := saw(changed(flow(leaker, unread, 20, 60), func(f *observe.Flow) {
		f.Endings[tracer.Ending{Old: tracer.StateCloseWait, Reason: unread, Side: tracer.SidePeer}] = 3
		f.TimeWait = 17
	}))
	all := judge(t, h)
	qt.Assert(t, qt.HasLen(all, 1))
	f := &all[0]
	qt.Check(t, qt.Equals(f.Netns, &h.Namespaces[0]))
	qt.Check(t, qt.Equals(f.Subject, hostile+" (23)"))
	qt.Check(t, qt.Equals(f.Summary, hostile+" (23): 23 of 100 (23 %) connections closed with data that was not read"))
	for name, want := range map[string]any{
		"pid": uint64(23), "comm": hostile, "ended": uint64(100), "resets": uint64(23), "resets_per_second": 2.3,
		"resets_percent": 23.0, "in_states": "ESTABLISHED (20), CLOSE_WAIT (3)", "biggest_services": "192.0.2.1:80 (100)",
	} {
		qt.Check(t, qt.Equals(valueOf(t, f, name), want), qt.Commentf("%s", name))
	}
}

// A log tells of namespaces that nobody has looked at.
func TestResetsInLog(t *testing.T) {
	h := saw(flow(leaker, unread, 23, 0))
	h.Namespaces, h.Began, h.Ended = nil, time.Time{}, time.Time{}
	all := judge(t, h)
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Check(t, qt.IsNil(all[0].Netns))
	qt.Check(t, qt.Equals(valueOf(t, &all[0], "netns"), any(uint64(5))))
	qt.Check(t, qt.Equals(all[0].Summary, "netns 5: "+hostile+" (23): 23 of 23 (100 %) connections closed with data that was not read"))

	// The same goes for one that is gone.
	h = saw(flow(leaker, byPeer, 23, 0), dwelt(23, 2*time.Second))
	h.Traffic.Source, h.Namespaces[0].Inode = observe.SourceLog, 7
	all = judge(t, h)
	qt.Assert(t, qt.DeepEquals(brief(all), []string{"slow-close info", "peer-resets info"}))
	for _, f := range all {
		qt.Check(t, qt.Equals(valueOf(t, &f, "netns"), any(uint64(5))))
	}
}

// Those that have reset the most come first, whoever has the most connections.
func TestResetsFolded(t *testing.T) {
	var flows []observe.Flow
	for i := range uint64(23) {
		flows = append(flows, flow(observe.Process{PID: uint32(100 + i), Comm: "x"}, unread, 10+i, 500-20*i))
	}
	all := judge(t, saw(flows...))
	qt.Assert(t, qt.HasLen(all, handful+1))
	qt.Check(t, qt.Equals(all[0].Subject, "x (122)"))
	qt.Check(t, qt.Equals(all[handful-1].Subject, "x (118)"))
}

func TestSampledResets(t *testing.T) {
	all := judge(t, sampled(10, flow(leaker, unread, 200, 300)))
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Check(t, qt.Equals(all[0].Summary, hostile+" (23): about 200 of 500 (40 %) connections closed with data that was not read"))
}

func TestPeerResetsName(t *testing.T) {
	all := judge(t, saw(flow(leaker, byPeer, 23, 0), changed(flow(leaker, byPeer, 29, 0), func(f *observe.Flow) {
		f.Role, f.Service = tracer.RoleClient, elsewhere
	})))
	qt.Assert(t, qt.HasLen(all, 2))
	qt.Check(t, qt.Equals(all[0].Subject, elsewhere.String()))
	qt.Check(t, qt.Equals(all[0].Summary, "29 of 29 (100 %) connections were reset by the peer: those to the service 198.51.100.7:5432"))
	qt.Check(t, qt.Equals(all[1].Subject, service.String()))
	qt.Check(t, qt.Equals(all[1].Summary, "23 of 23 (100 %) connections were reset by the peer: those of clients to 192.0.2.1:80"))
}

// Resets that processes of this host make are told once.
func TestResetsToldOnce(t *testing.T) {
	server := func(n, others uint64) observe.Flow { return flow(leaker, byPeer, n, others) }
	client := func(reason tracer.Reason, n uint64, change func(*observe.Flow)) observe.Flow {
		f := flow(another, reason, n, 0)
		f.Role = tracer.RoleClient
		if change != nil {
			change(&f)
		}
		return f
	}
	elsewhere := func(f *observe.Flow) { f.Netns = 7 }
	onLoopback := func(f *observe.Flow) { f.Service = netip.MustParseAddrPort("127.0.0.1:80") }
	for _, tt := range []struct {
		name  string
		flows []observe.Flow
		want  []string
	}{
		{"unread data", []observe.Flow{server(100, 0), client(unread, 100, nil)}, []string{"rst-unread-data info"}},
		{"SO_LINGER", []observe.Flow{server(100, 0), client(byZero, 100, nil)}, []string{"linger-zero warning"}},
		{"both", []observe.Flow{server(100, 0), client(byZero, 50, nil), client(unread, 50, nil)}, []string{"rst-unread-data info", "linger-zero warning"}},
		{"a server that resets", []observe.Flow{flow(leaker, byZero, 100, 0), client(byPeer, 100, nil)}, []string{"linger-zero warning"}},
		{"IPv4 on an IPv6 socket", []observe.Flow{changed(server(100, 0), func(f *observe.Flow) {
			f.Service = netip.MustParseAddrPort("[::ffff:192.0.2.1]:80")
		}), client(byZero, 100, nil)}, []string{"linger-zero warning"}},
		{"a client in another namespace", []observe.Flow{server(100, 0), client(byZero, 100, elsewhere)}, []string{"linger-zero warning"}},
		{"as many, but for chance", []observe.Flow{server(119, 0), client(byZero, 100, nil)}, []string{"linger-zero warning"}},
		{"many others", []observe.Flow{server(120, 0), client(byZero, 100, nil)}, []string{"linger-zero warning", "peer-resets info"}},
		{"a small share of others", []observe.Flow{server(1020, 0), client(byZero, 1000, nil)}, []string{"linger-zero warning"}},
		{"late data", []observe.Flow{server(100, 0), client(late, 100, nil)}, []string{"late-data info", "peer-resets info"}},
		{"what is not told", []observe.Flow{server(20, 0), client(byZero, 9, nil)}, []string{"peer-resets info"}},
		{"another service", []observe.Flow{server(100, 0), client(byZero, 100, func(f *observe.Flow) { f.Service = peerNo(1) })},
			[]string{"linger-zero warning", "peer-resets info"}},
		{"the same side", []observe.Flow{server(100, 0), flow(another, byZero, 100, 0)}, []string{"linger-zero warning", "peer-resets info"}},
		{"loopback", []observe.Flow{changed(server(100, 0), onLoopback), client(byZero, 100, onLoopback)}, []string{"linger-zero warning"}},
		{"another loopback", []observe.Flow{changed(server(100, 0), onLoopback), client(byZero, 100, func(f *observe.Flow) {
			onLoopback(f)
			elsewhere(f)
		})}, []string{"linger-zero warning", "peer-resets info"}},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			qt.Check(t, qt.DeepEquals(brief(judge(t, saw(tt.flows...))), tt.want))
		})
	}
}

// A host that does a lot, and does it right, is told nothing.
func TestBusyHost(t *testing.T) {
	busy := flow(leaker, byPeer, 0, 60_000)
	busy.TimeWait = 40_000
	for reason, n := range map[tracer.Reason]uint64{unread: 500, byZero: 5, late: 700, byPeer: 3000} {
		busy.Endings[way(reason)] = n
	}
	for range 100_000 {
		busy.CloseWait.Add(200 * time.Microsecond)
	}
	h := saw(busy)
	h.Namespaces[0].Lasting = append(scatter(tracer.StateFinWait1, 300),
		observe.Lasting{State: tracer.StateCloseWait, Owner: leaker, Local: service, Remote: peerNo(1), Sockets: 9, New: 300},
		observe.Lasting{State: tracer.StateCloseWait, Owner: leaker, Local: service, Remote: peerNo(2), Sockets: 40, Unsent: 40},
		observe.Lasting{State: tracer.StateFinWait1, Orphan: true, Local: service, Remote: peerNo(1), Sockets: 200, Unsent: 200, Stalled: 5},
		observe.Lasting{State: tracer.StateFinWait2, Orphan: true, Local: service, Remote: peerNo(1), Sockets: 30, New: 900},
	)
	h.Namespaces[0].Lasting = append(h.Namespaces[0].Lasting, scatter(tracer.StateFinWait2, 600)...)
	h.Namespaces[0].Counted = procnet.Counters{"TcpExt.TCPRcvQDrop": 40, "TcpExt.TCPMemoryPressures": 0, "TcpExt.TCPAbortOnMemory": 0}
	h.Memory = observe.Memory{Pages: 90_000, PressurePages: 100_000, MaxPages: 150_000, PageSize: 4096, Orphans: 500, MaxOrphans: 65536}
	qt.Check(t, qt.DeepEquals(brief(judge(t, h)), nil))
}
