package test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/tracer"
)

var closingConditions = []condition{
	{
		name: "connections that are not closed", finds: []string{"close-wait-leak"},
		plant: func(p *patient) {
			c := p.closingsAt(20000)
			for i, pair := range c.connectMany(connections) {
				c.orphan(pair.client, pair.server)
				c.closeLate(pair.server)
				if i < endsRead {
					c.awaitEOF(pair.server)
				}
			}
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "close-wait-leak")
			qt.Check(t, qt.Equals(f.Severity, "warning")) // most have not been looked at
			qt.Check(t, qt.StringContains(f.Application[0], "nobody looks"))
			checkFacts(t, f, map[string]any{
				"pid": float64(os.Getpid()), "sockets": float64(connections), "new": 0.0,
				"unread_end": float64(connections - endsRead), "unread_data": 0.0, "unsent_data": 0.0,
				"biggest_locals": "127.0.0.1:20000 (23)", "peers": 1.0, "biggest_peers": "127.0.0.1 (23)", "grown_per_second": nil, "limit_reached_in_seconds": nil,
			})
			open, limit := f.Facts["files_open"].(float64), f.Facts["files_limit"].(float64)
			qt.Check(t, qt.IsTrue(open >= connections && open < limit))
			var rlimit unix.Rlimit
			qt.Assert(t, qt.IsNil(unix.Getrlimit(unix.RLIMIT_NOFILE, &rlimit)))
			qt.Check(t, qt.Equals(limit, float64(rlimit.Cur)))
		},
	},
	{
		name: "connections that are not closed, more and more", finds: []string{"close-wait-leak"},
		plant: func(p *patient) {
			c := p.closingsAt(20001)
			for range connections {
				c.leak()
			}
			p.meanwhile(func() {
				c.leak()
				time.Sleep(50 * time.Millisecond) // not too many
			})
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "close-wait-leak")
			grown := f.Facts["new"].(float64)
			qt.Check(t, qt.IsTrue(grown >= 10), qt.Commentf("%v", f.Facts))
			qt.Check(t, qt.IsTrue(f.Facts["sockets"].(float64) >= connections))
			checkFacts(t, f, map[string]any{"grown_per_second": grown / d.WatchedSeconds})
			qt.Check(t, qt.IsTrue(f.Facts["limit_reached_in_seconds"].(float64) > 0))
		},
	},
	{
		// None is there all the time, so that it is no leak.
		name: "connections that are closed late", finds: []string{"slow-close"},
		plant: func(p *patient) {
			c := p.closingsAt(20002)
			var waiting []lateClose
			p.meanwhile(func() {
				pair := c.connect(0)
				c.orphan(pair.client, pair.server)
				waiting = append(waiting, lateClose{pair.server, time.Now().Add(1100 * time.Millisecond)})
				for len(waiting) > 0 && time.Now().After(waiting[0].due) {
					c.close(waiting[0].end)
					waiting = waiting[1:]
				}
				time.Sleep(25 * time.Millisecond)
			})
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "slow-close")
			median := f.Facts["median_seconds"].(float64)
			qt.Check(t, qt.IsTrue(median >= 1 && median < 2), qt.Commentf("%v", f.Facts))
			qt.Check(t, qt.IsTrue(f.Facts["closes"].(float64) >= 20))
			checkFacts(t, f, map[string]any{"pid": float64(os.Getpid()), "role": "server", "service": "127.0.0.1:20002"})
		},
	},
	{
		name: "peers that do not close", finds: []string{"close-wait-leak", "fin-wait2-orphans"},
		plant: func(p *patient) {
			c := p.closingsAt(20003)
			for _, pair := range c.connectMany(manyOrphans) {
				c.orphan(pair.client, pair.server)
				c.closeLate(pair.server)
			}
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "fin-wait2-orphans")
			checkFacts(t, f, map[string]any{
				"sockets": float64(manyOrphans), "new": 0.0, "peers": 1.0, "biggest_peers": "127.0.0.1:20003 (53)",
				"tcp_fin_timeout_seconds": 60.0,
			})
			qt.Check(t, qt.HasLen(f.Sysctls, 0)) // the other end is at hand
			qt.Check(t, qt.StringContains(f.Application[0], "on this host, and"))
		},
	},
	{
		// The server has something to send, which nobody reads: it is no leak of its.
		name: "half-closed connections", finds: []string{"fin-wait2-held"},
		plant: func(p *patient) {
			c := p.closingsAt(20004)
			var servers []end
			for _, pair := range c.connectMany(connections) {
				c.shutdown(pair.client, unix.SHUT_WR)
				c.awaitState(pair.server, closeWait)
				servers = append(servers, pair.server)
				c.closeLate(pair.client)
				c.closeLate(pair.server)
			}
			c.fillAll(servers)
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "fin-wait2-held")
			qt.Check(t, qt.Equals(f.Severity, "info")) // so far
			checkFacts(t, f, map[string]any{
				"pid": float64(os.Getpid()), "sockets": float64(connections), "new": 0.0, "unread_data": float64(connections),
			})
		},
	},
	{
		name: "peers that have vanished", finds: []string{"fin-wait1-pileup"},
		plant: func(p *patient) { p.vanishInFinWait1(20005) },
		check: func(t *testing.T, d *diagnosis) {
			checkFacts(t, d.find(t, "fin-wait1-pileup"), map[string]any{
				"sockets": float64(connections), "stalled": float64(connections), "without_process": float64(connections),
				"unsent_data": float64(connections), "retransmitted": float64(connections), "biggest_peers": "127.0.0.1:20005 (23)",
				"tcp_orphan_retries": 0.0,
			})
		},
	},
	{
		// The window is closed, and probes of it are answered.
		name: "peers that do not read", finds: []string{"fin-wait1-pileup"},
		plant: func(p *patient) {
			c := p.closingsAt(20006)
			var clients []end
			for _, pair := range c.connectMany(connections) {
				clients = append(clients, pair.client)
				c.closeLate(pair.server)
			}
			c.fillAll(clients)
			for _, e := range clients {
				c.close(e)
			}
		},
		check: func(t *testing.T, d *diagnosis) {
			checkFacts(t, d.find(t, "fin-wait1-pileup"), map[string]any{
				"stalled": float64(connections), "unsent_data": float64(connections), "retransmitted": 0.0,
			})
		},
	},
	{
		// They are slow, and well.
		name: "peers that read slowly",
		plant: func(p *patient) {
			c := p.closingsAt(20009)
			var clients, servers []end
			for _, pair := range c.connectMany(connections) {
				clients, servers = append(clients, pair.client), append(servers, pair.server)
				c.closeLate(pair.server)
			}
			c.fillAll(clients)
			for _, e := range clients {
				c.close(e)
			}
			p.meanwhile(func() {
				for _, e := range servers {
					_, err := unix.Read(e.fd, make([]byte, 6144))
					c.must("read", err)
				}
				time.Sleep(100 * time.Millisecond) // what they are about
			})
		},
		check: func(t *testing.T, d *diagnosis) {
			qt.Check(t, qt.Equals(d.Sockets["FIN_WAIT1"], connections)) // all the time
		},
	},
	{
		name: "peers that vanish after their close", finds: []string{"last-ack-pileup"},
		plant: func(p *patient) {
			c := p.closingsAt(20007)
			for _, pair := range c.connectMany(connections) {
				c.setTCP(pair.client, unix.TCP_LINGER2, 120) // it stays a full socket, and keeps its filter
				c.shutdown(pair.client, unix.SHUT_WR)
				c.awaitState(pair.client, finWait2)
				c.deafen(pair.client)
				c.close(pair.client)
				c.close(pair.server)
			}
		},
		check: func(t *testing.T, d *diagnosis) {
			checkFacts(t, d.find(t, "last-ack-pileup"), map[string]any{
				"sockets": float64(connections), "stalled": float64(connections), "without_process": float64(connections),
				"unsent_data": 0.0, "retransmitted": float64(connections), "biggest_peers": "127.0.0.1 (23)",
			})
		},
	},
}

