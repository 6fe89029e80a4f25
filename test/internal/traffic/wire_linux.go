package traffic

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

// wire is a raw socket that sees every TCP segment that arrives in the
// namespace, and can send one as if a socket had sent it.
type wire struct {
	r       *rig
	in, out int // out is bound, and so gets only some of what arrives
}

// segment is a TCP segment from its header on.
type segment []byte

const (
	tcpHeader = 20
	flagFIN   = 1
)

func (s segment) source() uint16 { return binary.BigEndian.Uint16(s[0:]) }
func (s segment) dest() uint16   { return binary.BigEndian.Uint16(s[2:]) }
func (s segment) ack() uint32    { return binary.BigEndian.Uint32(s[8:]) }
func (s segment) isFIN() bool    { return s[13]&flagFIN != 0 }

func (r *rig) openWire() *wire {
	w := &wire{r, r.rawSocket(), r.rawSocket()}
	r.setsockopt(w.in, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
	return w
}

func (r *rig) rawSocket() int {
	fd, err := unix.Socket(r.domain(), unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	must("raw socket", err)
	r.fds = append(r.fds, fd)
	return fd
}

// catchFIN returns the first FIN from port to port that has arrived since the
// last call.
func (w *wire) catchFIN(from, to uint16) segment {
	var fin segment
	buf := make([]byte, 2048)
	w.r.await("a FIN on the wire", func() bool {
		n, err := unix.Read(w.in, buf)
		if !again("read raw socket", err) {
			return false
		}
		s := segment(w.stripIP(buf[:n]))
		if len(s) < tcpHeader || !s.isFIN() || s.source() != from || s.dest() != to {
			return false
		}
		fin = append(segment{}, s...)
		return true
	})
	return fin
}

// stripIP drops the header that raw sockets of IPv4, but not of IPv6, give.
func (w *wire) stripIP(packet []byte) []byte {
	if w.r.family == tracer.FamilyIPv6 || len(packet) == 0 {
		return packet
	}
	header := int(packet[0]&0xf) * 4
	return packet[min(header, len(packet)):]
}

// send sends the segment. Its checksum is made anew: loopback leaves it half
// done.
func (w *wire) send(from, to netip.AddrPort, s segment) {
	binary.BigEndian.PutUint16(s[16:], 0)
	binary.BigEndian.PutUint16(s[16:], checksum(from.Addr(), to.Addr(), s))
	must("bind raw socket", unix.Bind(w.out, sockaddr(netip.AddrPortFrom(from.Addr(), 0))))
	must("send raw", unix.Sendto(w.out, s, 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0))))
}

// checksum is TCP's, over the pseudo header and the segment (RFC 9293, 3.1).
func checksum(from, to netip.Addr, s segment) uint16 {
	data := append(from.AsSlice(), to.AsSlice()...)
	data = append(data, 0, unix.IPPROTO_TCP)
	data = binary.BigEndian.AppendUint16(data, uint16(len(s)))
	data = append(data, s...)
	if len(data)%2 != 0 {
		data = append(data, 0)
	}
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
