package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// crowd is many sockets in one state, in a network namespace of their own.
type crowd struct {
	state       *crowdState
	connections int // that were asked for
	makers      int // the threads that make them
	ns          int // a descriptor of the namespace
	raw         int // a socket to send segments of one's own making with
	refreshed   time.Time
	// short says why there are fewer than asked for; nil if there are not.
	short error
}

// crowdState is a state that a crowd can be in.
type crowdState struct {
	name           string
	ssName, ssSums string // how ss and ss -s spell it
	sockets        int    // that a connection has in it
	decays         bool   // the sockets last timeWaitLen
	made           func(client, server int) error
	count          func() (int, error)
}

var crowdStates = []*crowdState{
	{name: "TIME_WAIT", ssName: "TIME-WAIT", ssSums: "timewait", sockets: 1, decays: true, made: closeBoth, count: countTimeWait},
	{name: "ESTABLISHED", ssName: "ESTAB", ssSums: "estab", sockets: 2, made: keepBoth, count: countEstablished},
}

// keepBoth leaves the ends to the thread, with which they are closed.
func keepBoth(_, _ int) error { return nil }

const (
	// timeWaitLen is TCP_TIMEWAIT_LEN, which no setting changes.
	timeWaitLen = 60 * time.Second
	// A client's address has this many ports, from this one on.
	crowdPorts, firstCrowdPort = 50_000, 10_001
	crowdListener              = 9_000 // the port of the first thread's
)

// withCrowd makes a crowd of sockets, and calls f on a thread that is in their
// namespace.
func withCrowd(ctx context.Context, state *crowdState, sockets int, f func(*crowd) error) error {
	ended := make(chan error)
	go func() {
		// The thread ends with the goroutine, and its namespace with it.
		runtime.LockOSThread()
		c := &crowd{state: state, connections: max(sockets/state.sockets, 1)}
		err := c.open()
		if err == nil {
			err = c.populated(ctx, f)
		}
		ended <- err
	}()
	return <-ended
}

func (c *crowd) open() error {
	if err := netns.Unshare(); err != nil {
		return err
	}
	err := setSysctls(map[string]string{
		"tcp_max_tw_buckets": "4000000",
		"tcp_tw_reuse":       "0",
		// See refresh.
		"tcp_rfc1337":           "1",
		"tcp_invalid_ratelimit": "1000000000",
	})
	if err != nil {
		return err
	}
	if c.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	if c.raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	c.makers, err = c.threads()
	return err
}

func setSysctls(ipv4 map[string]string) error {
	for name, value := range ipv4 {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// threads returns how many it takes to hold the connections: one for each CPU, or
// more if a table of files takes few. Each thread has its own, so that the
// processes that are started need not close them, and no limit has to be raised.
func (c *crowd) threads() (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("getrlimit: %w", err)
	}
	const others = 100 // that are open
	held := 0
	if !c.state.decays {
		held = 2 * c.connections
	}
	return max(runtime.NumCPU(), held/max(int(limit.Cur)-others, 1)+1), nil
}

// share is the connections of a thread: from one up to another.
func (c *crowd) share(maker int) (from, to int) {
	return c.connections * maker / c.makers, c.connections * (maker + 1) / c.makers
}

// populated makes the sockets, calls f, and sees to it that none is left: all
// namespaces share the kernel's table, in which the next crowd would find them.
func (c *crowd) populated(ctx context.Context, f func(*crowd) error) error {
	var filled, left sync.WaitGroup
	release := make(chan bool)
	shortages := make([]error, c.makers)
	c.refreshed = time.Now()
	for i := range c.makers {
		filled.Add(1)
		left.Go(func() {
			runtime.LockOSThread() // and never unlocked, so that it ends
			shortages[i] = c.fill(ctx, i)
			filled.Done()
			<-release
		})
	}
	filled.Wait()
	c.short = cmp.Or(shortages...)
	err := f(c)
	if err != nil {
		err = errors.Join(err, c.short)
	}
	// From here on no socket enters TIME_WAIT, and a segment ends those that are there.
	err = errors.Join(err, setSysctls(map[string]string{
		"tcp_max_tw_buckets":    "0",
		"tcp_rfc1337":           "0",
		"tcp_invalid_ratelimit": "0",
	}))
	close(release)
	left.Wait()
	return errors.Join(err, c.drain(), unix.Close(c.raw), unix.Close(c.ns))
}

// fill makes the share of a thread.
func (c *crowd) fill(ctx context.Context, maker int) error {
	if err := errors.Join(unix.Unshare(unix.CLONE_FILES|unix.CLONE_FS), unix.Setns(c.ns, unix.CLONE_NEWNET)); err != nil {
		return fmt.Errorf("thread for sockets: %w", err)
	}
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := errors.Join(unix.Bind(listener, listenerOf(maker)), unix.Listen(listener, 16)); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	refreshed := time.Now()
	from, to := c.share(maker)
	for i := from; i < to; i++ {
		if i%1000 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if i%1000 == 0 && c.state.decays && time.Since(refreshed) > timeWaitLen/2 {
			refreshed = time.Now()
			if err := c.poke(maker, from, i); err != nil {
				return err
			}
		}
		if err := c.connect(listener, maker, i); err != nil {
			return fmt.Errorf("connection %d of %d: %w", i-from+1, to-from, err)
		}
	}
	return nil
}

func listenerOf(maker int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: crowdListener + maker, Addr: [4]byte{127, 0, 0, 1}}
}

