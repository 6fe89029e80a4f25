//go:build !linux || !(amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"time"
)

// SweepInterval is documented where tracing is supported.
const SweepInterval = 200 * time.Millisecond

// A Tracer cannot be made on this system.
type Tracer struct{}

// New returns an error that wraps [ErrNotSupported].
func New(*Options) (*Tracer, error) {
	return nil, fmt.Errorf("trace TCP states on %s/%s: %w", runtime.GOOS, runtime.GOARCH, ErrNotSupported)
}

// Evidence is documented where tracing is supported.
func (*Tracer) Evidence() Evidence { return EvidenceKernel }

// Events yields nothing.
func (*Tracer) Events(context.Context) iter.Seq2[*Event, error] {
	return func(func(*Event, error) bool) {}
}

// Conns yields nothing.
func (*Tracer) Conns(context.Context) iter.Seq2[*Conn, error] {
	return func(func(*Conn, error) bool) {}
}

// Inherited returns false.
func (*Tracer) Inherited() (time.Time, bool) { return time.Time{}, false }

// CheckPinPath is not supported.
func CheckPinPath(string) error { return ErrNotSupported }

// PinnedGauges is not supported.
func PinnedGauges(string) (*Gauges, error) { return nil, ErrNotSupported }

// PinnedCounts is not supported.
func PinnedCounts(string) (*Counts, error) { return nil, ErrNotSupported }

// SetFilter is not supported.
func (*Tracer) SetFilter(*Filter, *ConnOptions) error { return ErrNotSupported }

// Endings is not supported.
func (*Tracer) Endings() (Endings, error) { return Endings{}, ErrNotSupported }

// Pending returns false.
func (*Tracer) Pending() bool { return false }

// PendingConns returns false.
func (*Tracer) PendingConns() bool { return false }

// Gauges returns [ErrNotSupported].
func (*Tracer) Gauges(context.Context) (*Gauges, error) { return nil, ErrNotSupported }

// Audit returns [ErrNotSupported].
func (*Tracer) Audit(context.Context) (*Audit, error) { return nil, ErrNotSupported }

// LastAudit returns the zero Audit.
func (*Tracer) LastAudit() Audit { return Audit{} }

// Stuck returns [ErrNotSupported].
func (*Tracer) Stuck(context.Context, *StuckOptions) (*Stuck, error) { return nil, ErrNotSupported }

// Counters returns [ErrNotSupported].
func (*Tracer) Counters() (Counters, error) { return Counters{}, ErrNotSupported }

// Ledger returns [ErrNotSupported].
func (*Tracer) Ledger() (Ledger, error) { return Ledger{}, ErrNotSupported }

// Profile returns [ErrNotSupported].
func (*Tracer) Profile() (*Profile, error) { return nil, ErrNotSupported }

// Detach does nothing.
func (*Tracer) Detach() error { return nil }

// Close does nothing.
func (*Tracer) Close() error { return nil }
