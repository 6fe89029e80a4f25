//go:build !linux

package demo

import (
	"context"

	"github.com/finwait/finwait/tracer"
)

// Connect returns [tracer.ErrNotSupported].
func Connect(context.Context, int) error { return tracer.ErrNotSupported }
