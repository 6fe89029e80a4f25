package traffic

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

// rig is what a run works with: steps that fail the run if they do not do
// what they say.
type rig struct {
	family    tracer.Family
	protocol  int // 0 for TCP
	res       *Result
	fds       []int
	listeners []*end
}

// end is a socket that this process holds.
type end struct {
	fd int
	*Socket
	conn int // index of its connection in Result.Conns
}

// free closes what a failed run has left open.
func (r *rig) free() {
	for _, fd := range r.fds {
		unix.Close(fd)
	}
}

// pickAddr chooses an address for the run. All of 127.0.0.0/8 is local; for
// IPv6 lo gets an address more.
func (r *rig) pickAddr() {
	if r.family == tracer.FamilyIPv4 {
		r.res.Addr = netip.AddrFrom4([4]byte{127, byte(1 + rand.N(254)), byte(rand.N(256)), byte(1 + rand.N(254))})
		return
	}
	addr := [16]byte{0: 0xfd}
	for i := 1; i < len(addr); i++ {
		addr[i] = byte(1 + rand.N(255))
	}
	r.res.Addr = netip.AddrFrom16(addr)
	must("add address to lo", addLoopbackAddr6(addr))
	probe := r.socket()
	r.await("the new address", func() bool { // it is tentative until a kernel worker has run
		err := unix.Bind(probe, sockaddr(netip.AddrPortFrom(r.res.Addr, 0)))
		return !errors.Is(err, unix.EADDRNOTAVAIL)
	})
}

func addLoopbackAddr6(addr [16]byte) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req := struct { // struct in6_ifreq of include/uapi/linux/ipv6.h
		addr      [16]byte
		prefixLen uint32
		ifindex   int32
	}{addr, 128, 1}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}

func (r *rig) domain() int {
	if r.family == tracer.FamilyIPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func (r *rig) socket() int {
	fd, err := unix.Socket(r.domain(), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, r.protocol)
	must("socket", err)
	r.fds = append(r.fds, fd)
	return fd
}

// bind binds fd to the run's address and the port, or a free one if it is 0.
func (r *rig) bind(fd int, port uint16) netip.AddrPort {
	must("bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(r.res.Addr, port))))
	return localAddr(fd)
}

// listen makes a listener on a free port.
func (r *rig) listen() *end {
	fd := r.socket()
	local := r.bind(fd, 0)
	must("listen", unix.Listen(fd, 1024))
	return r.addListener(fd, local)
}

func (r *rig) addListener(fd int, local netip.AddrPort) *end {
	remote := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if r.family == tracer.FamilyIPv6 {
		remote = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	l := &end{fd: fd, Socket: &Socket{
		Walk: listener(), Role: tracer.RoleServer,
		Cookie: r.cookie(fd), Local: local, Remote: remote,
	}}
	r.res.Listeners = append(r.res.Listeners, l.Socket)
	r.listeners = append(r.listeners, l)
	return l
}

func (r *rig) closeListeners() {
	for _, l := range r.listeners {
		r.close(l)
	}
}

// dial begins to connect fd and notes the client of a new connection that is
// going to take the walk.
func (r *rig) dial(fd int, to netip.AddrPort, walk Walk) *end {
	if err := unix.Connect(fd, sockaddr(to)); err != unix.EINPROGRESS {
		must("connect", err)
	}
	return r.addClient(fd, to, walk)
}

func (r *rig) addClient(fd int, to netip.AddrPort, walk Walk) *end {
	c := &end{fd: fd, conn: len(r.res.Conns), Socket: &Socket{
		Walk: walk, Role: tracer.RoleClient,
		Cookie: r.cookie(fd), Local: localAddr(fd), Remote: to,
	}}
	r.res.Conns = append(r.res.Conns, Conn{Client: c.Socket})
	return c
}

// accept takes the client's peer off the listener's queue and notes it as the
// server of the connection.
func (r *rig) accept(l, c *end, walk Walk) *end {
	var fd int
	r.await("a connection to accept", func() (done bool) {
		var err error
		fd, _, err = unix.Accept4(l.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return again("accept", err)
	})
	r.fds = append(r.fds, fd)
	s := r.addServer(c, walk)
	s.fd, s.Cookie = fd, r.cookie(fd)
	return s
}

// addServer notes the server of c's connection.
func (r *rig) addServer(c *end, walk Walk) *end {
	s := &end{fd: -1, conn: c.conn, Socket: &Socket{
		Walk: walk, Role: tracer.RoleServer,
		Local: c.Remote, Remote: c.Local,
	}}
	r.res.Conns[c.conn].Server = s.Socket
	return s
}

// connect makes a connection whose ends are both in ESTABLISHED.
func (r *rig) connect(l *end, cw, sw Walk) (c, s *end) {
	c = r.dial(r.socket(), l.Local, cw)
	s = r.accept(l, c, sw)
	r.awaitState(c, estab)
	r.awaitState(s, estab)
	return c, s
}

// close closes e's descriptor, if it has not been closed before.
func (r *rig) close(e *end) {
	if i := slices.Index(r.fds, e.fd); i >= 0 {
		r.fds = slices.Delete(r.fds, i, i+1)
		must("close", unix.Close(e.fd))
	}
}

// cookie is fd's cookie. That of an MPTCP socket is not its subflow's.
func (r *rig) cookie(fd int) uint64 {
	if r.protocol != 0 {
		return 0
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	must("SO_COOKIE", err)
	return cookie
}

func (r *rig) shutdown(e *end) { must("shutdown", unix.Shutdown(e.fd, unix.SHUT_WR)) }

func (r *rig) setsockopt(fd, level, option, value int) {
	must(fmt.Sprintf("setsockopt %d %d", level, option), unix.SetsockoptInt(fd, level, option, value))
}

// send sends one byte.
func (r *rig) send(e *end) {
	_, err := unix.Write(e.fd, []byte{'x'})
	must("write", err)
}

// recv receives one byte.
func (r *rig) recv(e *end) {
	r.await("data", func() bool {
		_, err := unix.Read(e.fd, make([]byte, 1))
		return again("read", err)
	})
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func localAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	must("getsockname", err)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	panic("traffic: socket of another family")
}
