package otlp

import (
	"context"
	"errors"
	"math"
	"os"
	"sync/atomic"
	"time"

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
	origin   origin
	scratch  message       // of records
	one      message       // of one
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
		client: client, encoder: newEncoder(opts.Cgroup),
		origin: newOrigin(c.resource(thisHost(), opts.Version, os.LookupEnv), opts.Version),
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
func sendAll[T any](ctx context.Context, l *Logs, records []T, encode func(*record, *T, time.Time), tooLate time.Time) (taken uint64, err error) {
	for len(records) > 0 {
		body, n := request(l, records, encode)
		kept, sendErr := l.client.deliver(ctx, body, n, tooLate)
		taken += uint64(kept)
		err = errors.Join(err, sendErr)
		records = records[n:]
	}
	return taken, err
}

// request returns a request with the first of the records, and how many it has:
// those that are not too large for one, but at least one.
func request[T any](l *Logs, records []T, encode func(*record, *T, time.Time)) (body []byte, n int) {
	const most = maxRequest - 64<<10 // for who sends
	observed := time.Now()
	all := l.scratch[:0]
	for i := range records {
		r := record{l.one[:0]}
		encode(&r, &records[i], observed)
		l.one = r.message
		if i > 0 && len(all)+sizeOf(len(r.message)) > most {
			break
		}
		all.start(scopeLogsRecords, len(r.message))
		all = append(all, r.message...)
		n++
	}
	l.scratch = all
	return l.origin.request(all), n
}
