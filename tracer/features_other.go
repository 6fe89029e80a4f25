//go:build !linux || !(amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"context"
	"fmt"
	"runtime"
)

// Detect returns an error that wraps [ErrNotSupported].
func Detect(context.Context, *DetectOptions) (*Features, error) {
	return nil, fmt.Errorf("trace TCP states on %s/%s: %w", runtime.GOOS, runtime.GOARCH, ErrNotSupported)
}

// Stats returns [ErrNotSupported].
func (*Tracer) Stats() (*Stats, error) { return nil, ErrNotSupported }
