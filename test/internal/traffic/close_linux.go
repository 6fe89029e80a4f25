package traffic

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ActiveClose is a connection that the client closes first.
var ActiveClose = Kind{"active close", func(r *rig, n int) {
	l := r.listen()
	for range n {
		c, s := r.connect(l, client(fin1, fin2, closed).timeWait(), server(cw, lastAck, closed))
		r.close(c)
		r.awaitState(s, cw)
		r.close(s)
	}
}}

// PassiveClose is a connection that the server closes first.
var PassiveClose = Kind{"passive close", func(r *rig, n int) {
	l := r.listen()
	for range n {
		c, s := r.connect(l, client(cw, lastAck, closed), server(fin1, fin2, closed).timeWait())
		r.close(s)
		r.awaitState(c, cw)
		r.close(c)
	}
}}

// HalfClose is a connection whose client shuts down its sending side and reads
// on. The client's socket has an owner in FIN_WAIT2, unlike one that is closed.
var HalfClose = Kind{"half close", func(r *rig, n int) {
	l := r.listen()
	for range n {
		c, s := r.connect(l, client(fin1, fin2, closed).timeWait(), server(cw, lastAck, closed))
		r.shutdown(c)
		r.awaitState(s, cw)
		r.awaitState(c, fin2)
		r.send(s)
		r.recv(c)
		r.close(s)
		r.awaitState(c, closed)
		r.close(c)
	}
}}

// HalfCloseThenClose is a connection whose client shuts down its sending side
// and closes the socket before the server closes. The tracepoint reports a
// FIN_WAIT2→FIN_WAIT2 of it.
var HalfCloseThenClose = Kind{"half close, then close", func(r *rig, n int) {
	l := r.listen()
	for range n {
		c, s := r.connect(l, client(fin1, fin2, fin2, closed).timeWait().orphan(), server(cw, lastAck, closed))
		r.shutdown(c)
		r.awaitState(s, cw)
		r.awaitState(c, fin2)
		r.close(c)
		r.close(s)
	}
}}

// orphanHold is how long the server of an Orphan keeps its end open.
const orphanHold = 300 * time.Millisecond

// Orphan is a connection that the client closes and the server keeps open for
// 300 ms more. The tracepoint says FIN_WAIT2→CLOSE at once, but the connection
// is in FIN_WAIT2 until the server closes, and then in TIME_WAIT.
var Orphan = Kind{"orphan", func(r *rig, n int) {
	l := r.listen()
	var clients, servers []*end
	for range n {
		c, s := r.connect(l, client(fin1, fin2, closed).timeWait().orphan(), server(cw, lastAck, closed))
		r.close(c)
		r.awaitState(s, cw)
		clients, servers = append(clients, c), append(servers, s)
	}
	r.awaitOrphans(clients)
	time.Sleep(orphanHold) // what the kind is about
	r.closeLate(servers)
}}

// OrphanTimeout is a connection that the client closes and the server does
// not, until the client's mini-socket gives up after a second in FIN_WAIT2.
// The server's FIN is answered by a reset then.
var OrphanTimeout = Kind{"orphan timeout", func(r *rig, n int) {
	l := r.listen()
	var clients, servers []*end
	for range n {
		c, s := r.connect(l, client(fin1, fin2, closed).orphan(), server(cw, lastAck, closed))
		r.setsockopt(c.fd, unix.SOL_TCP, unix.TCP_LINGER2, 1)
		r.close(c)
		r.awaitState(s, cw)
		clients, servers = append(clients, c), append(servers, s)
	}
	r.awaitOrphans(clients)
	r.awaitTable("orphans gone", func(t table) bool {
		for _, c := range clients {
			if _, there := t[tuple{c.Local, c.Remote}]; there {
				return false
			}
		}
		return true
	})
	r.closeLate(servers)
}}

// awaitOrphans waits until each of the closed clients is in FIN_WAIT2.
func (r *rig) awaitOrphans(clients []*end) {
	r.awaitTable(fmt.Sprintf("%d orphans in FIN_WAIT2", len(clients)), func(t table) bool {
		for _, c := range clients {
			if t[tuple{c.Local, c.Remote}] != fin2 {
				return false
			}
		}
		return true
	})
}

func (r *rig) closeLate(servers []*end) {
	for _, s := range servers {
		r.res.Conns[s.conn].LastClosed = time.Now()
		r.close(s)
	}
}
