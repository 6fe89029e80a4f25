package otlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/tracer"
)

// source is a tracer that has counted what the test says.
type source struct {
	counters tracer.Counters
	endings  tracer.Endings
	gauges   tracer.Gauges
	audit    tracer.Audit
	ledger   tracer.Ledger
	profile  tracer.Profile
	err      error // of everything that can have one
}

func (s *source) Counters() (tracer.Counters, error)             { return s.counters, s.err }
func (s *source) Endings() (tracer.Endings, error)               { return s.endings, s.err }
func (s *source) Gauges(context.Context) (*tracer.Gauges, error) { return &s.gauges, s.err }
func (s *source) LastAudit() tracer.Audit                        { return s.audit }
func (s *source) Ledger() (tracer.Ledger, error)                 { return s.ledger, s.err }
func (s *source) Profile() (*tracer.Profile, error)              { return &s.profile, s.err }

var _ Source = (*tracer.Tracer)(nil)

// newSource returns one that has something of everything.
func newSource() *source {
	s := &source{}
	s.counters.Add(tracer.Transition{Old: tracer.StateFinWait2, New: tracer.StateTimeWait}, 7)
	s.endings.Add(tracer.Ending{Old: tracer.StateTimeWait, Reason: tracer.ReasonExpired, Side: tracer.SideLocal}, 3)
	s.gauges.Netns = make([]tracer.NetnsGauges, 2)
	s.gauges.Netns[0].States[tracer.StateEstablished] = 5
	s.gauges.Netns[1].States[tracer.StateEstablished] = 6
	s.gauges.Netns[1].States[tracer.StateSynRecv] = 1
	s.gauges.Netns[1].States[tracer.StateNewSynRecv] = 2
	s.audit = tracer.Audit{Time: testTime, Differences: []tracer.Difference{
		{Netns: 1, State: tracer.StateEstablished, Gauge: 4, Kernel: 6}, {Netns: 2, State: tracer.StateEstablished, Gauge: 9, Kernel: 8},
	}}
	s.profile.Since = testTime.Add(-time.Hour)
	s.profile.Rows = make([]tracer.ProfileRow, 3)
	for i := range s.profile.Rows {
		s.profile.Rows[i].Key = tracer.ProfileKey{State: tracer.StateTimeWait, Value: uint64(i)}
	}
	s.profile.Rows[2].Key.State = tracer.StateListen
	s.profile.Rows[2].Unknown = 4
	for i, d := range []time.Duration{60*time.Second + 1, 61 * time.Second, 1500 * time.Millisecond, 300 * time.Nanosecond} {
		s.profile.Rows[i%2].Add(d)
	}
	fields := reflect.ValueOf(&s.ledger).Elem()
	for i := range fields.NumField() {
		fields.Field(i).SetUint(uint64(1000 + i))
	}
	return s
}

func newTestMetrics(t *testing.T, from Source, opts MetricOptions, env ...string) *Metrics {
	t.Helper()
	if opts.Log == nil {
		opts.Log = quiet()
	}
	m, err := NewMetrics(read(t, env...), from, opts)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { _ = m.Close() })
	m.client.firstWait = time.Millisecond
	return m
}

// points are all data points, written as name{key=value,...} with sorted keys.
func points(all pmetric.Metrics) map[string]any {
	out := map[string]any{}
	name := func(m pmetric.Metric, attributes pcommon.Map) string {
		return m.Name() + strings.Replace(fmt.Sprint(attributes.AsRaw()), "map", "", 1) // fmt sorts
	}
	for _, of := range all.ResourceMetrics().All() {
		for _, in := range of.ScopeMetrics().All() {
			for _, m := range in.Metrics().All() {
				switch m.Type() {
				case pmetric.MetricTypeSum:
					for _, p := range m.Sum().DataPoints().All() {
						out[name(m, p.Attributes())] = p.IntValue()
					}
				case pmetric.MetricTypeGauge:
					for _, p := range m.Gauge().DataPoints().All() {
						out[name(m, p.Attributes())] = p.IntValue()
					}
				case pmetric.MetricTypeExponentialHistogram:
					for _, p := range m.ExponentialHistogram().DataPoints().All() {
						out[name(m, p.Attributes())] = p
					}
				}
			}
		}
	}
	return out
}

