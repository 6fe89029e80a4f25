//go:build !linux

package lifecycle

import (
	"errors"
	"fmt"
)

// Lock is that of the agent of a host.
type Lock struct{}

// Acquire is not supported.
func Acquire(stateDir, version string) (*Lock, error) {
	return nil, fmt.Errorf("lock the state directory: %w", errors.ErrUnsupported)
}

// Release does nothing.
func (l *Lock) Release() error { return nil }
