//go:build !linux

package main

import "github.com/finwait/finwait/tracer"

func inodeOf(string) (uint64, error) { return 0, tracer.ErrNotSupported }
