package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/finwait/finwait/tracer"
)

func (c *Collector) collectGauges(ctx context.Context, ch chan<- prometheus.Metric) error {
	gauges, err := c.source.Gauges(ctx)
	if err != nil {
		return err
	}
	states := gauges.States()
	folded := states.Folded()
	collectStates(ch, socketsDesc, &folded)
	ch <- gauge(halfOpenDesc, float64(states[tracer.StateNewSynRecv]))
	return nil
}

// collectCounters emits every transition that there can be, and any other that has
// been counted.
func (c *Collector) collectCounters(_ context.Context, ch chan<- prometheus.Metric) error {
	counters, err := c.source.Counters()
	if err != nil {
		return err
	}
	emit := func(t tracer.Transition) {
		ch <- count(transitionsDesc, counters.Count(t), stateLabel(t.Old), stateLabel(t.New))
	}
	legal := map[tracer.Transition]bool{}
	for _, t := range tracer.LegalTransitions() {
		legal[t] = true
		emit(t)
	}
	for t := range counters.All() {
		if !legal[t] {
			emit(t)
		}
	}
	return nil
}

// sides are all of them: who closed first may be known whatever came after, so
// hardly a reason is without one of them.
var sides = []tracer.Side{tracer.SideUnknown, tracer.SideLocal, tracer.SidePeer, tracer.SideBoth}

// halfOpenReasons are why a half-open connection is given up: request.h in bpf/.
var halfOpenReasons = []tracer.Reason{
	tracer.ReasonUnknown, tracer.ReasonRSTReceived, tracer.ReasonTimeoutHandshake, tracer.ReasonUnreachable,
	tracer.ReasonKilled, tracer.ReasonListenerGone, tracer.ReasonQueueFull, tracer.ReasonNetnsGone,
}

func (c *Collector) collectEndings(_ context.Context, ch chan<- prometheus.Metric) error {
	endings, err := c.source.Endings()
	if err != nil {
		return err
	}
	type way struct {
		reason tracer.Reason
		side   tracer.Side
	}
	ways, dropped := map[way]uint64{}, map[tracer.Reason]uint64{}
	for _, r := range halfOpenReasons {
		dropped[r] = 0
	}
	for end, n := range endings.All() {
		ways[way{end.Reason, end.Side}] += n
		if end.Old == tracer.StateNewSynRecv {
			dropped[end.Reason] += n
		}
	}
	for _, r := range tracer.Reasons() {
		for _, s := range sides {
			ch <- count(endingsDesc, ways[way{r, s}], r.String(), s.String())
		}
		if n, known := dropped[r]; known {
			ch <- count(halfOpenDroppedDesc, n, r.String())
		}
	}
	return nil
}

// collectAudit says by how much the gauges were wrong at the last audit, if there
// has been one: what differed, what was left of namespaces that are gone, and
// sockets that were in no gauge.
func (c *Collector) collectAudit(ch chan<- prometheus.Metric) {
	audit := c.source.LastAudit()
	if audit.Time.IsZero() {
		return
	}
	drift := audit.Drift()
	collectStates(ch, driftDesc, &drift)
	ch <- gauge(auditDesc, unixSeconds(audit.Time))
	ch <- gauge(auditMissedDesc, float64(len(audit.Missed.Netns)))
}

func (c *Collector) collectLedger(_ context.Context, ch chan<- prometheus.Metric) error {
	ledger, err := c.source.Ledger()
	if err != nil {
		return err
	}
	for entry, n := range ledger.All() {
		ch <- count(ledgerDesc, n, entry)
	}
	return nil
}

// collectQueues says what became of the records of each sink. What it is in none
// of the others waits.
func (c *Collector) collectQueues(ch chan<- prometheus.Metric) {
	for _, q := range c.opts.Queues {
		l := q.Ledger()
		collectQueue(ch, q.Name(), "transition", l.Put.Transitions, l.Kept.Transitions, l.QueueFull.Transitions, l.Failed.Transitions)
		collectQueue(ch, q.Name(), "connection", l.Put.Conns, l.Kept.Conns, l.QueueFull.Conns, l.Failed.Conns)
	}
}

func collectQueue(ch chan<- prometheus.Metric, name, record string, put, kept, full, failed uint64) {
	ch <- count(sinkRecordsDesc, kept, name, record, "kept")
	ch <- count(sinkRecordsDesc, full, name, record, "queue_full")
	ch <- count(sinkRecordsDesc, failed, name, record, "failed")
	ch <- gauge(sinkQueueDesc, float64(put-kept-full-failed), name, record)
}
