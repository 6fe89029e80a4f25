package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/tracer"
)

var testTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var errBroken = errors.New("broken")

// fakeSource is a source that says what it is told to.
type fakeSource struct {
	gauges   tracer.Gauges
	counters tracer.Counters
	endings  tracer.Endings
	profile  tracer.Profile
	ledger   tracer.Ledger
	audit    tracer.Audit
	stats    tracer.Stats
	evidence tracer.Evidence

	mu     sync.Mutex      // guards what follows
	calls  map[string]int  // of each method
	broken map[string]bool // methods that fail, by the name of the part
}

func newFakeSource() *fakeSource {
	return &fakeSource{evidence: tracer.EvidenceTimer, calls: map[string]int{}, broken: map[string]bool{}}
}

func (f *fakeSource) called(part string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[part]++
	if f.broken[part] {
		return errBroken
	}
	return nil
}

func (f *fakeSource) setBroken(part string, broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken[part] = broken
}

func (f *fakeSource) Gauges(context.Context) (*tracer.Gauges, error) {
	return &f.gauges, f.called("gauges")
}
func (f *fakeSource) Counters() (tracer.Counters, error) { return f.counters, f.called("counters") }
func (f *fakeSource) Endings() (tracer.Endings, error)   { return f.endings, f.called("endings") }
func (f *fakeSource) Profile() (*tracer.Profile, error)  { return &f.profile, f.called("profile") }
func (f *fakeSource) Ledger() (tracer.Ledger, error)     { return f.ledger, f.called("ledger") }
func (f *fakeSource) LastAudit() tracer.Audit            { return f.audit }
func (f *fakeSource) Stats() (*tracer.Stats, error)      { return &f.stats, f.called("stats") }
func (f *fakeSource) Evidence() tracer.Evidence          { return f.evidence }

func histogramOf(times ...time.Duration) (h tracer.Histogram) {
	for _, d := range times {
		h.Add(d)
	}
	return h
}

// fullSource has something of everything.
func fullSource() *fakeSource {
	f := newFakeSource()
	var first, second tracer.StateCounts
	first[tracer.StateEstablished], first[tracer.StateTimeWait], first[tracer.StateNewSynRecv] = 100, 30000, 3
	second[tracer.StateEstablished], second[tracer.StateSynRecv], second[tracer.StateListen] = 11, 2, 5
	f.gauges.Netns = []tracer.NetnsGauges{{Netns: 4026531840, States: first}, {Netns: 4026532000, States: second}}
	for i, t := range tracer.LegalTransitions() {
		f.counters.Add(t, uint64(1000+i))
	}
	f.endings.Add(tracer.Ending{Old: tracer.StateTimeWait, Reason: tracer.ReasonExpired, Side: tracer.SideLocal}, 29)
	f.endings.Add(tracer.Ending{Old: tracer.StateFinWait2, Reason: tracer.ReasonExpired, Side: tracer.SideLocal}, 2)
	f.endings.Add(tracer.Ending{Old: tracer.StateLastAck, Reason: tracer.ReasonFIN, Side: tracer.SidePeer}, 31)
	f.endings.Add(tracer.Ending{Old: tracer.StateNewSynRecv, Reason: tracer.ReasonQueueFull}, 7)
	f.profile = tracer.Profile{By: tracer.ProfileByService, Rows: []tracer.ProfileRow{
		{Key: tracer.ProfileKey{State: tracer.StateEstablished, Value: 443}, Histogram: histogramOf(3*time.Millisecond, 1500*time.Millisecond)},
		{Key: tracer.ProfileKey{State: tracer.StateEstablished, Value: 8080}, Histogram: histogramOf(40 * time.Microsecond)},
		{Key: tracer.ProfileKey{State: tracer.StateEstablished, Group: tracer.GroupClients}, Histogram: histogramOf(100 * time.Hour)},
		{Key: tracer.ProfileKey{State: tracer.StateTimeWait, Value: 443}, Histogram: histogramOf(60*time.Second, 60*time.Second)},
	}}
	f.profile.Rows[3].Unknown = 5
	f.ledger = tracer.Ledger{Seen: 36, Emitted: 30, RingFull: 4, ConnsSeen: 9}
	f.audit = tracer.Audit{
		Time: testTime,
		Differences: []tracer.Difference{
			{Netns: 4026531840, State: tracer.StateTimeWait, Gauge: 10, Kernel: 12},
			{Netns: 4026532000, State: tracer.StateTimeWait, Gauge: 13, Kernel: 12},
			{Netns: 4026532000, State: tracer.StateNewSynRecv, Gauge: 1},
		},
		Gone: []tracer.Difference{{Netns: 4026532111, State: tracer.StateEstablished, Gauge: -4}},
	}
	f.audit.Claimed[tracer.StateListen] = 6
	f.stats = tracer.Stats{
		Programs: []tracer.ProgramStats{
			{Name: "inet_sock_set_state", Runs: 12000, RunTime: 1500 * time.Microsecond, RecursionMisses: 1},
			{Name: "receive_reset"},
		},
		Maps:  []tracer.MapStats{{Name: "matrix", Memory: 4096, MemoryKnown: true}, {Name: "conns"}},
		Rings: []tracer.RingStats{{Name: "events", Size: 8 << 20, HighWater: 4800}},
	}
	return f
}