const (
	// endsRead is of how many connections that are not closed the end is read.
	endsRead = 10
	// manyOrphans is more than a peer that is well leaves behind.
	manyOrphans = 53
)

// lateClose is a socket that is to be closed then.
type lateClose struct {
	end
	due time.Time
}

// checkFacts holds facts to what they should be; nil is one that must not be there.
func checkFacts(t *testing.T, f finding, want map[string]any) {
	t.Helper()
	for name, value := range want {
		qt.Check(t, qt.Equals(f.Facts[name], value), qt.Commentf("%s of %v", name, f.Facts))
	}
}

// closingsAt makes a listener at the port of the patient's loopback address.
func (p *patient) closingsAt(port uint16) *closings {
	p.t.Helper()
	c := &closings{loop: &loop{t: p.t, ns: p.ns, addr: netip.AddrFrom4([4]byte{127, 0, 0, 1})}, want: map[uint64][]closing{}}
	p.ns.Do(func() {
		fd := c.socket()
		c.bind(fd, port)
		c.must("listen", unix.Listen(fd, 1024))
		c.listener = end{fd: fd, cookie: c.cookie(fd), local: c.addrPort(port)}
	})
	c.closeLate(c.listener)
	return c
}

// connectMany makes connections from ports that the kernel chooses.
func (c *closings) connectMany(n int) (pairs []pair) {
	c.t.Helper()
	for range n {
		pairs = append(pairs, c.connect(0))
	}
	return pairs
}

