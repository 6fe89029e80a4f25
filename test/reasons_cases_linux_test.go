package test

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// Short names, so that an end fits on a line.
const (
	estab     = tracer.StateEstablished
	synSent   = tracer.StateSynSent
	synRecv   = tracer.StateSynRecv
	finWait1  = tracer.StateFinWait1
	finWait2  = tracer.StateFinWait2
	timeWait  = tracer.StateTimeWait
	closeWait = tracer.StateCloseWait
	lastAck   = tracer.StateLastAck
	inClosing = tracer.StateClosing

	noSide, local, peer, both = tracer.SideUnknown, tracer.SideLocal, tracer.SidePeer, tracer.SideBoth
)

var finCases = []reasonCase{
	{name: "in turn", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.closeInTurn(p.client, p.server)
			c.expect(p.server, lastAck, tracer.ReasonFIN, peer)
			c.expect(p.client, timeWait, tracer.ReasonKilled, local)
		})
		c.killAll(timeWait)
	}},
	{name: "at once", provoke: func(c *closings) {
		var res *traffic.Result
		var err error
		c.ns.Do(func() { res, err = traffic.SimultaneousClose.Run(connections, c.family()) })
		c.must("simultaneous close", err)
		for _, conn := range res.Conns {
			c.expect(end{cookie: conn.Client.Cookie}, timeWait, tracer.ReasonKilled, both)
			c.expect(end{cookie: conn.Server.Cookie}, timeWait, tracer.ReasonKilled, both)
		}
		c.expect(end{cookie: res.Listeners[0].Cookie}, tracer.StateListen, tracer.ReasonClosed, noSide)
		c.kill("state", "time-wait")
	}},
	{name: "orphan that expires", slow: true, provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.setTCP(p.client, unix.TCP_LINGER2, 1)
			c.orphan(p.client, p.server)
			c.expect(p.client, finWait2, tracer.ReasonExpired, local)
			c.closeLate(p.server)
		})
	}},
	// For more than a minute an orphan stays a full socket at first.
	{name: "orphan that has a long time", slow: true, provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.setTCP(p.client, unix.TCP_LINGER2, 61)
			c.orphan(p.client, p.server)
			c.expect(p.client, finWait2, tracer.ReasonExpired, local)
			c.closeLate(p.server)
		})
	}},
	{name: "orphan that has a long time, which is shortened", slow: true, provoke: func(c *closings) {
		c.ns.Sysctl("net.ipv4.tcp_fin_timeout", "61")
		c.pairs(func(p pair) {
			c.orphan(p.client, p.server)
			c.expect(p.client, finWait2, tracer.ReasonExpired, local) // tcp_keepalive_timer sends a reset
			c.expect(p.server, closeWait, tracer.ReasonRSTReceived, peer)
			c.closeLate(p.server)
		})
		c.awaitAll(finWait2)
		c.ns.Sysctl("net.ipv4.tcp_fin_timeout", "59")
	}},
	{name: "orphan that has a long time, and TIME_WAIT refused", slow: true, provoke: func(c *closings) {
		c.ns.Sysctl("net.ipv4.tcp_max_tw_buckets", "0")
		c.pairs(func(p pair) {
			c.setTCP(p.client, unix.TCP_LINGER2, 61)
			c.orphan(p.client, p.server)
			c.expect(p.client, finWait2, tracer.ReasonTimeWaitRefused, local)
			c.closeLate(p.server)
		})
	}},
}

