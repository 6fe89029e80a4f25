package tracer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Numbers of include/uapi/linux/sock_diag.h and inet_diag.h that x/sys lacks.
const (
	sockDiagByFamily = 20
	tcpDiagGetSock   = 18

	// The sizes of struct inet_diag_req_v2, inet_diag_req and inet_diag_msg.
	sizeofDiagReqV2 = 56
	sizeofDiagReq   = 60
	sizeofDiagMsg   = 72

	// diagShutdown is INET_DIAG_SHUTDOWN, an attribute of a record.
	diagShutdown = 8

	// diagBufSize holds every datagram of a dump: the kernel sizes them after
	// the reader's buffer, up to 32 KiB, and more is not worth waiting for.
	diagBufSize = 64 << 10
)

// diagConn is a socket of NETLINK_SOCK_DIAG. It speaks for the network
// namespace in which it was opened, wherever its user is later. It is not safe
// for concurrent use.
type diagConn struct {
	fd  int
	seq uint32
	buf []byte
	// perFamily means that the kernel lists one family at a time alone.
	perFamily bool
}

// openDiag opens a diagConn in the network namespace of the calling thread,
// with buf (diagBufSize bytes) to receive into.
func openDiag(buf []byte) (*diagConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", explainDiag(os.NewSyscallError("socket", err)))
	}
	// Connected, the socket takes messages from the kernel alone.
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open sock_diag: %w", os.NewSyscallError("connect", err))
	}
	return &diagConn{fd: fd, buf: buf}, nil
}

func (c *diagConn) Close() error { return unix.Close(c.fd) }

// dump calls visit for every TCP socket in one of the states (a set of bits
// 1<<State). What visit is given is valid until it returns. interrupted says
// that the kernel's tables changed in a way that makes the dump unreliable.
func (c *diagConn) dump(ctx context.Context, states uint32, visit func(diagMsg)) (interrupted bool, err error) {
	if !c.perFamily {
		interrupted, err = c.exchange(ctx, diagRequest(states), visit)
		if !errors.Is(err, errDiagMissing) {
			return interrupted, err
		}
		c.perFamily = true
	}
	for _, family := range []Family{FamilyIPv4, FamilyIPv6} {
		one, err := c.exchange(ctx, diagRequestV2(family, states), visit)
		if err != nil {
			return false, err
		}
		interrupted = interrupted || one
	}
	return interrupted, nil
}

// exchange sends a request for a dump and reads the dump to its end.
func (c *diagConn) exchange(ctx context.Context, req []byte, visit func(diagMsg)) (interrupted bool, err error) {
	c.seq++
	binary.NativeEndian.PutUint32(req[8:], c.seq)
	if _, err := ignoringEINTR(func() (int, error) { return unix.Write(c.fd, req) }); err != nil {
		return false, fmt.Errorf("list sockets: %w", os.NewSyscallError("write", err))
	}
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(c.fd, c.buf) })
		if err != nil {
			return false, fmt.Errorf("list sockets: %w", os.NewSyscallError("read", err))
		}
		done, intr, err := decodeDiag(c.buf[:n], c.seq, visit)
		interrupted = interrupted || intr
		if err != nil {
			return false, fmt.Errorf("list sockets: %w", explainDiag(err))
		}
		if done {
			return interrupted, nil
		}
	}
}

// diagRequest asks for the sockets of both families. The newer request cannot:
// it takes one family, and each walks the whole of the kernel's table, which
// is most of the time that a dump takes.
func diagRequest(states uint32) []byte {
	req := newDumpRequest(tcpDiagGetSock, sizeofDiagReq)
	body := req[unix.SizeofNlMsghdr:]
	body[0] = unix.AF_INET // the kernel ignores it
	binary.NativeEndian.PutUint32(body[52:], states)
	return req
}

func diagRequestV2(family Family, states uint32) []byte {
	req := newDumpRequest(sockDiagByFamily, sizeofDiagReqV2)
	body := req[unix.SizeofNlMsghdr:]
	body[0] = uint8(family)
	body[1] = unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(body[4:], states)
	return req
}

func newDumpRequest(kind uint16, size int) []byte {
	req := make([]byte, unix.SizeofNlMsghdr+size)
	ne := binary.NativeEndian
	ne.PutUint32(req[0:], uint32(len(req)))
	ne.PutUint16(req[4:], kind)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	return req
}

// errDiagMissing means that the kernel does not serve sock_diag for TCP: the
// modules that do are not loaded and could not be.
var errDiagMissing = fmt.Errorf("the kernel has no tcp_diag (modprobe tcp_diag): %w", ErrNotSupported)

// explainDiag says what the errno of a refused dump means.
func explainDiag(err error) error {
	for _, missing := range []unix.Errno{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT} {
		if errors.Is(err, missing) {
			return errDiagMissing
		}
	}
	return err
}

