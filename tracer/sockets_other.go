//go:build !linux

package tracer

import (
	"context"
	"fmt"
	"runtime"
)

// Netns is documented for Linux. No other system has one.
type Netns struct {
	Inode uint32
	Name  string
}

// VisitNetns visits network namespaces. They exist on Linux alone; elsewhere it
// returns an error that wraps [ErrNotSupported].
func VisitNetns(context.Context, NetnsScope, func(*Netns) error) (CensusMissed, error) {
	return CensusMissed{}, fmt.Errorf("visit network namespaces on %s: %w", runtime.GOOS, ErrNotSupported)
}

// ListSockets is not supported.
func (*Netns) ListSockets(context.Context) (sockets []Socket, inexact bool, err error) {
	return nil, false, ErrNotSupported
}

// FindOwners finds the processes that hold sockets. It exists on Linux alone;
// elsewhere it returns an error that wraps [ErrNotSupported].
func FindOwners(context.Context, []uint32) (owners map[uint32]Process, hidden int, err error) {
	return nil, 0, fmt.Errorf("find socket owners on %s: %w", runtime.GOOS, ErrNotSupported)
}
