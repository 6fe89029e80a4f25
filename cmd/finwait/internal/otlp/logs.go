package otlp

import (
	"context"
	"errors"
	"math"
	"os"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/tracer"
)

// maxRequest is how large a request may be: what OTLP recommends, and what
// gRPC's servers take if nobody has told them otherwise.
const maxRequest = 4 << 20

// LogOptions are those of a Logs.
type LogOptions struct {
	// Version is finwait's own.
	Version string
	// Cgroup looks a cgroup up (see [tracer.Cgroups.Lookup]). If it is nil, no
	// record tells a container.
	Cgroup func(id uint64) (tracer.Cgroup, bool)
}

// Logs is a sink that sends records as OTLP logs. Of its methods, Stats and
// SetSamplingRatio may be called at any time.
type Logs struct {
	client   *client
	encoder  *encoder
	resource []attribute
	version  string
	sampling atomic.Uint64 // the bits of the ratio
}

var _ sink.Sink = (*Logs)(nil)

// NewLogs returns a sink that sends to where the configuration says. It does not
// wait for a connection. An [EnvError] says what is wrong with the configuration.
func NewLogs(c *Config, opts LogOptions) (*Logs, error) {
	client, err := newClient(LogSignal, c, opts.Version)
	if err != nil {
		return nil, err
	}
	l := &Logs{
		client: client, encoder: newEncoder(opts.Cgroup), version: opts.Version,
		resource: c.resource(thisHost(), opts.Version, os.LookupEnv),
	}
	l.SetSamplingRatio(1)
	return l, nil
}

// SetSamplingRatio sets what share of connections is told of, which stands in
// the records that are sent from now on; 1, which it is at first, in none.
func (l *Logs) SetSamplingRatio(ratio float64) { l.sampling.Store(math.Float64bits(ratio)) }

// Stats returns what sending has been like.
func (l *Logs) Stats() Stats { return l.client.stats() }

// Close implements [sink.Sink].
func (l *Logs) Close() error { return l.client.transport.close() }

// Send implements [sink.Sink]. It sends transitions and connections apart, since
// an answer tells how many are rejected and not which.
func (l *Logs) Send(ctx context.Context, b *sink.Batch) (kept sink.Counts, err error) {
	tooLate := time.Now().Add(l.client.budget)
	l.encoder.sampling = math.Float64frombits(l.sampling.Load())
	transitions, err1 := sendAll(ctx, l, b.Transitions, l.encoder.transition, tooLate)
	conns, err2 := sendAll(ctx, l, b.Conns, l.encoder.conn, tooLate)
	return sink.Counts{Transitions: transitions, Conns: conns}, errors.Join(err1, err2)
}

// sendAll sends records in as many requests as it takes, and returns how many
// are taken.
func sendAll[T any](ctx context.Context, l *Logs, records []T, encode func(plog.LogRecord, *T, pcommon.Timestamp), tooLate time.Time) (uint64, error) {
	if len(records) == 0 {
		return 0, nil
	}
	body, err := request(l, records, encode)
	if err != nil {
		return 0, err
	}
	if len(body) > maxRequest && len(records) > 1 {
		half := len(records) / 2
		first, err1 := sendAll(ctx, l, records[:half], encode, tooLate)
		second, err2 := sendAll(ctx, l, records[half:], encode, tooLate)
		return first + second, errors.Join(err1, err2)
	}
	taken, err := l.client.deliver(ctx, body, len(records), tooLate)
	return uint64(taken), err
}

// request returns a request with the records.
func request[T any](l *Logs, records []T, encode func(plog.LogRecord, *T, pcommon.Timestamp)) ([]byte, error) {
	logs := plog.NewLogs()
	of := logs.ResourceLogs().AppendEmpty()
	setResource(of.Resource(), l.resource)
	in := of.ScopeLogs().AppendEmpty()
	setScope(in.Scope(), l.version)
	observed := pcommon.NewTimestampFromTime(time.Now())
	in.LogRecords().EnsureCapacity(len(records))
	for i := range records {
		encode(in.LogRecords().AppendEmpty(), &records[i], observed)
	}
	return plogotlp.NewExportRequestFromLogs(logs).MarshalProto()
}

// utf8Of returns s with every byte that is not UTF-8 as U+FFFD, as the JSON
// record has it.
func utf8Of(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}