// decodeDiag calls visit for every socket in one datagram of the dump that has
// the number seq. done says that the dump is complete, interrupted that the
// kernel calls it unreliable. Messages of other dumps are skipped.
func decodeDiag(b []byte, seq uint32, visit func(diagMsg)) (done, interrupted bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(ne.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false, interrupted, fmt.Errorf("netlink message of %d bytes in %d", size, len(b))
		}
		kind, flags, msgSeq := ne.Uint16(b[4:]), ne.Uint16(b[6:]), ne.Uint32(b[8:])
		body := b[unix.SizeofNlMsghdr:size]
		b = b[min(nlmsgAlign(size), len(b)):]
		if msgSeq != seq {
			continue
		}
		interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
		switch kind {
		case sockDiagByFamily, tcpDiagGetSock:
			if len(body) < sizeofDiagMsg {
				return false, interrupted, fmt.Errorf("socket record of %d bytes", len(body))
			}
			visit(diagMsg(body))
		case unix.NLMSG_DONE:
			return true, interrupted, doneError(body)
		case unix.NLMSG_ERROR:
			return true, interrupted, nlmsgError(body)
		}
	}
	if len(b) > 0 {
		return false, interrupted, fmt.Errorf("%d stray bytes after the last netlink message", len(b))
	}
	return false, interrupted, nil
}

// doneError returns the error that ended a dump; older kernels say nothing.
func doneError(body []byte) error {
	if len(body) < 4 {
		return nil
	}
	if errno := int32(binary.NativeEndian.Uint32(body)); errno < 0 {
		return unix.Errno(-errno)
	}
	return nil
}

func nlmsgError(body []byte) error {
	if err := doneError(body); err != nil {
		return err
	}
	return errors.New("netlink acknowledgement instead of a dump")
}

func nlmsgAlign(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// diagMsg is a struct inet_diag_msg as the kernel wrote it, at least
// sizeofDiagMsg bytes long.
type diagMsg []byte

func (m diagMsg) family() Family { return Family(m[0]) }
func (m diagMsg) timer() Timer   { return Timer(m[2]) }
func (m diagMsg) inode() uint32  { return binary.NativeEndian.Uint32(m[68:]) }

// state returns the socket's state with half-open connections in StateSynRecv.
// It returns 0 for what is no connection's state.
func (m diagMsg) state() State {
	switch s := State(m[1]); {
	case s == StateNewSynRecv:
		return StateSynRecv
	case s == StateClose || !s.valid():
		return 0
	default:
		return s
	}
}

// isMini reports whether it is a mini-socket: no other has that timer.
func (m diagMsg) isMini() bool { return m.timer() == TimerTimeWait }

// isHalfOpen reports whether it is a request socket. inet_sk_diag_fill tells of
// every full socket which of its sides are shut down, if none, too;
// inet_req_diag_fill does not, and nothing else in a record tells a request from
// a full socket in SYN_RECV that nobody has accepted.
func (m diagMsg) isHalfOpen() bool {
	return m.state() == StateSynRecv && !m.has(diagShutdown)
}

// has reports whether the record has an attribute of that type.
func (m diagMsg) has(attr uint16) bool {
	ne := binary.NativeEndian
	for b := m[sizeofDiagMsg:]; len(b) >= unix.SizeofNlAttr; {
		size := int(ne.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			break
		}
		if ne.Uint16(b[2:]) == attr {
			return true
		}
		b = b[min(nlmsgAlign(size), len(b)):] // attributes align as messages do
	}
	return false
}

// socket returns what the record says of a socket in the namespace with that
// inode number.
func (m diagMsg) socket(netns uint32) Socket {
	ne := binary.NativeEndian
	return Socket{
		Cookie:       uint64(ne.Uint32(m[44:])) | uint64(ne.Uint32(m[48:]))<<32,
		Local:        unmapPort(m.local()),
		Remote:       unmapPort(m.remote()),
		Expires:      time.Duration(ne.Uint32(m[52:])) * time.Millisecond,
		Netns:        netns,
		Inode:        m.inode(),
		UID:          ne.Uint32(m[64:]),
		ReceiveQueue: ne.Uint32(m[56:]),
		SendQueue:    ne.Uint32(m[60:]),
		Family:       m.family(),
		State:        m.state(),
		Timer:        m.timer(),
		Retransmits:  m[3],
		Mini:         m.isMini(),
		HalfOpen:     m.isHalfOpen(),
	}
}

func unmapPort(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// local and remote return the addresses in the socket's own family: an IPv6
// socket that carries IPv4 has IPv4-mapped ones.
func (m diagMsg) local() netip.AddrPort {
	return netip.AddrPortFrom(m.addr(m[8:]), binary.BigEndian.Uint16(m[4:]))
}

func (m diagMsg) remote() netip.AddrPort {
	return netip.AddrPortFrom(m.addr(m[24:]), binary.BigEndian.Uint16(m[6:]))
}

func (m diagMsg) addr(b []byte) netip.Addr {
	if m.family() == FamilyIPv4 {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(b))
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
