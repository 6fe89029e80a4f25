//go:build !linux

package tracer

import (
	"fmt"
	"runtime"
)

// Cgroups cannot be had on this system.
type Cgroups struct{}

// NewCgroups returns an error that wraps [ErrNotSupported].
func NewCgroups() (*Cgroups, error) {
	return nil, fmt.Errorf("resolve cgroups on %s: %w", runtime.GOOS, ErrNotSupported)
}

// Lookup finds nothing.
func (*Cgroups) Lookup(uint64) (Cgroup, bool) { return Cgroup{}, false }

// Close does nothing.
func (*Cgroups) Close() error { return nil }
