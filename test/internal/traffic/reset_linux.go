package traffic

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ResetByLinger is a connection that the client ends with a reset, by closing
// with SO_LINGER 0.
var ResetByLinger = Kind{"reset by SO_LINGER 0", func(r *rig, n int) {
	l := r.listen()
	for range n {
		c, s := r.connect(l, client(closed), server(closed))
		must("SO_LINGER", unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		r.close(c)
		r.awaitState(s, closed)
		r.close(s)
	}
}}

// ResetByUnreadData is a connection that the client closes without having read
// what the server sent, which makes the kernel reset it.
var ResetByUnreadData = Kind{"reset by unread data", func(r *rig, n int) {
	l := r.listen()
	for range n {
		c, s := r.connect(l, client(closed), server(closed))
		r.send(s)
		r.await("unread data", func() bool {
			unread, err := unix.IoctlGetInt(c.fd, unix.SIOCINQ)
			must("SIOCINQ", err)
			return unread > 0
		})
		r.close(c)
		r.awaitState(s, closed)
		r.close(s)
	}
}}

// Refused is a connection to a port where nobody listens.
var Refused = Kind{"refused", func(r *rig, n int) {
	nobody := r.bind(r.socket(), 0)
	for range n {
		fd := r.socket()
		if err := unix.Connect(fd, sockaddr(nobody)); !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.ECONNREFUSED) {
			must("connect to be refused", unexpected(err))
		}
		c := r.addClient(fd, nobody, raw(closed, synSent, closed))
		r.awaitState(c, closed)
		r.close(c)
	}
}}

// unexpected makes the absence of an error an error.
func unexpected(err error) error {
	if err == nil {
		return errors.New("it worked")
	}
	return err
}

// ConnectTimeout is a connection to a listener that answers nothing. The
// client gives up after a second.
var ConnectTimeout = Kind{"connect timeout", func(r *rig, n int) {
	l := r.listen()
	r.filter(l.fd, dropAll)
	var clients []*end
	for range n {
		fd := r.socket()
		r.setsockopt(fd, unix.SOL_TCP, unix.TCP_SYNCNT, 1)
		r.setsockopt(fd, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, 1000)
		clients = append(clients, r.dial(fd, l.Local, raw(closed, synSent, closed)))
	}
	for _, c := range clients {
		r.awaitState(c, closed)
		r.close(c)
	}
}}

// ListenerClosed is a connection that waits to be accepted when its listener
// closes. The kernel resets it.
var ListenerClosed = Kind{"listener closed", func(r *rig, n int) {
	l := r.listen()
	var clients, children []*end
	for range n {
		c := r.dial(r.socket(), l.Local, client(closed))
		r.awaitState(c, estab)
		clients, children = append(clients, c), append(children, r.addServer(c, server(closed)))
	}
	r.awaitTable("children in ESTABLISHED", func(t table) bool {
		for _, s := range children {
			if t[tuple{s.Local, s.Remote}] != estab {
				return false
			}
		}
		return true
	})
	r.close(l)
	for _, c := range clients {
		r.awaitState(c, closed)
		r.close(c)
	}
}}

// ListenFails is a socket that fails to listen, because another one listens on
// the port. It is in LISTEN for a moment. There are no connections.
var ListenFails = Kind{"listen fails", func(r *rig, n int) {
	bind := func(port uint16) (int, netip.AddrPort) {
		fd := r.socket()
		r.setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		return fd, r.bind(fd, port)
	}
	first, local := bind(0)
	var others []int
	for range n {
		fd, _ := bind(local.Port())
		others = append(others, fd)
	}
	must("listen", unix.Listen(first, 1))
	r.addListener(first, local)
	for _, fd := range others {
		if err := unix.Listen(fd, 1); !errors.Is(err, unix.EADDRINUSE) {
			must("listen where another listens", unexpected(err))
		}
		r.addListener(fd, local)
	}
}}
