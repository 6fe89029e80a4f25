package otlp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // for grpc.UseCompressor
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// overGRPC sends requests by OTLP/gRPC.
type overGRPC struct {
	signal   Signal
	endpoint *endpoint
	conn     *grpc.ClientConn
	header   metadata.MD
	options  []grpc.CallOption

	dialOptions []grpc.DialOption
}

func newGRPC(s Signal, e *endpoint, config *tls.Config, version string) (*overGRPC, error) {
	secrecy := insecure.NewCredentials()
	if config != nil {
		secrecy = credentials.NewTLS(config)
	}
	// We wait between requests ourselves; this is for the time between batches.
	again := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: firstWait / 2, Multiplier: 1.6, Jitter: 0.2, MaxDelay: longestBackoff / 2},
		MinConnectTimeout: e.timeout,
	}
	g := &overGRPC{signal: s, endpoint: e, header: metadata.MD{}, options: []grpc.CallOption{grpc.ForceCodecV2(asIs{})}}
	g.dialOptions = []grpc.DialOption{
		grpc.WithTransportCredentials(secrecy), grpc.WithUserAgent(userAgent(version)),
		grpc.WithConnectParams(again), grpc.WithStatsHandler(callWatcher{}),
		// What is in a DNS record of somebody is not to decide how often we try.
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
	}
	for _, header := range e.headers {
		g.header.Set(header.key, header.value)
	}
	if e.gzip {
		g.options = append(g.options, grpc.UseCompressor("gzip"))
	}
	if err := g.dial(); err != nil {
		return nil, &EnvError{e.variable, fmt.Sprintf("is %q, which gRPC cannot dial: %v", e.target, err)}
	}
	return g, nil
}

// dial makes a new connection, in the place of the one that there may be.
func (g *overGRPC) dial() error {
	conn, err := grpc.NewClient(g.endpoint.target, g.dialOptions...)
	if err != nil {
		return err
	}
	if g.conn != nil {
		_ = g.conn.Close()
	}
	g.conn = conn
	return nil
}

func (g *overGRPC) close() error { return g.conn.Close() }

func (g *overGRPC) encode(body []byte) ([]byte, error) { return body, nil }

func (g *overGRPC) send(ctx context.Context, body []byte) answer {
	ctx, cancel := context.WithTimeout(ctx, g.endpoint.timeout)
	defer cancel()
	g.conn.ResetConnectBackoff() // we have waited long enough
	var seen call
	ctx = metadata.NewOutgoingContext(context.WithValue(ctx, callKey{}, &seen), g.header)
	var response []byte
	err := g.conn.Invoke(ctx, signals[g.signal].method, body, &response, g.options...)
	if err == nil {
		rejected, message, _ := signals[g.signal].rejected(response)
		return answer{rejected: rejected, message: g.endpoint.scrub(message)}
	}
	a := g.refused(err, &seen)
	if ctx.Err() != nil {
		// The connection may be dead, which TCP finds out after a quarter of an hour.
		a.err = errors.Join(a.err, g.dial())
	}
	return a
}

// refused tells what the error means.
func (g *overGRPC) refused(err error, seen *call) answer {
	s := status.Convert(err)
	a := answer{err: fmt.Errorf("gRPC status %v: %s", s.Code(), g.endpoint.scrub(s.Message()))}
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			a.retry = true // RESOURCE_EXHAUSTED alone is for good
			a.after = min(max(info.GetRetryDelay().AsDuration(), 0), longestWait)
		}
	}
	switch s.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.DataLoss:
		a.retry, a.unsure = true, seen.sent.Load()
	case codes.Unavailable:
		a.retry, a.unsure = true, seen.sent.Load() && !seen.answered.Load()
	case codes.ResourceExhausted:
	default:
		a.retry = false
		a.unsure = seen.sent.Load() && !seen.answered.Load()
	}
	return a
}

// call is what is known of how far a call has come.
type call struct{ sent, answered atomic.Bool }

type callKey struct{}

// callWatcher notes it.
type callWatcher struct{}

func (callWatcher) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (callWatcher) HandleRPC(ctx context.Context, s stats.RPCStats) {
	seen, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return
	}
	switch s.(type) {
	case *stats.OutHeader:
		seen.sent.Store(true)
	case *stats.InHeader, *stats.InTrailer:
		seen.answered.Store(true)
	}
}

func (callWatcher) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (callWatcher) HandleConn(context.Context, stats.ConnStats)                       {}

// asIs is a codec for what is protobuf already: a request that is sent again need
// not be made again.
type asIs struct{}

var errNotBytes = errors.New("not bytes")

func (asIs) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, errNotBytes
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (asIs) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return errNotBytes
	}
	*b = data.Materialize()
	return nil
}

func (asIs) Name() string { return "proto" }