// brokenSink keeps the transitions that it is given, all but one of a batch, and no
// connection.
type brokenSink struct{}

func (brokenSink) Send(_ context.Context, b *sink.Batch) (sink.Counts, error) {
	return sink.Counts{Transitions: uint64(len(b.Transitions)) - 1}, errBroken
}

func (brokenSink) Close() error { return nil }

// usedQueue returns a queue that has something in each of its counts.
func usedQueue(t testing.TB) *sink.Queue {
	t.Helper()
	q := sink.Start(brokenSink{}, sink.Options{
		Name: "log", Room: sink.Counts{Transitions: 10, Conns: 2}, Batch: sink.Counts{Transitions: 10, Conns: 10},
		Log: discard,
	})
	q.Put(&sink.Batch{Transitions: make([]tracer.Event, 13), Conns: make([]tracer.Conn, 5)})
	if err := q.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return q
}

var discard = slog.New(slog.DiscardHandler)

// newTestCollector returns a collector that says the same whatever built it, and
// takes no census.
func newTestCollector(source Source, opts Options) *Collector {
	if opts.Log == nil {
		opts.Log = discard
	}
	c := New(source, opts)
	c.build = gauge(buildDesc, 1, "v1.2.3", "0123abc", "go1.26.0")
	if c.service != nil {
		c.service.census.take = func(context.Context, *tracer.CensusOptions) (*tracer.Census, error) { return listenerCensus(), nil }
		c.service.census.now = func() time.Time { return testTime }
	}
	if c.cgroups != nil {
		c.cgroups.census.take = func(context.Context, *tracer.CensusOptions) (*tracer.Census, error) { return processCensus(), nil }
		c.cgroups.census.now = func() time.Time { return testTime }
		c.cgroups.pathOf = func(pid uint32) string { return testCgroups[pid] }
	}
	return c
}

func counts(s tracer.State, n uint64) (c tracer.StateCounts) {
	c[s] = n
	return c
}

func listenerCensus() *tracer.Census {
	return &tracer.Census{Time: testTime, By: tracer.ByListener, Groups: []tracer.CensusGroup{
		{Listener: netip.MustParseAddrPort("0.0.0.0:443"), States: counts(tracer.StateEstablished, 7)},
		{Listener: netip.MustParseAddrPort("[::]:443"), States: counts(tracer.StateEstablished, 4)},
		{Listener: netip.MustParseAddrPort("0.0.0.0:22"), States: counts(tracer.StateListen, 1)},
		{States: counts(tracer.StateTimeWait, 2)},
	}, Missed: tracer.CensusMissed{Netns: []tracer.MissedNetns{{Netns: 4026532000}}}}
}

const containerID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// testCgroups are the cgroups of processes. Two are told apart by nothing that can
// be a label.
var testCgroups = map[uint32]string{
	1: "/system.slice/nginx.service",
	2: "/system.slice/nginx.service",
	3: "/kubepods/burstable/pod11111111-2222-3333-4444-555555555555/" + containerID,
	4: "/evil\xff\x1b[31m\"\\",
	5: "/evil\xfe\x1b[31m\"\\",
}

func processCensus() *tracer.Census {
	return &tracer.Census{Time: testTime, By: tracer.ByProcess, Groups: []tracer.CensusGroup{
		{PID: 1, States: counts(tracer.StateEstablished, 7)},
		{PID: 2, States: counts(tracer.StateEstablished, 1)},
		{PID: 3, States: counts(tracer.StateCloseWait, 5)},
		{PID: 4, States: counts(tracer.StateListen, 1)},
		{PID: 5, States: counts(tracer.StateListen, 2)},
		{PID: 6, States: counts(tracer.StateListen, 1)}, // gone since
		{States: counts(tracer.StateTimeWait, 9)},
	}}
}

// gather returns what a registry has that checks all it can.
func gather(t testing.TB, c *Collector) map[string]*dto.MetricFamily {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	for _, f := range families {
		byName[f.GetName()] = f
	}
	return byName
}

// find returns the metric with those label values, in the order of their names.
func find(t testing.TB, f *dto.MetricFamily, values ...string) *dto.Metric {
	t.Helper()
next:
	for _, m := range f.GetMetric() {
		if len(m.GetLabel()) != len(values) {
			continue
		}
		for i, l := range m.GetLabel() {
			if l.GetValue() != values[i] {
				continue next
			}
		}
		return m
	}
	t.Fatalf("%s has none with labels %q", f.GetName(), values)
	return nil
}
