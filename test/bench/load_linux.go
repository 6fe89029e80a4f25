package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
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
	beside func(*idle) error
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

// load makes connections on every CPU, each in a network namespace of its own. What
// is left of them in TIME_WAIT stays for as long as the load is open: to end it is
// work, which must not fall into another's measurement.
type load struct {
	workers []chan time.Duration // each takes how long to work
	worked  chan outcome         // of each worker that was told to
	closed  chan error           // of each that has ended
}

// outcome is what a worker has done.
type outcome struct {
	connections uint64
	err         error
}

func (p *pattern) open() (*load, error) {
	cpus := runtime.NumCPU()
	l := &load{worked: make(chan outcome), closed: make(chan error, cpus)}
	ready := make(chan error)
	for range cpus {
		spells := make(chan time.Duration)
		l.workers = append(l.workers, spells)
		go func() {
			// The thread ends with the goroutine, and its namespace with it.
			runtime.LockOSThread()
			w, err := p.newWorker()
			ready <- err
			if err != nil {
				l.closed <- nil
				return
			}
			for spell := range spells {
				n, err := w.work(spell)
				l.worked <- outcome{n, err}
			}
			l.closed <- w.end()
		}()
	}
	var failed []error
	for range cpus {
		failed = append(failed, <-ready)
	}
	if err := errors.Join(failed...); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// run makes connections for that long, and returns how many, and how long it took.
func (l *load) run(spell time.Duration) (connections uint64, took time.Duration, err error) {
	start := time.Now()
	for _, spells := range l.workers {
		spells <- spell
	}
	for range l.workers {
		o := <-l.worked
		connections += o.connections
		err = errors.Join(err, o.err)
	}
	return connections, time.Since(start), err
}

// once makes the load for one spell.
func (p *pattern) once(spell time.Duration) (connections uint64, took time.Duration, err error) {
	l, err := p.open()
	if err != nil {
		return 0, 0, err
	}
	connections, took, err = l.run(spell)
	return connections, took, errors.Join(err, l.close())
}

// close ends what is left.
func (l *load) close() (err error) {
	for _, spells := range l.workers {
		close(spells)
	}
	for range l.workers {
		err = errors.Join(err, <-l.closed)
	}
	return err
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

// work makes connections for that long, and returns how many.
func (w *worker) work(spell time.Duration) (n uint64, err error) {
	for deadline := time.Now().Add(spell); time.Now().Before(deadline); n++ {
		if err := w.connect(int(n) % len(w.listeners)); err != nil {
			return n, err
		}
	}
	return n, nil
}

// end closes the listeners, and ends what is in TIME_WAIT, as otherwise the kernel
// does some time after the namespace is gone.
func (w *worker) end() error {
	w.close()
	if err := exec.Command("ss", "--kill", "--no-header", "state", "time-wait").Run(); err != nil {
		return fmt.Errorf("end what is in TIME_WAIT (ss --kill): %w", err)
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
