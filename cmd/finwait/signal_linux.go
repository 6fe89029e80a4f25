package main

import (
	"os"
	"os/signal"
	"syscall"
)

// statsSignalHelp is what the help of --stats says of the signal.
const statsSignalHelp = " and whenever it gets SIGUSR1"

// notifyStats has the signal that asks for the run's own cost go to c, instead
// of killing.
func notifyStats(c chan<- os.Signal) { signal.Notify(c, syscall.SIGUSR1) }
