package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// churn makes that many connections as fast as they go, on all CPUs, each in a
// network namespace of its own, and returns when all are gone: a fourth of them each
// closed first by the client, closed first by the server, half-closed, and reset.
func churn(t testing.TB, connections int) {
	t.Helper()
	cpus := runtime.NumCPU()
	made := make(chan error)
	for i := range cpus {
		go func() {
			// The thread ends with the goroutine, and its namespace with it.
			runtime.LockOSThread()
			made <- churnHere((connections + i) / cpus)
		}()
	}
	var errs []error
	for range cpus {
		errs = append(errs, <-made)
	}
	qt.Assert(t, qt.IsNil(errors.Join(errs...)))
}

// churnHere makes connections in a namespace that the thread moves to.
func churnHere(connections int) error {
	if err := netns.Unshare(); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"ip_local_port_range": "20000 65535",
		"tcp_tw_reuse":        "1", // or there are no ports before long
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	listeners := make([]int, 16) // so that a port is free again before its TIME_WAIT is over
	for i := range listeners {
		fd, err := churnSocket()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := errors.Join(unix.Bind(fd, churnAddress(i)), unix.Listen(fd, 16)); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		listeners[i] = fd
	}
	for i := range connections {
		at := i % len(listeners)
		if err := churnOnce(i, listeners[at], churnAddress(at)); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	// The kernel would do so some time after the namespace is gone.
	if err := exec.Command("ss", "--kill", "--no-header", "state", "time-wait").Run(); err != nil {
		return fmt.Errorf("end what is in TIME_WAIT (ss --kill): %w", err)
	}
	return nil
}

func churnSocket() (int, error) {
	return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

func churnAddress(i int) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: 10_000 + i, Addr: [4]byte{127, 0, 0, 1}}
}

// churnOnce makes a connection, and ends it in the way whose turn it is.
func churnOnce(turn, listener int, at unix.Sockaddr) error {
	client, err := churnSocket()
	if err != nil {
		return err
	}
	if err := unix.Connect(client, at); err != nil {
		unix.Close(client)
		return fmt.Errorf("connect: %w", err)
	}
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		unix.Close(client)
		return fmt.Errorf("accept: %w", err)
	}
	switch turn / 16 % 4 {
	case 0:
		err = errors.Join(unix.Close(client), unix.Close(server))
	case 1:
		err = errors.Join(unix.Close(server), unix.Close(client))
	case 2:
		var b [1]byte
		_, write := unix.Write(server, b[:])
		_, read := unix.Read(client, b[:])
		err = errors.Join(unix.Shutdown(client, unix.SHUT_WR), write, read, unix.Close(server), unix.Close(client))
	case 3:
		linger := unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		err = errors.Join(linger, unix.Close(client), unix.Close(server))
	}
	return err
}
