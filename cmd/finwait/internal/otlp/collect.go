package otlp

import (
	"fmt"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/tracer"
)

// metricWriter writes metrics. Those that there is a convention for have its
// names, the others are the same as those of /metrics.
type metricWriter struct {
	into pmetric.MetricSlice
	now  pcommon.Timestamp
	// start is when the process began to count, and since when the counters of the
	// tracer did, which may have been another's.
	start, since pcommon.Timestamp
}

// counted says what a sum is of.
type counted struct{ name, unit, description string }

var (
	socketsMetric = counted{
		"system.network.connection.count", "{connection}",
		"TCP sockets in each state, in all network namespaces, listeners and half-open connections among them.",
	}
	halfOpenMetric = counted{
		"finwait.half_open", "{connection}",
		"Half-open connections, which are syn_received in system.network.connection.count.",
	}
	transitionsMetric  = counted{"finwait.transitions", "{transition}", "Transitions of TCP sockets."}
	unknownDwellMetric = counted{"finwait.dwell.unknown", "{transition}", "Transitions of which it is not known how long the socket was in the state that it left."}
	endingsMetric      = counted{"finwait.endings", "{socket}", "Sockets that have ended, by the state they were in, why, and who closed first."}
	ledgerMetric       = counted{"finwait.ledger", "{event}", "What became of the transitions, and what went wrong: the entries of the tracer's ledger."}
	recordsMetric      = counted{"finwait.sink.records", "{record}", "Records that were put into the queue of a sink, by what became of them."}
	waitingMetric      = counted{"finwait.sink.queue", "{record}", "Records that wait in the queue of a sink."}
	requestsMetric     = counted{"finwait.otlp.requests", "{request}", "Requests with records that were sent by OTLP, retries among them."}
	retriesMetric      = counted{"finwait.otlp.retries", "{request}", "Requests that had been sent before."}
	unconfirmedMetric  = counted{"finwait.otlp.unconfirmed", "{record}", "Records in requests that may have been taken though no answer came, and so may be there twice."}
	rejectedMetric     = counted{"finwait.otlp.rejected", "{record}", "Records that the other side has rejected out of requests that it took."}
)

func (w *metricWriter) metric(c counted) pmetric.Metric {
	m := w.into.AppendEmpty()
	m.SetName(c.name)
	m.SetUnit(c.unit)
	m.SetDescription(c.description)
	return m
}

// sum returns a cumulative sum of this process to add points to.
func (w *metricWriter) sum(c counted, monotonic bool) sum { return w.sumSince(w.start, c, monotonic) }

// sumSince returns one that began at start.
func (w *metricWriter) sumSince(start pcommon.Timestamp, c counted, monotonic bool) sum {
	s := w.metric(c).SetEmptySum()
	s.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	s.SetIsMonotonic(monotonic)
	return sum{start, w.now, s.DataPoints()}
}

type sum struct {
	start, now pcommon.Timestamp
	points     pmetric.NumberDataPointSlice
}

// add adds a point with attributes, which are keys and values in turn.
func (s sum) add(n uint64, attributes ...string) {
	p := s.points.AppendEmpty()
	p.SetStartTimestamp(s.start)
	p.SetTimestamp(s.now)
	p.SetIntValue(int64(n))
	setPairs(p.Attributes(), attributes)
}

func setPairs(m pcommon.Map, pairs []string) {
	m.EnsureCapacity(len(pairs) / 2)
	for i := 0; i < len(pairs); i += 2 {
		m.PutStr(pairs[i], pairs[i+1])
	}
}

// socketStates are the states that sockets are counted in: half-open connections
// are counted with syn_received, and those that are closed are not counted.
func socketStates() []tracer.State {
	var all []tracer.State
	for _, s := range tracer.States() {
		if s != tracer.StateClose && s != tracer.StateNewSynRecv {
			all = append(all, s)
		}
	}
	return all
}

func (w *metricWriter) gauges(g *tracer.Gauges, err error) error {
	if err != nil {
		return fmt.Errorf("read gauges: %w", err)
	}
	states := g.States()
	folded := states.Folded()
	sockets := w.sum(socketsMetric, false)
	for _, s := range socketStates() {
		sockets.add(folded[s], "network.connection.state", stateNames[s], "network.transport", "tcp")
	}
	w.sum(halfOpenMetric, false).add(states[tracer.StateNewSynRecv])
	return nil
}

// counters has every transition that there can be, and any other that there was.
func (w *metricWriter) counters(c tracer.Counters, err error) error {
	if err != nil {
		return err
	}
	s := w.sumSince(w.since, transitionsMetric, true)
	legal := map[tracer.Transition]bool{}
	add := func(t tracer.Transition, n uint64) {
		s.add(n, "finwait.old_state", t.Old.String(), "finwait.new_state", t.New.String())
	}
	for _, t := range tracer.LegalTransitions() {
		legal[t] = true
		add(t, c.Count(t))
	}
	for t, n := range c.All() {
		if !legal[t] {
			add(t, n)
		}
	}
	return nil
}