// resetCases are resets that come.
var resetCases = []reasonCase{
	{name: "reset in FIN_WAIT1", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.shutdown(e, unix.SHUT_WR)
			c.r.say(port, flagRST, 0, 0)
			c.ends(e, finWait1, tracer.ReasonRSTReceived, local)
		})
	}},
	{name: "reset of an orphan in FIN_WAIT1", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.closes(e, finWait1, tracer.ReasonRSTReceived, local)
			c.r.say(port, flagRST, 0, 0)
		})
	}},
	{name: "reset in CLOSING", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.shutdown(e, unix.SHUT_WR)
			c.r.say(port, flagFIN|flagACK, 0, 0)
			c.awaitState(e, inClosing)
			c.r.say(port, flagRST, 1, 0)
			c.ends(e, inClosing, tracer.ReasonRSTReceived, both)
		})
	}},
	{name: "reset in LAST_ACK", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.r.say(port, flagFIN|flagACK, 0, 0)
			c.awaitState(e, closeWait)
			c.closes(e, lastAck, tracer.ReasonRSTReceived, peer)
			c.r.say(port, flagRST, 1, 0)
		})
	}},
	{name: "reset in SYN_RECV", remote: true, provoke: func(c *closings) {
		c.fastOpens(func(e end, port uint16) {
			c.r.say(port, flagRST, 1, 0)
			c.ends(e, synRecv, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "reset in TIME_WAIT", provoke: func(c *closings) {
		var all []pair
		c.pairs(func(p pair) {
			c.closeInTurn(p.client, p.server)
			c.expect(p.server, lastAck, tracer.ReasonFIN, peer)
			c.expect(p.client, timeWait, tracer.ReasonRSTReceived, local)
			all = append(all, p)
		})
		assassinateAll(c.loop, all)
	}},
	{name: "reset of a SYN", provoke: func(c *closings) {
		for range connections {
			c.ns.Do(func() {
				e := end{fd: c.socket()}
				e.cookie = c.cookie(e.fd)
				if err := unix.Connect(e.fd, sockaddrOf(c.addrPort(listenPort))); err != unix.ECONNREFUSED {
					c.t.Fatalf("connect: %v", err)
				}
				c.ends(e, synSent, tracer.ReasonRefused, peer)
			})
		}
	}},
}

// closeCases are ends that a process makes, and what the other end sees of it.
var closeCases = []reasonCase{
	{name: "unread data in ESTABLISHED", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.write(p.server, 1)
			c.awaitUnread(p.client)
			c.closes(p.client, estab, tracer.ReasonRSTSentUnreadData, local)
			c.ends(p.server, estab, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "unread data in CLOSE_WAIT", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.write(p.client, 1)
			c.shutdown(p.client, unix.SHUT_WR)
			c.awaitState(p.client, finWait2)
			c.closes(p.server, closeWait, tracer.ReasonRSTSentUnreadData, peer)
			c.ends(p.client, finWait2, tracer.ReasonRSTReceived, local)
		})
	}},
	{name: "unread data in FIN_WAIT2", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.shutdown(p.client, unix.SHUT_WR)
			c.awaitState(p.client, finWait2)
			c.write(p.server, 1)
			c.awaitUnread(p.client)
			c.closes(p.client, finWait2, tracer.ReasonRSTSentUnreadData, local)
			c.ends(p.server, closeWait, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "unread data in FIN_WAIT1", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.r.say(port, flagACK, 0, 0, 'x')
			c.awaitUnread(e)
			c.shutdown(e, unix.SHUT_WR)
			c.closes(e, finWait1, tracer.ReasonRSTSentUnreadData, local)
		})
	}},
	{name: "unread data in LAST_ACK", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.r.say(port, flagFIN|flagACK, 0, 0, 'x')
			c.awaitState(e, closeWait)
			c.shutdown(e, unix.SHUT_WR)
			c.closes(e, lastAck, tracer.ReasonRSTSentUnreadData, peer)
		})
	}},
	{name: "SO_LINGER 0 in ESTABLISHED", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.linger(p.server)
			c.closes(p.server, estab, tracer.ReasonRSTSentLinger, local)
			c.ends(p.client, estab, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "SO_LINGER 0 in CLOSE_WAIT", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.linger(p.server)
			c.shutdown(p.client, unix.SHUT_WR)
			c.awaitState(p.client, finWait2)
			c.closes(p.server, closeWait, tracer.ReasonRSTSentLinger, peer)
			c.ends(p.client, finWait2, tracer.ReasonRSTReceived, local)
		})
	}},
	{name: "SO_LINGER 0 in FIN_WAIT2", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.linger(p.client)
			c.shutdown(p.client, unix.SHUT_WR)
			c.awaitState(p.client, finWait2)
			c.closes(p.client, finWait2, tracer.ReasonRSTSentLinger, local)
			c.ends(p.server, closeWait, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "negative TCP_LINGER2 in FIN_WAIT2", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.setTCP(p.client, unix.TCP_LINGER2, -1)
			c.shutdown(p.client, unix.SHUT_WR)
			c.awaitState(p.client, finWait2)
			c.closes(p.client, finWait2, tracer.ReasonRSTSentLinger, local)
			c.ends(p.server, closeWait, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "negative TCP_LINGER2 in FIN_WAIT1", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.setTCP(e, unix.TCP_LINGER2, -1)
			c.closes(e, finWait2, tracer.ReasonRSTSentLinger, local)
			c.r.say(port, flagACK, 0, 1)
		})
	}},
	{name: "AF_UNSPEC in ESTABLISHED", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			disconnect(p.client.fd)
			c.ends(p.client, estab, tracer.ReasonRSTSentAbort, local)
			c.ends(p.server, estab, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "AF_UNSPEC in CLOSE_WAIT", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.shutdown(p.server, unix.SHUT_WR)
			c.awaitState(p.server, finWait2)
			disconnect(p.client.fd)
			c.ends(p.client, closeWait, tracer.ReasonRSTSentAbort, peer)
			c.ends(p.server, finWait2, tracer.ReasonRSTReceived, local)
		})
	}},
	{name: "AF_UNSPEC in FIN_WAIT2", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.shutdown(p.client, unix.SHUT_WR)
			c.awaitState(p.client, finWait2)
			disconnect(p.client.fd)
			c.ends(p.client, finWait2, tracer.ReasonRSTSentAbort, local)
			c.ends(p.server, closeWait, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "listener closed before accept", provoke: func(c *closings) {
		c.unaccepted()
		c.closes(c.listener, tracer.StateListen, tracer.ReasonClosed, noSide)
	}},
	{name: "listener shut down before accept", provoke: func(c *closings) {
		c.unaccepted()
		c.shutdown(c.listener, unix.SHUT_RD)
		c.ends(c.listener, tracer.StateListen, tracer.ReasonClosed, noSide)
	}},
	{name: "listener closed before accept in SYN_RECV", remote: true, provoke: func(c *closings) {
		c.listenFastOpen()
		eachPort(func(port uint16) { c.r.segment(port, flagSYN, remoteISN, 0, 'x') })
		eachPort(func(port uint16) { c.r.awaitSynAck(port) })
		for _, cookie := range c.cookies("syn-recv") {
			c.expect(end{cookie: cookie}, synRecv, tracer.ReasonRSTSentUnaccepted, local)
		}
		c.closes(c.listener, tracer.StateListen, tracer.ReasonClosed, noSide)
	}},
	{name: "data after shutdown in FIN_WAIT2", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.shutdown(p.client, unix.SHUT_RDWR)
			c.awaitState(p.client, finWait2)
			c.write(p.server, 1)
			c.ends(p.client, finWait2, tracer.ReasonRSTSentLateData, local)
			c.ends(p.server, closeWait, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "data after shutdown in FIN_WAIT1", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.shutdown(e, unix.SHUT_RDWR)
			c.r.say(port, flagACK, 0, 0, 'x')
			c.ends(e, finWait1, tracer.ReasonRSTSentLateData, local)
		})
	}},
	{name: "data with the answer to the FIN", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.closes(e, finWait2, tracer.ReasonRSTSentLateData, local)
			c.r.say(port, flagACK, 0, 1, 'x')
		})
	}},
	{name: "data for an orphan", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.orphan(p.client, p.server)
			c.write(p.server, 1)
			c.expect(p.client, finWait2, tracer.ReasonRSTSentLateData, local)
			c.ends(p.server, closeWait, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "data for an orphan that is a full socket", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.setTCP(p.client, unix.TCP_LINGER2, 120)
			c.orphan(p.client, p.server)
			c.write(p.server, 1)
			c.expect(p.client, finWait2, tracer.ReasonRSTSentLateData, local)
			c.ends(p.server, closeWait, tracer.ReasonRSTReceived, peer)
		})
	}},
	// What was acknowledged already comes again, with more.
	{name: "data beyond the FIN in CLOSE_WAIT", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.r.say(port, flagFIN|flagACK, 0, 0)
			c.awaitState(e, closeWait)
			c.r.say(port, flagACK, 0, 0, []byte("xyz")...)
			c.ends(e, closeWait, tracer.ReasonRSTSentLateData, peer)
		})
	}},
	{name: "data beyond the FIN in LAST_ACK", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.r.say(port, flagFIN|flagACK, 0, 0)
			c.awaitState(e, closeWait)
			c.closes(e, lastAck, tracer.ReasonRSTSentLateData, peer)
			c.r.say(port, flagACK, 0, 0, []byte("xyz")...)
		})
	}},
	// CRIU closes so what goes on elsewhere: without a word to the peer.
	{name: "TCP_REPAIR", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.setTCP(p.client, unix.TCP_REPAIR, 1)
			c.closes(p.client, estab, tracer.ReasonClosed, local)
			c.closes(p.server, finWait1, tracer.ReasonRSTReceived, local)
		})
	}},
	{name: "close in SYN_SENT", remote: true, provoke: func(c *closings) {
		c.connectings(func(e end) { c.closes(e, synSent, tracer.ReasonClosed, local) })
	}},
	{name: "shutdown in SYN_SENT", remote: true, provoke: func(c *closings) {
		c.connectings(func(e end) {
			c.shutdown(e, unix.SHUT_WR)
			c.ends(e, synSent, tracer.ReasonClosed, local)
		})
	}},
	{name: "AF_UNSPEC in SYN_SENT", remote: true, provoke: func(c *closings) {
		c.connectings(func(e end) {
			disconnect(e.fd)
			c.ends(e, synSent, tracer.ReasonClosed, local)
		})
	}},
	// tcp_disconnect leaves an error behind that nobody has asked for.
	{name: "listen after AF_UNSPEC", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			disconnect(p.client.fd)
			c.expect(p.client, estab, tracer.ReasonRSTSentAbort, local)
			c.ends(p.server, estab, tracer.ReasonRSTReceived, peer)
			c.ns.Do(func() { c.must("listen", unix.Listen(p.client.fd, 1)) })
			c.closes(p.client, tracer.StateListen, tracer.ReasonClosed, noSide)
		})
	}},
}

