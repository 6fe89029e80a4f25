package main

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// What a host has beside the load must not make tracing dearer. These patterns
// have much of it.
const (
	idleConnections = 50_000
	idleNamespaces  = 1000
	// ofThread is how many connections one thread holds: no limit of open files
	// need be raised for that.
	ofThread = 5000
)

// idle is what is there beside the load: threads that hold it, each in a table of
// files of its own, so that no tool inherits it.
type idle struct {
	release chan struct{}
	threads []chan struct{}
}

// openBeside opens what is to be there beside the load of the pattern.
func (p *pattern) openBeside() (*idle, error) {
	i := &idle{release: make(chan struct{})}
	if p.beside == nil {
		return i, nil
	}
	if err := p.beside(i); err != nil {
		i.close()
		return nil, err
	}
	return i, nil
}

// hold has a thread open something, and keep it until the end.
func (i *idle) hold(open func() error) error {
	opened, closed := make(chan error), make(chan struct{})
	go func() {
		defer close(closed)
		// The thread ends with the goroutine, and what it has open with it.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FILES | unix.CLONE_FS)
		if err == nil {
			err = open()
		}
		opened <- err
		<-i.release
	}()
	i.threads = append(i.threads, closed)
	return <-opened
}

// close lets go of all of it.
func (i *idle) close() {
	close(i.release)
	for _, closed := range i.threads {
		<-closed
	}
}

// openConnections makes connections over which nothing is sent. Closed by a reset,
// they leave nothing in TIME_WAIT.
func openConnections(i *idle) error {
	p := &pattern{listeners: 16, use: func(client, _ int) error {
		return unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}}
	for range idleConnections / ofThread {
		err := i.hold(func() error {
			w, err := p.newWorker()
			for n := 0; n < ofThread && err == nil; n++ {
				err = w.connect(n % len(w.listeners))
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("open connections: %w", err)
		}
	}
	return nil
}

// openNamespaces makes network namespaces, each with a listener that keeps it.
func openNamespaces(i *idle) error {
	p := &pattern{listeners: 1}
	err := i.hold(func() error {
		for range idleNamespaces {
			if _, err := p.newWorker(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("open namespaces: %w", err)
	}
	return nil
}
