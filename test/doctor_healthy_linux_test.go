package test

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// A host that does a lot, and does it right, is told so: one that serves others over a
// network, and one that talks to itself over loopback with the kernel's defaults.
func TestDoctorHealthy(t *testing.T) {
	t.Run("server", func(t *testing.T) {
		server, world := inhabited(t), netns.New(t)
		join(t, server, world)
		// The others have no more than their ports either, and use them again.
		world.Sysctl("net.ipv4.tcp_tw_reuse", "1")
		checkHealthy(t, &town{t: t, server: server, client: world, addr: serverAddr}, 1)
	})
	t.Run("loopback", func(t *testing.T) {
		ns := inhabited(t)
		checkHealthy(t, &town{t: t, server: ns, client: ns, addr: netip.MustParseAddr("127.0.0.1")}, 2)
	})
}

// healthyRate is how many connections a second there are to be.
const healthyRate = 10_000

// checkHealthy has the doctor look at the server. ends is how many of the ends of a
// connection are there.
func checkHealthy(t *testing.T, w *town, ends uint64) {
	stop := w.bustle()
	defer stop()
	p := &patient{t, w.server}
	var rate, alone float64
	for range 3 { // others may need the machine
		alone = w.rate()
		d := p.diagnose()
		qt.Assert(t, qt.DeepEquals(d.ids(), nil), qt.Commentf("%+v", d.Findings))
		qt.Assert(t, qt.Equals(d.code, 0))
		qt.Check(t, qt.Equals(d.Traffic.Lost, 0))
		rate = float64(d.Traffic.Opened/ends) / d.Traffic.Until.Sub(d.Traffic.Since).Seconds()
		t.Logf("%.0f connections a second, %.0f without the doctor, %v", rate, alone, d.Sockets)
		if rate >= healthyRate {
			break
		}
	}
	// A machine that makes hardly so many by itself has shown what it can.
	qt.Check(t, qt.IsTrue(rate >= min(healthyRate, 0.6*alone)), qt.Commentf("%.0f connections a second", rate))
	qt.Check(t, qt.Equals(w.failed.Load(), 0))
}

var (
	serverAddr = netip.MustParseAddr("192.0.2.1")
	worldAddr  = netip.MustParseAddr("192.0.2.2")
)

// join links two namespaces by a pair of virtual devices.
func join(t *testing.T, server, world *netns.NS) {
	t.Helper()
	there := world.Command("sleep", "infinity") // so that ip can name the namespace
	qt.Assert(t, qt.IsNil(there.Start()))
	defer func() { _ = there.Wait() }()
	defer func() { _ = there.Process.Kill() }()
	awaitNetns(t, there.Process.Pid, world)
	ip := func(ns *netns.NS, args ...string) {
		t.Helper()
		out, err := ns.Command("ip", args...).CombinedOutput()
		qt.Assert(t, qt.IsNil(err), qt.Commentf("ip %v: %s", args, out))
	}
	ip(server, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(there.Process.Pid))
	ip(server, "addr", "add", serverAddr.String()+"/24", "dev", "eth0")
	ip(world, "addr", "add", worldAddr.String()+"/24", "dev", "eth0")
	ip(server, "link", "set", "eth0", "up")
	ip(world, "link", "set", "eth0", "up")
}

// awaitNetns waits until the process is in the namespace.
func awaitNetns(t *testing.T, pid int, ns *netns.NS) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st); err == nil && uint32(st.Ino) == ns.Inode() {
			return
		}
		qt.Assert(t, qt.IsTrue(time.Now().Before(deadline)))
	}
}

// town is clients and a server, in a namespace each or in one.
type town struct {
	t              *testing.T
	server, client *netns.NS
	addr           netip.Addr
	made, failed   atomic.Uint64
}

// rate returns how many connections a second are made now.
func (w *town) rate() float64 {
	const spell = 500 * time.Millisecond
	before := w.made.Load()
	time.Sleep(spell)
	return float64(w.made.Load()-before) / spell.Seconds()
}

const (
	townBusy    = 8000 // where the busy server listens
	townIdle    = 9000 // where the pool does
	pooled      = 500
	townBacklog = 4096
)

// bustle has many connections made: short ones, as fast as the CPUs go, and a pool of
// those that stay. It returns what ends them.
func (w *town) bustle() (stop func()) {
	var (
		running  sync.WaitGroup
		stopping atomic.Bool
	)
	// To one port: with more, there would be more in TIME_WAIT than is harmless.
	listener := w.listen(townBusy)
	for range runtime.NumCPU() {
		running.Go(func() {
			w.client.Do(func() {
				for !stopping.Load() {
					w.note(w.ask(listener))
					w.made.Add(1)
				}
			})
		})
	}
	pool := w.fillPool()
	return func() {
		stopping.Store(true)
		running.Wait()
		for _, fd := range append(pool, listener) {
			unix.Close(fd)
		}
	}
}

func (w *town) note(err error) {
	if err != nil {
		w.failed.Add(1)
		w.t.Log(err)
	}
}

func (w *town) sockaddr(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: port, Addr: w.addr.As4()}
}

func (w *town) listen(port int) (fd int) {
	var err error
	w.server.Do(func() {
		fd, err = churnSocket()
		err = errors.Join(err, unix.Bind(fd, w.sockaddr(port)), unix.Listen(fd, townBacklog))
	})
	qt.Assert(w.t, qt.IsNil(err))
	return fd
}

// ask makes a connection and has a question answered, both ends by one thread: to
// change between two takes longer than all the rest. The other end may be that of
// another thread's, which then has this one's.
func (w *town) ask(listener int) error {
	client, err := churnSocket()
	if err != nil {
		return err
	}
	if err := unix.Connect(client, w.sockaddr(townBusy)); err != nil {
		unix.Close(client)
		return fmt.Errorf("connect: %w", err)
	}
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		unix.Close(client)
		return fmt.Errorf("accept: %w", err)
	}
	err = errors.Join(pass(client, server), pass(server, client), unix.Close(client))
	if n, end := unix.Read(server, make([]byte, 1)); n != 0 || end != nil {
		err = errors.Join(err, fmt.Errorf("%d bytes and %w instead of the end", n, end))
	}
	return errors.Join(err, unix.Close(server))
}

// pass sends a byte from one end to an end.
func pass(from, to int) error {
	var b [1]byte
	_, write := unix.Write(from, b[:])
	_, read := unix.Read(to, b[:])
	return errors.Join(write, read)
}

// fillPool opens connections that stay.
func (w *town) fillPool() (fds []int) {
	listener := w.listen(townIdle)
	fds = append(fds, listener)
	w.client.Do(func() {
		for range pooled {
			fd, err := churnSocket()
			w.note(errors.Join(err, unix.Connect(fd, w.sockaddr(townIdle))))
			accepted, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			w.note(err)
			fds = append(fds, fd, accepted)
		}
	})
	return fds
}