// killCases are ss -K in each state. Orphans are spared up to 6.10 (bac76cf89816).
var killCases = []reasonCase{
	{name: "killed in ESTABLISHED", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.kill("state", "established", "src", p.server.local.String(), "dst", p.server.remote.String())
			c.ends(p.server, estab, tracer.ReasonKilled, local)
			c.ends(p.client, estab, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "killed in CLOSE_WAIT", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.shutdown(p.client, unix.SHUT_WR)
			c.awaitState(p.client, finWait2)
			c.kill("state", "close-wait")
			c.ends(p.server, closeWait, tracer.ReasonKilled, peer)
			c.ends(p.client, finWait2, tracer.ReasonRSTReceived, local)
		})
	}},
	{name: "killed in FIN_WAIT2", provoke: func(c *closings) {
		c.pairs(func(p pair) {
			c.shutdown(p.client, unix.SHUT_WR)
			c.awaitState(p.client, finWait2)
			c.kill("state", "fin-wait-2")
			c.ends(p.client, finWait2, tracer.ReasonKilled, local)
			c.ends(p.server, closeWait, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "killed in FIN_WAIT2 without an owner", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.closes(e, finWait2, tracer.ReasonKilled, local)
			c.r.say(port, flagACK, 0, 1)
		})
		c.killAll(finWait2)
	}},
	{name: "killed in FIN_WAIT1", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, _ uint16) {
			c.shutdown(e, unix.SHUT_WR)
			c.expect(e, finWait1, tracer.ReasonKilled, local)
			c.closeLate(e)
		})
		c.killAll(finWait1)
	}},
	{name: "killed in CLOSING", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.shutdown(e, unix.SHUT_WR)
			c.r.say(port, flagFIN|flagACK, 0, 0)
			c.awaitState(e, inClosing)
			c.expect(e, inClosing, tracer.ReasonKilled, both)
			c.closeLate(e)
		})
		c.killAll(inClosing)
	}},
	{name: "killed in LAST_ACK", remote: true, provoke: func(c *closings) {
		c.remotes(func(e end, port uint16) {
			c.r.say(port, flagFIN|flagACK, 0, 0)
			c.awaitState(e, closeWait)
			c.shutdown(e, unix.SHUT_WR)
			c.expect(e, lastAck, tracer.ReasonKilled, peer)
			c.closeLate(e)
		})
		c.killAll(lastAck)
	}},
	{name: "killed in SYN_SENT", remote: true, provoke: func(c *closings) {
		c.connectings(func(e end) {
			c.expect(e, synSent, tracer.ReasonKilled, local)
			c.closeLate(e)
		})
		c.killAll(synSent)
	}},
	// What it has not accepted goes with it.
	{name: "killed in LISTEN", provoke: func(c *closings) {
		c.listen()
		for range connections {
			c.ns.Do(func() {
				e := end{fd: c.socket()}
				e.cookie = c.cookie(e.fd)
				c.must("connect", unix.Connect(e.fd, sockaddrOf(c.listener.local)))
				c.expect(e, estab, tracer.ReasonRSTReceived, peer)
				c.closeLate(e)
			})
		}
		c.awaitQueued(connections)
		for tuple, cookie := range c.cookies("established") {
			if tuple.Local == c.listener.local {
				c.expect(end{cookie: cookie}, estab, tracer.ReasonKilled, local)
			}
		}
		c.kill("state", "listening")
		c.ends(c.listener, tracer.StateListen, tracer.ReasonKilled, noSide)
	}},
}

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