// clientOf is the address of the i-th connection's client, in which the number
// can be had without its being kept.
func clientOf(i int) *unix.SockaddrInet4 {
	host := i / crowdPorts
	return &unix.SockaddrInet4{Port: firstCrowdPort + i%crowdPorts, Addr: [4]byte{127, 1, byte(host >> 8), byte(host)}}
}

func (c *crowd) connect(listener, maker, i int) error {
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := errors.Join(unix.Bind(client, clientOf(i)), unix.Connect(client, listenerOf(maker))); err != nil {
		unix.Close(client)
		return fmt.Errorf("connect: %w", err)
	}
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		unix.Close(client)
		return fmt.Errorf("accept: %w", err)
	}
	return c.state.made(client, server)
}

// refresh has every socket last for as long as if it were new, if their time is
// half gone: a million are not made in much less than the minute that they last.
//
// A segment that comes to a TIME_WAIT socket, and is not the reset of its peer,
// starts its timer again (tcp_timewait_state_process). The first is answered, the
// others come too soon by tcp_invalid_ratelimit. There is no socket any more to
// which the answer belongs, and so the kernel answers that by a reset, which with
// tcp_rfc1337 does nothing.
func (c *crowd) refresh() error {
	if !c.state.decays || time.Since(c.refreshed) < timeWaitLen/2 {
		return nil
	}
	c.refreshed = time.Now()
	return c.pokeAll()
}

// drain ends what is left of the connections, in the way that refresh would
// without those settings.
func (c *crowd) drain() error {
	for deadline := time.Now().Add(2 * timeWaitLen); ; time.Sleep(time.Second) {
		timeWait, err := countTimeWait()
		if err != nil {
			return err
		}
		established, err := countEstablished()
		if err != nil {
			return err
		}
		if timeWait+established == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d sockets are still in TIME_WAIT, %d in ESTABLISHED", timeWait, established)
		}
		if err := c.pokeAll(); err != nil {
			return err
		}
	}
}

// pokeAll sends a segment to the client of every connection.
func (c *crowd) pokeAll() error {
	errs := make([]error, c.makers)
	var wg sync.WaitGroup
	for i := range c.makers {
		wg.Go(func() {
			from, to := c.share(i)
			errs[i] = c.poke(i, from, to)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *crowd) poke(maker, from, to int) error {
	for i := from; i < to; i++ {
		client := clientOf(i)
		if err := unix.Sendto(c.raw, ackSegment(listenerOf(maker), client), 0, client); err != nil {
			return fmt.Errorf("send to TIME_WAIT socket: %w", err)
		}
	}
	return nil
}

// ackSegment is an IPv4 packet with an ACK and nothing else, of no use to the
// connection.
func ackSegment(from, to *unix.SockaddrInet4) []byte {
	const ipLen, tcpLen = 20, 20
	b := make([]byte, ipLen+tcpLen)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP // the kernel fills in the rest
	copy(b[12:], from.Addr[:])
	copy(b[16:], to.Addr[:])
	tcp := b[ipLen:]
	be := binary.BigEndian
	be.PutUint16(tcp[0:], uint16(from.Port))
	be.PutUint16(tcp[2:], uint16(to.Port))
	tcp[12], tcp[13] = tcpLen/4<<4, 0x10
	be.PutUint16(tcp[16:], checksum(b[12:], unix.IPPROTO_TCP+tcpLen))
	return b
}

// checksum is that of the Internet, of an even number of bytes.
func checksum(b []byte, sum uint32) uint16 {
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

// countTimeWait returns how many the kernel says that there are in the thread's
// namespace.
func countTimeWait() (int, error) {
	return counter("sockstat", func(lines []string) (string, bool) {
		for _, line := range lines {
			if _, after, ok := strings.Cut(line, " tw "); ok && strings.HasPrefix(line, "TCP:") {
				number, _, _ := strings.Cut(after, " ")
				return number, true
			}
		}
		return "", false
	})
}

// countEstablished is the same with ESTABLISHED, but for connections in
// CLOSE_WAIT, which the kernel counts with them and of which there are none.
func countEstablished() (int, error) {
	return counter("snmp", func(lines []string) (string, bool) {
		var names []string
		for _, line := range lines {
			fields := strings.Fields(line)
			for i, name := range names {
				if name == "CurrEstab" {
					return fields[i], true
				}
			}
			if fields[0] == "Tcp:" {
				names = fields
			}
		}
		return "", false
	})
}

func counter(file string, find func(lines []string) (string, bool)) (int, error) {
	path := "/proc/thread-self/net/" + file
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	number, ok := find(strings.Split(strings.TrimSpace(string(text)), "\n"))
	if !ok {
		return 0, fmt.Errorf("%s: no number in it", path)
	}
	return strconv.Atoi(number)
}
