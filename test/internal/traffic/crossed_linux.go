package traffic

import "golang.org/x/sys/unix"

// CrossedClose is a connection whose server closes before it has seen that the
// client has closed: the client's FIN is lost and sent again later, so only
// the client takes the way through CLOSING.
var CrossedClose = Kind{"crossed close", func(r *rig, n int) {
	l := r.listen()
	var clients, servers []*end
	for range n {
		c, s := r.connect(l, client(fin1, closing, closed).timeWait(), server(fin1, fin2, closed).timeWait())
		r.filter(s.fd, dropAll)
		r.shutdown(c)
		r.shutdown(s)
		r.awaitState(c, closing)
		r.awaitState(s, fin1)
		r.unfilter(s.fd)
		clients, servers = append(clients, c), append(servers, s)
	}
	r.closeAll(clients, servers)
}}

// SimultaneousClose is a connection whose ends close at the same time: the two
// FINs pass each other on the way, and both ends go through CLOSING.
//
// On loopback nothing stays on the way. So the server does not get the
// client's FIN, which a raw socket catches, until the client has the server's;
// then it gets that very FIN. Another one that the client sends would not do:
// it would acknowledge the server's FIN.
var SimultaneousClose = Kind{"simultaneous close", func(r *rig, n int) {
	l := r.listen()
	w := r.openWire()
	var clients, servers []*end
	for range n {
		c, s := r.connect(l, client(fin1, closing, closed).timeWait(), server(fin1, closing, closed).timeWait())
		r.filter(s.fd, dropAll)
		r.shutdown(c)
		fin := w.catchFIN(c.Local.Port(), s.Local.Port())
		r.shutdown(s)
		r.awaitState(c, closing)
		r.filter(s.fd, onlyAck(fin.ack()))
		w.send(c.Local, s.Local, fin)
		r.awaitState(s, closing)
		r.unfilter(s.fd)
		clients, servers = append(clients, c), append(servers, s)
	}
	r.closeAll(clients, servers)
}}

// closeAll closes the pairs after their FINs have been sent again and
// acknowledged, which takes some 200 ms for all of them together.
func (r *rig) closeAll(clients, servers []*end) {
	for i := range clients {
		r.awaitState(clients[i], closed)
		r.awaitState(servers[i], closed)
		r.close(clients[i])
		r.close(servers[i])
	}
}

// dropAll is a socket filter that lets no segment in.
var dropAll = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}

// onlyAck is a socket filter that lets in the segments with that
// acknowledgement number. A TCP socket's filter sees the segment from its TCP
// header on.
func onlyAck(ack uint32) []unix.SockFilter {
	const ackOffset = 8
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: ackOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: ack, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

func (r *rig) filter(fd int, program []unix.SockFilter) {
	must("attach filter", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}))
}

func (r *rig) unfilter(fd int) { r.setsockopt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) }