func (c *closings) family() tracer.Family {
	if c.addr.Is6() {
		return tracer.FamilyIPv6
	}
	return tracer.FamilyIPv4
}

// unaccepted makes connections that nobody accepts, some of which the client
// has shut down.
func (c *closings) unaccepted() {
	c.t.Helper()
	c.listen()
	for i := range connections {
		c.ns.Do(func() {
			e := end{fd: c.socket()}
			e.cookie = c.cookie(e.fd)
			c.must("connect", unix.Connect(e.fd, sockaddrOf(c.listener.local)))
			if i%2 == 0 {
				c.expect(e, estab, tracer.ReasonRSTReceived, peer)
			} else {
				c.shutdown(e, unix.SHUT_WR)
				c.awaitState(e, finWait2)
				c.expect(e, finWait2, tracer.ReasonRSTReceived, local)
			}
			c.closeLate(e)
		})
	}
	c.awaitQueued(connections)
	for tuple, cookie := range c.cookies("established") {
		if tuple.Local == c.listener.local {
			c.expect(end{cookie: cookie}, estab, tracer.ReasonRSTSentUnaccepted, local)
		}
	}
	for _, cookie := range c.cookies("close-wait") {
		c.expect(end{cookie: cookie}, closeWait, tracer.ReasonRSTSentUnaccepted, peer)
	}
}

