package test

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

// handshakeCases are connections that come to nothing.
var handshakeCases = []reasonCase{
	{name: "unreachable in SYN_SENT", remote: true, provoke: func(c *closings) {
		port := uint16(remotePort)
		c.connectings(func(e end) {
			c.r.unreachableFrom(e.local.Port(), port)
			c.ends(e, synSent, tracer.ReasonUnreachable, noSide)
			port++
		})
	}},
	{name: "unreachable in SYN_RECV", remote: true, provoke: func(c *closings) {
		c.listenFastOpen()
		eachPort(func(port uint16) { c.r.segment(port, flagSYN, remoteISN, 0, 'x') })
		eachPort(func(port uint16) { c.r.awaitSynAck(port) })
		for _, cookie := range c.cookies("syn-recv") {
			c.expect(end{cookie: cookie}, synRecv, tracer.ReasonUnreachable, noSide)
		}
		eachPort(c.r.unreachable)
		c.closeLate(c.listener)
	}},
	{name: "port in use", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.ns.Do(func() {
				e := end{fd: c.socket()}
				e.cookie = c.cookie(e.fd)
				c.bind(e.fd, p.client.local.Port())
				if err := unix.Connect(e.fd, sockaddrOf(c.listener.local)); err != unix.EADDRNOTAVAIL {
					c.t.Fatalf("connect from a port in use: %v", err)
				}
				c.ends(e, synSent, tracer.ReasonLocalError, local)
			})
			c.closeLate(p.client)
			c.closeLate(p.server)
		})
	}},
	{name: "no free port", provoke: func(c *closings) {
		c.listen()
		c.ns.Sysctl("net.ipv4.ip_local_port_range", fmt.Sprint(clientPort, clientPort))
		c.ns.Do(func() {
			taken := end{fd: c.socket()}
			c.bind(taken.fd, clientPort)
			c.closeLate(taken)
			for range connections {
				e := end{fd: c.socket()}
				e.cookie = c.cookie(e.fd)
				if err := unix.Connect(e.fd, sockaddrOf(c.listener.local)); err != unix.EADDRNOTAVAIL {
					c.t.Fatalf("connect without a port: %v", err)
				}
				c.ends(e, synSent, tracer.ReasonLocalError, local)
			}
		})
		c.closes(c.listener, tracer.StateListen, tracer.ReasonClosed, noSide)
	}},
	// tcp_disconnect leaves an error behind that nobody has asked for.
	{name: "port in use after AF_UNSPEC", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			disconnect(p.client.fd)
			c.expect(p.client, estab, tracer.ReasonRSTSentAbort, local)
			c.ends(p.server, estab, tracer.ReasonRSTReceived, peer)
			another := c.connect(p.client.local.Port())
			c.ns.Do(func() {
				if err := unix.Connect(p.client.fd, sockaddrOf(c.listener.local)); err != unix.EADDRNOTAVAIL {
					c.t.Fatalf("connect from a port in use: %v", err)
				}
			})
			c.ends(p.client, synSent, tracer.ReasonLocalError, local)
			c.closeLate(another.client)
			c.closeLate(another.server)
		})
	}},
	// connect looks for a route before it enters SYN_SENT.
	{name: "no route", provoke: func(c *closings) {
		to := &unix.SockaddrInet4{Addr: [4]byte{198, 51, 100, 1}, Port: 1}
		c.ns.Do(func() {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			c.must("socket", err)
			c.closeLate(end{fd: fd})
			if err := unix.Connect(fd, to); err != unix.ENETUNREACH {
				c.t.Fatalf("connect without a route: %v", err)
			}
		})
	}},
	{name: "listen where another listens", provoke: func(c *closings) {
		var all []end
		c.ns.Do(func() {
			for range connections {
				e := end{fd: c.socket()}
				e.cookie = c.cookie(e.fd)
				c.bind(e.fd, listenPort)
				all = append(all, e)
			}
		})
		c.listen()
		for _, e := range all {
			if err := unix.Listen(e.fd, 1); err != unix.EADDRINUSE {
				c.t.Fatalf("listen where another listens: %v", err)
			}
			c.ends(e, tracer.StateListen, tracer.ReasonLocalError, noSide)
		}
		c.closes(c.listener, tracer.StateListen, tracer.ReasonClosed, noSide)
	}},
	// tcp_v4_syn_recv_sock looks for a route when it has the socket, and
	// tcp_v6_syn_recv_sock before.
	{name: "route gone before the last segment", remote: true, slow: true, family: tracer.FamilyIPv4, provoke: func(c *closings) {
		c.listen()
		eachPort(c.r.syn)
		eachPort(func(port uint16) { c.r.awaitSynAck(port) })
		for _, cookie := range c.halfOpenCookies() {
			c.expect(end{cookie: cookie}, synRecv, tracer.ReasonHandshakeFailed, noSide)
			c.expect(end{cookie: cookie}, tracer.StateNewSynRecv, tracer.ReasonListenerGone, noSide)
		}
		out, err := c.ns.Command("ip", "route", "del", "198.51.100.0/24").CombinedOutput()
		if err != nil {
			c.t.Fatalf("ip route del: %v: %s", err, out)
		}
		eachPort(c.r.ack)
		c.closes(c.listener, tracer.StateListen, tracer.ReasonClosed, noSide)
	}},
	{name: "no memory for the key", remote: true, slow: true, provoke: func(c *closings) {
		least := leastOptionMemory(c)
		c.listen()
		c.r.key = []byte("finwait")
		c.setKey(c.listener, c.r)
		eachPort(c.r.syn)
		eachPort(func(port uint16) { c.r.awaitSynAck(port) })
		for _, cookie := range c.halfOpenCookies() {
			c.expect(end{cookie: cookie}, synRecv, tracer.ReasonHandshakeFailed, noSide)
			c.expect(end{cookie: cookie}, tracer.StateNewSynRecv, tracer.ReasonListenerGone, noSide)
		}
		c.ns.Sysctl(optionMemory, fmt.Sprint(least))
		eachPort(c.r.ack)
		c.closes(c.listener, tracer.StateListen, tracer.ReasonClosed, noSide)
	}},
}

