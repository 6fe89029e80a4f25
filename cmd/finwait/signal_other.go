//go:build !linux

package main

import "os"

const statsSignalHelp = ""

// notifyStats does nothing: not every system has such a signal, and none but
// Linux a run that lasts.
func notifyStats(chan<- os.Signal) {}