// checkSource compares points with what newSource has.
func checkSource(t *testing.T, got map[string]any) {
	t.Helper()
	for name, want := range map[string]int64{
		"system.network.connection.count[network.connection.state:established network.transport:tcp]":  11,
		"system.network.connection.count[network.connection.state:syn_received network.transport:tcp]": 3,
		"system.network.connection.count[network.connection.state:listen network.transport:tcp]":       0,
		"finwait.half_open[]": 2,
		"finwait.transitions[finwait.new_state:TIME_WAIT finwait.old_state:FIN_WAIT2]":           7,
		"finwait.transitions[finwait.new_state:CLOSE finwait.old_state:CLOSING]":                 0,
		"finwait.endings[finwait.old_state:TIME_WAIT finwait.reason:expired finwait.side:local]": 3,
		"finwait.ledger[finwait.entry:seen]":                                                     1000,
		"finwait.ledger[finwait.entry:syn_cookies]":                                              int64(fieldNumber("SYNCookies") + 1000),
		"finwait.ledger[finwait.entry:conns_partial]":                                            int64(fieldNumber("ConnsPartial") + 1000),
		"finwait.drift[network.connection.state:established network.transport:tcp]":              3,
		"finwait.drift[network.connection.state:time_wait network.transport:tcp]":                0,
		"finwait.dwell.unknown[finwait.state:LISTEN]":                                            4,
		"finwait.dwell.unknown[finwait.state:TIME_WAIT]":                                         0,
	} {
		qt.Check(t, qt.Equals(got[name], any(want)), qt.Commentf("%s", name))
	}
	p, ok := got["finwait.dwell[finwait.state:TIME_WAIT]"].(pmetric.ExponentialHistogramDataPoint)
	qt.Assert(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(p.Count(), 4))
	qt.Check(t, qt.IsTrue(math.Abs(p.Sum()-122.500000301) < 1e-9), qt.Commentf("%v", p.Sum()))
	qt.Check(t, qt.Equals(p.Max(), 61))
	qt.Check(t, qt.Equals(p.Scale(), 0))
	// 300 ns are between 2^-22 s (238 ns) and 2^-21, the others in the 1 and the
	// 32 seconds' bucket.
	qt.Check(t, qt.Equals(p.Positive().Offset(), -22))
	counts := make([]uint64, 22+6)
	counts[0], counts[22], counts[22+5] = 1, 1, 2
	qt.Check(t, qt.DeepEquals(p.Positive().BucketCounts().AsRaw(), counts))
}

func fieldNumber(name string) int {
	field, _ := reflect.TypeFor[tracer.Ledger]().FieldByName(name)
	return field.Index[0]
}