// optionMemory is how much memory a socket may have beside its buffers, for
// filters, keys and socket storage.
const optionMemory = "net.core.optmem_max"

// leastOptionMemory returns how little of it an accepted socket can do with: it is
// all used by what the socket has from its listener in socket storage, and a key
// finds no room (tcp_md5_key_copy). A remote of another namespace tries.
func leastOptionMemory(c *closings) int {
	c.t.Helper()
	l, r := newRemoteLoop(c.t, c.family())
	if !l.ns.HasSysctl(optionMemory) {
		c.t.Skip("option memory is the whole host's here (before 6.8, f5769faeec36)")
	}
	l.listen()
	// A tracer that starts later has no room for storage there either.
	defer unix.Close(l.listener.fd)
	port := uint16(remotePort)
	for bytes := 64; bytes < 1<<14; bytes += 32 {
		l.ns.Sysctl(optionMemory, fmt.Sprint(bytes))
		r.syn(port)
		r.ack(port)
		if l.awaitAcceptable(slow(10 * time.Millisecond)) {
			return bytes
		}
		port++
	}
	c.t.Fatal("no connection can be accepted")
	return 0
}

// awaitAcceptable tells whether the listener has a connection to accept, or gets
// one within that time.
func (l *loop) awaitAcceptable(timeout time.Duration) bool {
	l.t.Helper()
	fds := []unix.PollFd{{Fd: int32(l.listener.fd), Events: unix.POLLIN}}
	l.must("poll", uninterrupted(func() error {
		_, err := unix.Poll(fds, int(timeout.Milliseconds()))
		return err
	}))
	return fds[0].Revents&unix.POLLIN != 0
}

