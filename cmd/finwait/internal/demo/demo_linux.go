// Package demo makes TCP connections that are worth looking at, for a host that
// has none of its own. They are real, on the loopback of a network namespace
// that exists for them alone.
package demo

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pause is the time between two connections.
const pause = 400 * time.Millisecond

// Start makes connections until stop is called, which waits for the last to be
// closed and for the namespace to be left. It needs CAP_SYS_ADMIN.
func Start() (stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		// Sockets belong to the namespace of the thread that makes them. The
		// thread is not unlocked: it ends with the goroutine, and the
		// namespace with it.
		runtime.LockOSThread()
		listener, err := enter()
		ready <- err
		if err == nil {
			play(ctx, listener)
		}
	}()
	if err := <-ready; err != nil {
		cancel()
		<-done
		return nil, err
	}
	return func() { cancel(); <-done }, nil
}

// enter moves the thread to a network namespace of its own, with a listener.
func enter() (*net.TCPListener, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	if err := raiseLoopback(); err != nil {
		return nil, fmt.Errorf("raise its loopback interface: %w", err)
	}
	var plainTCP net.ListenConfig
	plainTCP.SetMultipathTCP(false)
	l, err := plainTCP.Listen(context.Background(), "tcp4", "127.0.0.1:8080")
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// play makes one connection after the other, each ended in another way.
func play(ctx context.Context, l *net.TCPListener) {
	defer l.Close()
	endings := []func(client, server *net.TCPConn){clientFirst, serverFirst, orphan, reset}
	for i := 0; ctx.Err() == nil; i++ {
		client, server, err := connect(l)
		if err == nil {
			endings[i%len(endings)](client, server)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func connect(l *net.TCPListener) (client, server *net.TCPConn, err error) {
	if client, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr)); err != nil {
		return nil, nil, err
	}
	if server, err = l.AcceptTCP(); err != nil {
		client.Close()
		return nil, nil, err
	}
	return client, server, nil
}

// clientFirst leaves TIME_WAIT with the client.
func clientFirst(client, server *net.TCPConn) {
	client.Close()
	time.Sleep(20 * time.Millisecond)
	server.Close()
}

// serverFirst leaves TIME_WAIT with the server.
func serverFirst(client, server *net.TCPConn) { clientFirst(server, client) }

// orphan leaves the client in FIN_WAIT2, where nobody owns it, for half a second.
func orphan(client, server *net.TCPConn) {
	client.Close()
	time.Sleep(500 * time.Millisecond)
	server.Close()
}

// reset ends without TIME_WAIT.
func reset(client, server *net.TCPConn) {
	client.SetLinger(0)
	client.Close()
	time.Sleep(20 * time.Millisecond)
	server.Close()
}