func TestCollect(t *testing.T) {
	start := testTime.Add(-time.Hour)
	q := sink.Start(newTestLogs(t), sink.Options{
		Name: "otlp", Room: sink.Counts{Transitions: 5, Conns: 5}, Batch: sink.Counts{Transitions: 10, Conns: 10}, Delay: time.Hour, Log: quiet(),
	})
	q.Put(&newWorkload(7, 2).Batch)
	m := newTestMetrics(t, newSource(), MetricOptions{Version: "v1", Start: start, Since: start, Queues: []*sink.Queue{q}, Logs: newTestLogs(t)})
	all, err := m.collect(t.Context())
	qt.Assert(t, qt.IsNil(err))
	got := points(all)
	checkSource(t, got)
	for name, want := range map[string]int64{
		"finwait.sink.records[finwait.outcome:queue_full finwait.record:transition finwait.sink:otlp]": 2,
		"finwait.sink.records[finwait.outcome:kept finwait.record:connection finwait.sink:otlp]":       0,
		"finwait.sink.queue[finwait.record:transition finwait.sink:otlp]":                              5,
		"finwait.sink.queue[finwait.record:connection finwait.sink:otlp]":                              2,
		"finwait.otlp.unconfirmed[]": 0,
	} {
		qt.Check(t, qt.Equals(got[name], any(want)), qt.Commentf("%s", name))
	}
	entries, transitions := 0, 0
	for name := range got {
		if strings.HasPrefix(name, "finwait.ledger[") {
			entries++
		}
		if strings.HasPrefix(name, "finwait.transitions[") {
			transitions++
		}
	}
	qt.Check(t, qt.Equals(entries, reflect.TypeFor[tracer.Ledger]().NumField()))
	qt.Check(t, qt.Equals(transitions, len(tracer.LegalTransitions())))

	of := all.ResourceMetrics().At(0)
	name, _ := of.Resource().Attributes().Get("service.name")
	qt.Check(t, qt.Equals(name.Str(), "finwait"))
	qt.Check(t, qt.Equals(of.ScopeMetrics().At(0).Scope().Name(), "github.com/finwait/finwait"))
	for _, metric := range of.ScopeMetrics().At(0).Metrics().All() {
		qt.Check(t, qt.IsTrue(metric.Unit() != "" && metric.Description() != ""), qt.Commentf("%s", metric.Name()))
		if metric.Type() != pmetric.MetricTypeSum {
			continue
		}
		for _, p := range metric.Sum().DataPoints().All() {
			qt.Check(t, qt.IsTrue(p.StartTimestamp().AsTime().Equal(start)))
			qt.Check(t, qt.IsTrue(p.Timestamp().AsTime().After(start)))
		}
		monotonic := metric.Name() != "system.network.connection.count" && metric.Name() != "finwait.half_open" && metric.Name() != "finwait.sink.queue"
		qt.Check(t, qt.Equals(metric.Sum().IsMonotonic(), monotonic), qt.Commentf("%s", metric.Name()))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	qt.Assert(t, qt.IsNil(q.Close(ctx)))
}

// TestCollectNothing has what is not known be absent.
func TestCollectNothing(t *testing.T) {
	m := newTestMetrics(t, &source{}, MetricOptions{})
	all, err := m.collect(t.Context())
	qt.Assert(t, qt.IsNil(err))
	for name := range points(all) {
		for _, no := range []string{"finwait.drift", "finwait.dwell", "finwait.endings", "finwait.sink", "finwait.otlp"} {
			qt.Check(t, qt.IsFalse(strings.HasPrefix(name, no)), qt.Commentf("%s", name))
		}
	}
	broken := newSource()
	broken.err = errors.New("broken")
	all, err = newTestMetrics(t, broken, MetricOptions{}).collect(t.Context())
	qt.Assert(t, qt.ErrorMatches(err, "(?s).*broken.*"))
	got := points(all)
	qt.Assert(t, qt.HasLen(got, len(socketStates()))) // of the last audit
}

// TestBuckets has the tracer's buckets be those of an exponential histogram of
// scale 0, but for what is on a bound, or rounded to one.
func TestBuckets(t *testing.T) {
	// bound is the first whole nanosecond that is not below 2^i seconds.
	bound := func(i int) time.Duration {
		if i >= 0 {
			return time.Second << i
		}
		return (time.Second + 1<<-i - 1) >> -i
	}
	for i := range tracer.NumBuckets {
		shortest, longest := tracer.BucketBounds(i)
		if i > 0 {
			qt.Check(t, qt.Equals(shortest, bound(i-tracer.SecondBucket)))
		}
		if i+1 < tracer.NumBuckets {
			qt.Check(t, qt.Equals(longest, bound(i+1-tracer.SecondBucket)-1))
		}
	}
}

// TestRun has metrics come at every interval, and failures be told once.
func TestRun(t *testing.T) {
	var requests, status atomic.Int64
	status.Store(400)
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.URL.Path != "/v1/metrics" {
			w.WriteHeader(404)
			return
		}
		w.WriteHeader(int(status.Load()))
	}))
	t.Cleanup(h.Close)
	var told bytes.Buffer
	m := newTestMetrics(t, newSource(), MetricOptions{Log: slog.New(slog.NewTextHandler(&told, nil))},
		"OTEL_EXPORTER_OTLP_ENDPOINT", h.URL, "OTEL_METRIC_EXPORT_INTERVAL", "2")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx)
	}()
	eventually(t, "it tries again and again", func() bool { return requests.Load() >= 4 })
	status.Store(200)
	seen := requests.Load()
	eventually(t, "it goes on", func() bool { return requests.Load() >= seen+3 })
	cancel()
	<-done
	qt.Assert(t, qt.Equals(strings.Count(told.String(), "metrics are not sent"), 1), qt.Commentf("%s", told.String()))
	qt.Assert(t, qt.Equals(strings.Count(told.String(), "metrics are sent again"), 1))
	qt.Assert(t, qt.IsNil(m.Export(t.Context())))
}

// TestCollectorMetrics has a real collector take metrics as they are.
func TestCollectorMetrics(t *testing.T) {
	for _, way := range ways {
		if strings.Contains(way.name, "gzip") {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			c := newCollector(t)
			c.start()
			m := newTestMetrics(t, newSource(), MetricOptions{Version: "v1", Start: testTime, Since: testTime}, way.env(c.grpc, c.http)...)
			qt.Assert(t, qt.IsNil(m.Export(t.Context())))
			qt.Assert(t, qt.Equals(m.Stats(), Stats{Requests: 1}))
			c.stop(syscall.SIGTERM)
			lines := c.lines("metrics")
			qt.Assert(t, qt.HasLen(lines, 1))
			all, err := new(pmetric.JSONUnmarshaler).UnmarshalMetrics(lines[0])
			qt.Assert(t, qt.IsNil(err))
			checkSource(t, points(all))
		})
	}
}