// leak makes a connection that the server does not close, and of whose client nothing is
// left.
func (c *closings) leak() {
	c.t.Helper()
	pair := c.connect(0)
	c.shutdown(pair.client, unix.SHUT_WR)
	c.setTCP(pair.server, unix.TCP_QUICKACK, 1)
	c.awaitState(pair.client, finWait2)
	c.closeSilently(pair.client)
	c.closeLate(pair.server)
}

// closeSilently closes a socket so that its peer gets no word of it.
func (c *closings) closeSilently(e end) {
	c.t.Helper()
	c.setTCP(e, unix.TCP_REPAIR, 1)
	c.close(e)
}

// deafen has a socket get nothing that is sent to it any more.
func (c *closings) deafen(e end) {
	c.t.Helper()
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	c.must("SO_ATTACH_FILTER", unix.SetsockoptSockFprog(e.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: 1, Filter: &drop}))
}

// fillAll writes until the peers have closed their windows, and more.
func (c *closings) fillAll(all []end) {
	c.t.Helper()
	for _, e := range all {
		c.fill(e)
	}
	for _, e := range all {
		c.awaitClosedWindow(e)
		c.fill(e) // now all that there is room for stays here
	}
}

func (c *closings) fill(e end) {
	c.t.Helper()
	c.must("SO_SNDBUF", unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<18))
	c.must("non-blocking", unix.SetNonblock(e.fd, true))
	for data := make([]byte, 1<<14); ; {
		_, err := unix.Write(e.fd, data)
		if err == unix.EAGAIN {
			break
		}
		c.must("write", err)
	}
}

// awaitClosedWindow waits until the peer takes no more. What is less than a segment is
// sent by a timer.
func (c *closings) awaitClosedWindow(e end) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		info, err := unix.GetsockoptTCPInfo(e.fd, unix.SOL_TCP, unix.TCP_INFO)
		c.must("TCP_INFO", err)
		if info.Snd_wnd == 0 && info.Unacked == 0 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatal("the window is not closed")
		}
	}
}

// vanishInFinWait1 closes connections whose peers get nothing any more.
func (p *patient) vanishInFinWait1(port uint16) {
	p.t.Helper()
	c := p.closingsAt(port)
	for _, pair := range c.connectMany(connections) {
		c.deafen(pair.server)
		c.write(pair.client, 1)
		c.close(pair.client)
		c.closeLate(pair.server)
	}
}

// A process that leaks is about to fail once it has few files left.
func TestDoctorLeakNearLimit(t *testing.T) {
	p := &patient{t, inhabited(t)}
	c := p.closingsAt(20010)
	for range 5 * connections { // so that what is left is enough to start finwait
		c.leak()
	}
	files, err := os.ReadDir("/proc/self/fd")
	qt.Assert(t, qt.IsNil(err))
	var was unix.Rlimit
	qt.Assert(t, qt.IsNil(unix.Getrlimit(unix.RLIMIT_NOFILE, &was)))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(unix.Setrlimit(unix.RLIMIT_NOFILE, &was))) })
	few := unix.Rlimit{Cur: uint64(len(files) * 6 / 5), Max: was.Max}
	qt.Assert(t, qt.IsNil(unix.Setrlimit(unix.RLIMIT_NOFILE, &few)))
	f := p.diagnose().find(t, "close-wait-leak")
	qt.Check(t, qt.Equals(f.Severity, "critical"), qt.Commentf("%v", f.Facts))
	checkFacts(t, f, map[string]any{"files_limit": float64(few.Cur), "sockets": float64(5 * connections)})
}

// Keepalive ends CLOSE_WAIT once the peer's socket is gone, and not the leak: the
// descriptors are there as before.
func TestCloseWaitEndedByKeepalive(t *testing.T) {
	p := &patient{t, inhabited(t)}
	c := p.closingsAt(20008)
	var leaked []end
	for _, pair := range c.connectMany(connections) {
		c.keepAlive(pair.server, 9)
		c.setTCP(pair.client, unix.TCP_LINGER2, 1)
		c.orphan(pair.client, pair.server)
		c.closeLate(pair.server)
		leaked = append(leaked, pair.server)
	}
	for _, e := range leaked {
		c.awaitState(e, tracer.StateClose)
	}
	counts, err := oracle.SS(p.ns)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(counts[closeWait], 0))
}
