package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// pattern is a kind of load: connections over loopback, one after the other on
// each CPU, both ends by one thread.
type pattern struct {
	name      string
	listeners int // on each CPU
	ipv6      bool
	// use does with a connection what is to be done, up to its end.
	use func(client, server int) error
	// beside opens what is to be there beside the load; nil for nothing.
	beside func() (idle, error)
}

var patterns = []pattern{
	{name: "close", listeners: 16, use: closeBoth},
	{name: "half-close", listeners: 16, use: halfClose},
	{name: "keep-alive", listeners: 16, use: keepAlive},
	{name: "rst", listeners: 16, use: reset},
	{name: "listeners", listeners: 1024, use: closeBoth},
	{name: "ipv6", listeners: 16, ipv6: true, use: closeBoth},
	{name: "beside-100000-sockets", listeners: 16, use: closeBoth, beside: openConnections},
	{name: "beside-1000-namespaces", listeners: 16, use: closeBoth, beside: openNamespaces},
}

func patternNames() (names []string) {
	for _, p := range patterns {
		names = append(names, p.name)
	}
	return names
}

// closeBoth has the client close first.
func closeBoth(client, server int) error {
	return errors.Join(unix.Close(client), unix.Close(server))
}

// halfClose has the client say that it has sent all, and the server go on.
func halfClose(client, server int) error {
	err := errors.Join(
		unix.Shutdown(client, unix.SHUT_WR),
		pass(server, client),
	)
	return errors.Join(err, unix.Close(server), unix.Close(client))
}

// keepAlive has many requests and answers on one connection.
func keepAlive(client, server int) error {
	const requests = 50
	for range requests {
		if err := errors.Join(pass(client, server), pass(server, client)); err != nil {
			return err
		}
	}
	return closeBoth(client, server)
}

// reset has the client give the connection up.
func reset(client, server int) error {
	return errors.Join(
		unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		closeBoth(client, server),
	)
}

// pass sends a byte.
func pass(from, to int) error {
	var b [1]byte
	_, err := unix.Write(from, b[:])
	if err == nil {
		_, err = unix.Read(to, b[:])
	}
	return err
}

// run makes connections on every CPU for that long, and returns how many, and how
// long it took.
func (p *pattern) run(spell time.Duration) (connections uint64, took time.Duration, err error) {
	var (
		made   atomic.Uint64
		ready  sync.WaitGroup
		begin  = make(chan bool)
		ended  = make(chan error)
		cpus   = runtime.NumCPU()
		failed []error
	)
	ready.Add(cpus)
	for range cpus {
		go func() {
			// The thread ends with the goroutine, and its namespace with it.
			runtime.LockOSThread()
			w, err := p.newWorker()
			ready.Done()
			<-begin
			if err == nil {
				err = w.work(spell, &made)
			}
			ended <- err
		}()
	}
	ready.Wait()
	start := time.Now()
	close(begin)
	for range cpus {
		failed = append(failed, <-ended)
	}
	return made.Load(), time.Since(start), errors.Join(failed...)
}

// worker makes the connections of one CPU, in a network namespace of its own.
type worker struct {
	pattern   *pattern
	listeners []int
}

const firstPort = 10_000

func (p *pattern) newWorker() (*worker, error) {
	if err := netns.Unshare(); err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"ip_local_port_range": "20000 65535",
		"tcp_tw_reuse":        "1", // or there are no ports before long
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return nil, err
		}
	}
	w := &worker{pattern: p}
	for i := range p.listeners {
		fd, err := p.socket()
		if err != nil {
			return nil, err
		}
		if err := errors.Join(unix.Bind(fd, p.address(i)), unix.Listen(fd, 16)); err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
		w.listeners = append(w.listeners, fd)
	}
	return w, nil
}

func (p *pattern) socket() (int, error) {
	family := unix.AF_INET
	if p.ipv6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	return fd, nil
}

// address is the i-th listener's.
func (p *pattern) address(i int) unix.Sockaddr {
	if p.ipv6 {
		return &unix.SockaddrInet6{Port: firstPort + i, Addr: [16]byte{15: 1}}
	}
	return &unix.SockaddrInet4{Port: firstPort + i, Addr: [4]byte{127, 0, 0, 1}}
}

func (w *worker) work(spell time.Duration, made *atomic.Uint64) error {
	defer w.close()
	var n int
	defer func() { made.Add(uint64(n)) }()
	for deadline := time.Now().Add(spell); time.Now().Before(deadline); n++ {
		if err := w.connect(n % len(w.listeners)); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) close() {
	for _, fd := range w.listeners {
		unix.Close(fd)
	}
}

// connect makes a connection to a listener, and uses it.
func (w *worker) connect(listener int) error {
	client, err := w.pattern.socket()
	if err != nil {
		return err
	}
	if err := unix.Connect(client, w.pattern.address(listener)); err != nil {
		unix.Close(client)
		return fmt.Errorf("connect: %w", err)
	}
	server, _, err := unix.Accept4(w.listeners[listener], unix.SOCK_CLOEXEC)
	if err != nil {
		unix.Close(client)
		return fmt.Errorf("accept: %w", err)
	}
	return w.pattern.use(client, server)
}
