package traffic

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reconnect is a socket that connects, is disconnected by a connect to
// AF_UNSPEC, and connects again: two connections of one socket, with one
// cookie. The disconnection is a reset.
var Reconnect = Kind{"reconnect", func(r *rig, n int) {
	l := r.listen()
	for range n {
		c, s := r.connect(l, client(closed), server(closed))
		disconnect(c.fd)
		r.awaitState(s, closed)
		r.close(s)

		c = r.dial(c.fd, l.Local, client(fin1, fin2, closed).timeWait())
		s = r.accept(l, c, server(cw, lastAck, closed))
		r.awaitState(c, estab)
		r.awaitState(s, estab)
		r.close(c)
		r.awaitState(s, cw)
		r.close(s)
	}
}}

func disconnect(fd int) {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	if errno != 0 {
		must("connect to AF_UNSPEC", errno)
	}
}

// SelfConnect is a socket that connects to itself: its SYN, and later its FIN,
// crosses itself.
var SelfConnect = Kind{"self-connect", func(r *rig, n int) {
	for range n {
		fd := r.socket()
		local := r.bind(fd, 0)
		c := r.dial(fd, local, raw(closed, synSent, synRecv, estab, fin1, closing, closed).timeWait())
		r.awaitState(c, estab)
		r.close(c)
	}
}}

// FastOpen is a connection whose SYN carries data. It turns fast open for
// servers on in the namespace.
var FastOpen = Kind{"fast open", func(r *rig, n int) {
	const clientAndServer = "3" // net.ipv4.tcp_fastopen, for IPv6 too
	must("sysctl", os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte(clientAndServer), 0))
	l := r.listen()
	r.setsockopt(l.fd, unix.SOL_TCP, unix.TCP_FASTOPEN, 1024)
	r.setsockopt(l.fd, unix.SOL_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1)
	for range n {
		fd := r.socket()
		r.setsockopt(fd, unix.SOL_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1)
		if err := unix.Sendto(fd, []byte{'x'}, unix.MSG_FASTOPEN, sockaddr(l.Local)); !errors.Is(err, unix.EINPROGRESS) {
			must("send fast open", err)
		}
		c := r.addClient(fd, l.Local, client(fin1, fin2, closed).timeWait())
		s := r.accept(l, c, server(cw, lastAck, closed).direct())
		r.awaitState(c, estab)
		r.awaitState(s, estab)
		checkSynData(c.fd)
		r.recv(s)
		r.close(c)
		r.awaitState(s, cw)
		r.close(s)
	}
}}

// checkSynData fails the run if the server did not take the data in the SYN.
func checkSynData(fd int) {
	const synData = 32 // TCPI_OPT_SYN_DATA of include/uapi/linux/tcp.h
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	must("TCP_INFO", err)
	if info.Options&synData == 0 {
		must("fast open", fmt.Errorf("no data in the SYN (options %#x)", info.Options))
	}
}

// MPTCP is a connection of MPTCP sockets. Result holds the TCP subflows under
// them and no MPTCP socket, although the tracepoint reports both. A worker of
// the kernel shuts the client's subflow down before it closes it.
var MPTCP = Kind{"MPTCP", func(r *rig, n int) {
	r.protocol = unix.IPPROTO_MPTCP
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		must("MPTCP socket", fmt.Errorf("%w: %w", ErrUnsupported, err))
	}
	unix.Close(fd)
	l := r.listen()
	for range n {
		c, s := r.connect(l, client(fin1, fin2, fin2, closed).timeWait().orphan(), server(cw, lastAck, closed))
		r.close(c)
		r.await("end of data", func() bool {
			_, err := unix.Read(s.fd, make([]byte, 1))
			return again("read", err)
		})
		r.close(s)
	}
}}
