package main

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// What a host has beside the load must not make tracing dearer. These patterns
// have much of it.
const (
	idleConnections = 50_000
	idleNamespaces  = 1000
)

// idle is what is there beside the load: file descriptors.
type idle []int

func (fds idle) Close() error {
	for _, fd := range fds {
		unix.Close(fd)
	}
	return nil
}

// openBeside opens what is to be there beside the load of the pattern.
func (p *pattern) openBeside() (idle, error) {
	if p.beside == nil {
		return nil, nil
	}
	return p.beside()
}

// inNamespace calls f in a new network namespace, in a thread of its own.
func inNamespace(f func() error) error {
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine.
		runtime.LockOSThread()
		if err := netns.Unshare(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// openConnections makes connections over which nothing is sent.
func openConnections() (fds idle, err error) {
	err = inNamespace(func() error {
		p := &pattern{listeners: 16, use: func(client, server int) error {
			fds = append(fds, client, server)
			// Closed by a reset, it leaves nothing in TIME_WAIT.
			return unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}}
		w, err := p.newWorker()
		if err != nil {
			return err
		}
		defer w.close()
		for i := range idleConnections {
			if err := w.connect(i % len(w.listeners)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open connections: %w", err), fds.Close())
	}
	return fds, nil
}

// openNamespaces makes network namespaces, each with a listener.
func openNamespaces() (fds idle, err error) {
	for range idleNamespaces {
		err := inNamespace(func() error {
			p := &pattern{listeners: 1}
			w, err := p.newWorker()
			if err != nil {
				return err
			}
			fds = append(fds, w.listeners...)
			fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open the namespace: %w", err)
			}
			fds = append(fds, fd)
			return nil
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open namespaces: %w", err), fds.Close())
		}
	}
	return fds, nil
}
