//go:build !linux

// Package demo makes TCP connections that are worth looking at.
package demo

import "github.com/finwait/finwait/tracer"

// Start returns [tracer.ErrNotSupported].
func Start() (stop func(), err error) { return nil, tracer.ErrNotSupported }
