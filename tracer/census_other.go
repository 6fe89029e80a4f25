//go:build !linux

package tracer

import (
	"context"
	"fmt"
	"runtime"
)

// TakeCensus counts TCP sockets. It exists on Linux alone; elsewhere it
// returns an error that wraps [ErrNotSupported].
func TakeCensus(context.Context, *CensusOptions) (*Census, error) {
	return nil, fmt.Errorf("census on %s: %w", runtime.GOOS, ErrNotSupported)
}
