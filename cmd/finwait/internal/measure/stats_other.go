//go:build !linux

package measure

import (
	"io"

	"github.com/finwait/finwait/tracer"
)

func enableStats() (io.Closer, error) { return nil, tracer.ErrNotSupported }