// setKey has a socket sign what it sends to the remote, and take nothing else from it.
func (c *closings) setKey(e end, r *remote) {
	c.t.Helper()
	var sig unix.TCPMD5Sig
	addr := sig.Addr.Data[2:] // after the port
	sig.Addr.Family = uint16(c.domain())
	if r.addr.Is6() {
		addr = addr[4:] // after the flow
	}
	copy(addr, r.addr.AsSlice())
	sig.Keylen = uint16(copy(sig.Key[:], r.key))
	c.must("TCP_MD5SIG", unix.SetsockoptTCPMD5Sig(e.fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &sig))
}

// timeoutCases are peers that fall silent.
var timeoutCases = []reasonCase{
	{name: "no answer to the SYN", remote: true, slow: true, provoke: func(c *closings) {
		c.ns.Sysctl("net.ipv4.tcp_syn_retries", "1")
		c.connectings(func(e end) {
			c.expect(e, synSent, tracer.ReasonTimeoutHandshake, noSide)
			c.closeLate(e)
		})
	}},
	{name: "no answer to the SYN-ACK", remote: true, slow: true, provoke: func(c *closings) {
		c.ns.Sysctl("net.ipv4.tcp_synack_retries", "0") // tcp_fastopen_synack_timer adds one
		c.fastOpens(func(e end, _ uint16) {
			c.expect(e, synRecv, tracer.ReasonTimeoutHandshake, noSide)
			c.closeLate(e)
		})
	}},
	{name: "no answer to data", remote: true, slow: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.remotes(func(e end, _ uint16) {
			c.write(e, 1)
			c.expect(e, estab, tracer.ReasonTimeoutRetransmit, noSide)
			c.closeLate(e)
		})
	}},
	{name: "no answer to data in CLOSE_WAIT", remote: true, slow: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.remotes(func(e end, port uint16) {
			c.r.say(port, flagFIN|flagACK, 0, 0)
			c.awaitState(e, closeWait)
			c.write(e, 1)
			c.expect(e, closeWait, tracer.ReasonTimeoutRetransmit, peer)
			c.closeLate(e)
		})
	}},
	{name: "no answer to the FIN", remote: true, slow: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.remotes(func(e end, _ uint16) {
			c.shutdown(e, unix.SHUT_WR)
			c.expect(e, finWait1, tracer.ReasonTimeoutRetransmit, local)
			c.closeLate(e)
		})
	}},
	{name: "no answer to the FIN of an orphan", remote: true, slow: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.remotes(func(e end, _ uint16) { c.closes(e, finWait1, tracer.ReasonTimeoutRetransmit, local) })
	}},
	{name: "no answer to the last FIN", remote: true, slow: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.remotes(func(e end, port uint16) {
			c.r.say(port, flagFIN|flagACK, 0, 0)
			c.awaitState(e, closeWait)
			c.closes(e, lastAck, tracer.ReasonTimeoutRetransmit, peer)
		})
	}},
	{name: "no answer to crossed FINs", remote: true, slow: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.remotes(func(e end, port uint16) {
			c.shutdown(e, unix.SHUT_WR)
			c.r.say(port, flagFIN|flagACK, 0, 0)
			c.awaitState(e, inClosing)
			c.closes(e, inClosing, tracer.ReasonTimeoutRetransmit, both)
		})
	}},
	{name: "no answer to window probes", remote: true, slow: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.r.window = 0
		c.remotes(func(e end, _ uint16) {
			c.write(e, 1)
			c.expect(e, estab, tracer.ReasonTimeoutRetransmit, noSide)
			c.closeLate(e)
		})
	}},
	{name: "no answer to window probes, TCP_USER_TIMEOUT far away", remote: true, slow: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.r.window = 0
		c.remotes(func(e end, _ uint16) {
			c.setTCP(e, unix.TCP_USER_TIMEOUT, 1000_000)
			c.write(e, 1)
			c.expect(e, estab, tracer.ReasonTimeoutRetransmit, noSide)
			c.closeLate(e)
		})
	}},
	{name: "no answer to window probes of an orphan", remote: true, slow: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.r.window = 0
		c.remotes(func(e end, _ uint16) {
			c.write(e, 1)
			c.closes(e, finWait1, tracer.ReasonTimeoutRetransmit, local)
		})
	}},
	{name: "no answer to keepalive", remote: true, slow: true, provoke: func(c *closings) {
		c.remotes(func(e end, _ uint16) {
			c.keepAlive(e, 1)
			c.expect(e, estab, tracer.ReasonTimeoutKeepalive, noSide)
			c.closeLate(e)
		})
	}},
	{name: "no answer to keepalive in FIN_WAIT2", remote: true, slow: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.keepAlive(e, 1)
			c.shutdown(e, unix.SHUT_WR)
			c.r.say(port, flagACK, 0, 1)
			c.awaitState(e, finWait2)
			c.expect(e, finWait2, tracer.ReasonTimeoutKeepalive, local)
			c.closeLate(e)
		})
	}},
	{name: "no answer to keepalive within TCP_USER_TIMEOUT", remote: true, slow: true, provoke: func(c *closings) {
		c.remotes(func(e end, _ uint16) {
			c.keepAlive(e, 9)
			c.setTCP(e, unix.TCP_USER_TIMEOUT, 1500)
			c.expect(e, estab, tracer.ReasonTimeoutUser, noSide)
			c.closeLate(e)
		})
	}},
	{name: "no answer to data within TCP_USER_TIMEOUT", remote: true, slow: true, provoke: func(c *closings) {
		c.remotes(func(e end, _ uint16) {
			c.setTCP(e, unix.TCP_USER_TIMEOUT, 500)
			c.write(e, 1)
			c.expect(e, estab, tracer.ReasonTimeoutUser, noSide)
			c.closeLate(e)
		})
	}},
	{name: "no answer to the FIN of an orphan within TCP_USER_TIMEOUT", remote: true, slow: true, provoke: func(c *closings) {
		c.remotes(func(e end, _ uint16) {
			c.setTCP(e, unix.TCP_USER_TIMEOUT, 500)
			c.closes(e, finWait1, tracer.ReasonTimeoutUser, local)
		})
	}},
	{name: "no answer to window probes within TCP_USER_TIMEOUT", remote: true, slow: true, provoke: func(c *closings) {
		c.r.window = 0
		c.remotes(func(e end, _ uint16) {
			c.setTCP(e, unix.TCP_USER_TIMEOUT, 500)
			c.write(e, 1)
			c.expect(e, estab, tracer.ReasonTimeoutUser, noSide)
			c.closeLate(e)
		})
	}},
}