func (c *closings) cookies(state string) map[oracle.Tuple]uint64 {
	c.t.Helper()
	cookies, err := oracle.Cookies(c.ns, state)
	c.must("ss", err)
	return cookies
}

// listenFastOpen has the listener take data in SYNs.
func (c *closings) listenFastOpen() {
	c.t.Helper()
	c.ns.Sysctl("net.ipv4.tcp_fastopen", "3")
	c.listen()
	c.setTCP(c.listener, unix.TCP_FASTOPEN, connections)
	c.setTCP(c.listener, unix.TCP_FASTOPEN_NO_COOKIE, 1)
}

// fastOpens makes connections whose SYN carried a byte and is not answered yet:
// they are accepted in SYN_RECV.
func (c *closings) fastOpens(do func(e end, port uint16)) {
	c.t.Helper()
	c.listenFastOpen()
	eachPort(func(port uint16) { c.r.segment(port, flagSYN, remoteISN, 0, 'x') })
	for range connections {
		e := c.acceptRemote()
		do(e, e.remote.Port())
	}
	c.closeLate(c.listener)
}

// connectings makes sockets in SYN_SENT, each to another of the remote's ports.
func (c *closings) connectings(do func(e end)) {
	c.t.Helper()
	var all []end
	eachPort(func(port uint16) {
		all = append(all, c.connecting(sockaddrOf(netip.AddrPortFrom(c.r.addr, port))))
	})
	for _, e := range all {
		do(e)
	}
}

// giveUpSoon has the kernel repeat nothing more than once.
func (c *closings) giveUpSoon() {
	c.t.Helper()
	c.ns.Sysctl("net.ipv4.tcp_retries2", "1")
	c.ns.Sysctl("net.ipv4.tcp_orphan_retries", "1")
}

// keepAlive has the kernel probe the peer every second.
func (c *closings) keepAlive(e end, probes int) {
	c.t.Helper()
	c.must("SO_KEEPALIVE", unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1))
	c.setTCP(e, unix.TCP_KEEPIDLE, 1)
	c.setTCP(e, unix.TCP_KEEPINTVL, 1)
	c.setTCP(e, unix.TCP_KEEPCNT, probes)
}

// limit sets a sysctl of the whole host until the test is over.
func (c *closings) limit(name, value string) {
	c.t.Helper()
	path := "/proc/sys/net/ipv4/" + name
	before, err := os.ReadFile(path)
	c.must("read sysctl", err)
	c.must("set sysctl", os.WriteFile(path, []byte(value), 0))
	c.t.Cleanup(func() {
		if err := os.WriteFile(path, before, 0); err != nil {
			c.t.Error(err)
		}
	})
}