func (w *metricWriter) endings(e tracer.Endings, err error) error {
	if err != nil {
		return err
	}
	s := w.sumSince(w.since, endingsMetric, true)
	for way, n := range e.All() {
		s.add(n, "finwait.old_state", way.Old.String(), "finwait.reason", way.Reason.String(), "finwait.side", way.Side.String())
	}
	return nil
}

// profile sums the rows of each state up.
func (w *metricWriter) profile(p *tracer.Profile, err error) error {
	if err != nil {
		return fmt.Errorf("read profile: %w", err)
	}
	states := map[tracer.State]*tracer.Histogram{}
	for i := range p.Rows {
		row := &p.Rows[i]
		if states[row.Key.State] == nil {
			states[row.Key.State] = &tracer.Histogram{}
		}
		states[row.Key.State].Merge(&row.Histogram)
	}
	since := pcommon.NewTimestampFromTime(p.Since)
	m := w.metric(counted{"finwait.dwell", "s", "How long sockets were in a state, counted when they left it."})
	h := m.SetEmptyExponentialHistogram()
	h.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	unknown := w.sumSince(since, unknownDwellMetric, true)
	for _, s := range tracer.States() {
		d := states[s]
		if d == nil {
			continue
		}
		point := h.DataPoints().AppendEmpty()
		point.SetStartTimestamp(since)
		point.SetTimestamp(w.now)
		point.Attributes().PutStr("finwait.state", s.String())
		writeDwell(point, d)
		unknown.add(d.Unknown, "finwait.state", s.String())
	}
	return nil
}

// writeDwell writes it as an exponential histogram of scale 0, whose buckets have the
// powers of two as their bounds as the tracer's have. Only what is exactly on a
// bound is counted above it here, where OpenTelemetry has it below; and the
// first bucket has what is shorter too.
func writeDwell(point pmetric.ExponentialHistogramDataPoint, h *tracer.Histogram) {
	first, last := -1, -1
	var count uint64
	for i, n := range h.Buckets {
		if n == 0 {
			continue
		}
		if first < 0 {
			first = i
		}
		last = i
		count += n
	}
	point.SetScale(0)
	point.SetCount(count)
	point.SetSum(h.Seconds())
	if first < 0 {
		return
	}
	point.SetMax(h.Max.Seconds())
	point.Positive().SetOffset(int32(first - tracer.SecondBucket))
	point.Positive().BucketCounts().FromRaw(h.Buckets[first : last+1])
}

// ledger has every entry.
func (w *metricWriter) ledger(l tracer.Ledger, err error) error {
	if err != nil {
		return err
	}
	s := w.sum(ledgerMetric, true)
	for entry, n := range l.All() {
		s.add(n, "finwait.entry", entry)
	}
	return nil
}

// audit has by how much the gauges were wrong at the last audit, if there was
// one, at the time that it was made.
func (w *metricWriter) audit(a tracer.Audit) {
	if a.Time.IsZero() {
		return
	}
	drift := a.Drift()
	g := w.metric(counted{"finwait.drift", "{connection}", "By how many sockets the gauges were wrong at the last audit, which has put them right."}).SetEmptyGauge()
	for _, s := range socketStates() {
		p := g.DataPoints().AppendEmpty()
		p.SetTimestamp(pcommon.NewTimestampFromTime(a.Time))
		p.SetIntValue(int64(drift[s]))
		setPairs(p.Attributes(), []string{"network.connection.state", stateNames[s], "network.transport", "tcp"})
	}
}

// queues has what became of the records of each sink.
func (w *metricWriter) queues(all []*sink.Queue) {
	if len(all) == 0 {
		return
	}
	records, waiting := w.sum(recordsMetric, true), w.sum(waitingMetric, false)
	for _, q := range all {
		l := q.Ledger()
		for _, kind := range []struct {
			name string
			of   func(sink.Counts) uint64
		}{
			{"transition", func(c sink.Counts) uint64 { return c.Transitions }},
			{"connection", func(c sink.Counts) uint64 { return c.Conns }},
		} {
			kept, full, failed := kind.of(l.Kept), kind.of(l.QueueFull), kind.of(l.Failed)
			add := func(n uint64, outcome string) {
				records.add(n, "finwait.sink", q.Name(), "finwait.record", kind.name, "finwait.outcome", outcome)
			}
			add(kept, "kept")
			add(full, "queue_full")
			add(failed, "failed")
			waiting.add(kind.of(l.Put)-kept-full-failed, "finwait.sink", q.Name(), "finwait.record", kind.name)
		}
	}
}

// requests has what sending records has been like.
func (w *metricWriter) requests(s Stats) {
	w.sum(requestsMetric, true).add(s.Requests)
	w.sum(retriesMetric, true).add(s.Retries)
	w.sum(unconfirmedMetric, true).add(s.Unconfirmed)
	w.sum(rejectedMetric, true).add(s.Rejected)
}
