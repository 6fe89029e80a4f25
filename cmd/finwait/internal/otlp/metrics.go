package otlp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/tracer"
)

// Source is what metrics are read from: a [tracer.Tracer].
type Source interface {
	Counters() (tracer.Counters, error)
	Endings() (tracer.Endings, error)
	Gauges(ctx context.Context) (*tracer.Gauges, error)
	LastAudit() tracer.Audit
	Ledger() (tracer.Ledger, error)
	Profile() (*tracer.Profile, error)
}

// MetricOptions are those of a Metrics.
type MetricOptions struct {
	// Version is finwait's own.
	Version string
	// Start is when the process began to count. Since is when the tracer's counters
	// did: before that, if it goes on with those of another.
	Start, Since time.Time
	// Queues are those whose ledgers are told of.
	Queues []*sink.Queue
	// Logs is the sink of one of them, if there is one, to tell of its requests.
	Logs *Logs
	// Log is told when metrics are not taken, and when they are again.
	Log *slog.Logger
}

// Metrics sends what has been counted, at regular intervals. All of it is
// cumulative: what is not taken at one time is part of the next.
type Metrics struct {
	source   Source
	opts     MetricOptions
	client   *client
	interval time.Duration
	resource []attribute
	failing  bool
}

// NewMetrics returns what sends metrics to where the configuration says. It does
// not wait for a connection. An [EnvError] says what is wrong with the
// configuration.
func NewMetrics(c *Config, source Source, opts MetricOptions) (*Metrics, error) {
	client, err := newClient(MetricSignal, c, opts.Version)
	if err != nil {
		return nil, err
	}
	return &Metrics{
		source: source, opts: opts, client: client, interval: c.interval,
		resource: c.resource(thisHost(), opts.Version, os.LookupEnv),
	}, nil
}

// Run sends metrics at every interval until ctx is done.
func (m *Metrics) Run(ctx context.Context) {
	tick := time.NewTicker(m.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.tell(m.Export(ctx))
		}
	}
}

// tell logs that metrics cannot be sent, once, and that they can again.
func (m *Metrics) tell(err error) {
	switch {
	case errors.Is(err, context.Canceled):
	case err != nil && !m.failing:
		m.failing = true
		m.opts.Log.Error("metrics are not sent, until it works again", "sink", "otlp", "error", err)
	case err == nil && m.failing:
		m.failing = false
		m.opts.Log.Info("metrics are sent again", "sink", "otlp")
	}
}

// Export sends metrics once. It is not to be called while Run runs. What cannot
// be read is missing from them, and is an error.
func (m *Metrics) Export(ctx context.Context) error {
	tooLate := time.Now().Add(m.client.budget)
	ctx, cancel := context.WithDeadlineCause(ctx, tooLate, errors.New("sending metrics took too long"))
	defer cancel()
	metrics, unread := m.collect(ctx)
	points := metrics.DataPointCount()
	if points == 0 {
		return unread
	}
	body, err := pmetricotlp.NewExportRequestFromMetrics(metrics).MarshalProto()
	if err != nil {
		return errors.Join(unread, fmt.Errorf("encode metrics: %w", err))
	}
	_, err = m.client.deliver(ctx, body, points, tooLate)
	return errors.Join(unread, err)
}

// Stats returns what sending has been like, in data points.
func (m *Metrics) Stats() Stats { return m.client.stats() }

// Close frees the connection.
func (m *Metrics) Close() error { return m.client.transport.close() }

// collect reads everything.
func (m *Metrics) collect(ctx context.Context) (pmetric.Metrics, error) {
	all := pmetric.NewMetrics()
	of := all.ResourceMetrics().AppendEmpty()
	setResource(of.Resource(), m.resource)
	in := of.ScopeMetrics().AppendEmpty()
	setScope(in.Scope(), m.opts.Version)
	w := &metricWriter{
		into:  in.Metrics(),
		start: pcommon.NewTimestampFromTime(m.opts.Start),
		since: pcommon.NewTimestampFromTime(m.opts.Since),
		now:   pcommon.NewTimestampFromTime(time.Now()),
	}
	err := errors.Join(
		w.gauges(m.source.Gauges(ctx)),
		w.counters(m.source.Counters()),
		w.endings(m.source.Endings()),
		w.profile(m.source.Profile()),
		w.ledger(m.source.Ledger()),
	)
	w.audit(m.source.LastAudit())
	w.queues(m.opts.Queues)
	if m.opts.Logs != nil {
		w.requests(m.opts.Logs.Stats())
	}
	return all, err
}