// limitCases are orphans that there is no room for. The limits are the whole
// host's.
var limitCases = []reasonCase{
	{name: "more orphans than tcp_max_orphans", remote: true, global: true, provoke: func(c *closings) {
		var all []end
		c.remotes(func(e end, port uint16) {
			if len(all)%2 != 0 {
				c.r.say(port, flagFIN|flagACK, 0, 0)
				c.awaitState(e, closeWait)
			}
			all = append(all, e)
		})
		c.closes(all[0], finWait1, tracer.ReasonRSTSentOrphanLimit, local) // by its timer
		time.Sleep(300 * time.Millisecond)                                 // TCP_ORPHAN_TIMER_PERIOD is 100 ms
		c.limit("tcp_max_orphans", "0")
		for i, e := range all[1:] {
			if i%2 == 0 {
				c.closes(e, lastAck, tracer.ReasonRSTSentOrphanLimit, peer)
			} else {
				c.closes(e, finWait1, tracer.ReasonRSTSentOrphanLimit, local)
			}
		}
	}},
	// The kernel counts memory by the MiB of each CPU.
	{name: "more memory than tcp_mem", remote: true, global: true, provoke: func(c *closings) {
		var all []end
		c.remotes(func(e end, _ uint16) {
			c.must("SO_SNDBUFFORCE", unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20))
			c.must("non-blocking", unix.SetNonblock(e.fd, true))
			c.write(e, 1<<19)
			all = append(all, e)
		})
		c.limit("tcp_mem", "0 0 0")
		for _, e := range all {
			c.closes(e, finWait1, tracer.ReasonRSTSentMemory, local)
		}
	}},
}
