package test

import (
	"golang.org/x/sys/unix"

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
		c.expectQueued(tracer.ReasonKilled)
		c.kill("state", "listening")
		c.ends(c.listener, tracer.StateListen, tracer.ReasonKilled, noSide)
	}},
}
