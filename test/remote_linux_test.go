package test

import (
	"crypto/md5"
	endian "encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/tracer"
)

// remote is a host beyond the loop's namespace that does what it is told and
// nothing by itself: it answers no segment. A TUN device is the wire to it.
type remote struct {
	l    *loop
	addr netip.Addr
	tun  int

	window uint16 // that it says it has
	key    []byte // with which it signs its segments (RFC 2385), if there is one

	mu      sync.Mutex        // guards what follows
	isns    map[uint16]uint32 // of the SYNs and SYN-ACKs that have come, by the remote port
	refused bool              // a reset has come
}

const (
	remoteDevice = "tun-remote"

	remotePort = 40001 // of the remote's first connection
	remoteISN  = 1000

	flagFIN = 1 << 0
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4
)

// newRemoteLoop is a loop whose listener a remote can reach too.
func newRemoteLoop(t testing.TB, family tracer.Family) (*loop, *remote) {
	t.Helper()
	l := newLoop(t, family)
	r := &remote{l: l, addr: netip.MustParseAddr("198.51.100.1"), window: 1024, isns: map[uint16]uint32{}}
	l.addr = netip.MustParseAddr("198.51.100.254")
	bits, nodad := "/24", []string(nil)
	if family == tracer.FamilyIPv6 {
		r.addr, l.addr, bits = netip.MustParseAddr("2001:db8:51::1"), netip.MustParseAddr("2001:db8:51::fe"), "/64"
		nodad = []string{"nodad"}
	}
	const name = remoteDevice
	r.tun = l.openTUN(name, l.addr.String()+bits, nodad...)
	done := make(chan bool)
	go func() { defer close(done); r.listen() }()
	t.Cleanup(func() {
		l.ns.Command("ip", "link", "del", name).Run() // the reader gets an error
		<-done
		unix.Close(r.tun)
	})
	r.awaitPath()
	return l, r
}

// openTUN makes a TUN device that is up and has the address. Who reads from the descriptor
// gets the packets that go there; the device lasts as long as it.
func (l *loop) openTUN(name, address string, flags ...string) (fd int) {
	l.t.Helper()
	l.ns.Do(func() {
		var err error
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		l.must("open TUN", err)
		req, err := unix.NewIfreq(name)
		l.must("name TUN", err)
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		l.must("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	})
	for _, args := range [][]string{
		{"link", "set", name, "up"},
		append([]string{"addr", "add", address, "dev", name}, flags...),
	} {
		out, err := l.ns.Command("ip", args...).CombinedOutput()
		if err != nil {
			l.t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	return fd
}

// awaitPath waits until the host answers: the address may take a moment.
func (r *remote) awaitPath() {
	r.l.t.Helper()
	const closedPort = 1
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		r.segmentTo(netip.AddrPortFrom(r.l.addr, closedPort), remotePort-1, flagSYN, remoteISN, 0)
		r.mu.Lock()
		refused := r.refused
		r.mu.Unlock()
		if refused {
			return
		}
		if time.Now().After(deadline) {
			r.l.t.Fatal("the remote gets no answer")
		}
	}
}

// listen notes the sequence numbers of the SYNs and SYN-ACKs until the device is gone.
func (r *remote) listen() {
	packet := make([]byte, 2048)
	for {
		n, err := unix.Read(r.tun, packet)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		s := packet[:n]
		header := 40
		if s[0]>>4 == 4 {
			header = int(s[0]&0xf) * 4
		}
		if n >= header+20 {
			r.note(s[header:])
		}
	}
}

func (r *remote) note(segment []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	flags := segment[13]
	r.refused = r.refused || flags&flagRST != 0
	if flags&flagSYN != 0 {
		r.isns[endian.BigEndian.Uint16(segment[2:])] = endian.BigEndian.Uint32(segment[4:])
	}
}

func (r *remote) isn(port uint16) (isn uint32, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	isn, ok = r.isns[port]
	return isn, ok
}

// syn sends a SYN from the port. Nobody waits for the answer.
func (r *remote) syn(port uint16) { r.segment(port, flagSYN, remoteISN, 0) }

// rst gives a half-open connection up.
func (r *remote) rst(port uint16) { r.segment(port, flagRST, remoteISN+1, 0) }

// ack completes the handshake.
func (r *remote) ack(port uint16) {
	r.l.t.Helper()
	r.segment(port, flagACK, remoteISN+1, r.awaitSynAck(port)+1)
}

// say sends a segment that comes after so many bytes of the remote's since its
// SYN, and acknowledges so many of the host's.
func (r *remote) say(port uint16, flags byte, sent, acked uint32, data ...byte) {
	r.l.t.Helper()
	r.segment(port, flags, remoteISN+1+sent, r.awaitSynAck(port)+1+acked, data...)
}

// awaitSynAck returns the sequence number of the host's SYN, or SYN-ACK.
func (r *remote) awaitSynAck(port uint16) uint32 {
	r.l.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if isn, ok := r.isn(port); ok {
			return isn
		}
		if time.Now().After(deadline) {
			r.l.t.Fatalf("no SYN or SYN-ACK for port %d", port)
		}
	}
}

// segment sends a segment to the listener.
func (r *remote) segment(port uint16, flags byte, seq, ack uint32, data ...byte) {
	r.l.t.Helper()
	r.segmentTo(r.l.listener.local, port, flags, seq, ack, data...)
}

func (r *remote) segmentTo(to netip.AddrPort, port uint16, flags byte, seq, ack uint32, data ...byte) {
	r.l.t.Helper()
	headerWords := byte(5)
	if r.key != nil {
		headerWords += signatureWords
	}
	from := netip.AddrPortFrom(r.addr, port)
	s := append(make([]byte, headerWords*4), data...)
	endian.BigEndian.PutUint16(s[0:], from.Port())
	endian.BigEndian.PutUint16(s[2:], to.Port())
	endian.BigEndian.PutUint32(s[4:], seq)
	endian.BigEndian.PutUint32(s[8:], ack)
	s[12], s[13] = headerWords<<4, flags
	endian.BigEndian.PutUint16(s[14:], r.window)
	if r.key != nil {
		sign(from.Addr(), to.Addr(), s, r.key)
	}
	endian.BigEndian.PutUint16(s[16:], tcpChecksum(from.Addr(), to.Addr(), s))
	r.packet(unix.IPPROTO_TCP, s)
}

// signatureWords is how long the option of a signature is, with what fills it up.
const signatureWords = 5

// sign signs a segment whose header has room for it and no other option.
func sign(from, to netip.Addr, segment, key []byte) {
	const header, kind, length, noOperation = 20, 19, 18, 1
	options := segment[header : header+signatureWords*4]
	copy(options, []byte{noOperation, noOperation, kind, length})
	hash := md5.New()
	hash.Write(tcpPseudoHeader(from, to, len(segment)))
	hash.Write(segment[:header])
	hash.Write(segment[header+len(options):])
	hash.Write(key)
	copy(options[4:], hash.Sum(nil))
}

// unreachable tells the listener's host that the remote's port cannot be
// reached: an ICMP error about its SYN-ACK.
func (r *remote) unreachable(port uint16) { r.unreachableFrom(r.l.listener.local.Port(), port) }

// unreachableFrom tells the same of another local port: an error about a SYN.
func (r *remote) unreachableFrom(local, port uint16) {
	r.l.t.Helper()
	isn := r.awaitSynAck(port)
	about := make([]byte, 8)
	endian.BigEndian.PutUint16(about[0:], local)
	endian.BigEndian.PutUint16(about[2:], port)
	endian.BigEndian.PutUint32(about[4:], isn)
	inner := append(r.header(unix.IPPROTO_TCP, r.l.addr, r.addr, 20), about...)
	if r.addr.Is4() {
		const unreachable, host = 3, 1
		icmp := append([]byte{unreachable, host, 0, 0, 0, 0, 0, 0}, inner...)
		endian.BigEndian.PutUint16(icmp[2:], onesComplement(icmp))
		r.packet(unix.IPPROTO_ICMP, icmp)
		return
	}
	const unreachable, prohibited = 1, 1
	inner = append(inner, make([]byte, 12)...) // the kernel wants a whole TCP header
	icmp := append([]byte{unreachable, prohibited, 0, 0, 0, 0, 0, 0}, inner...)
	pseudo := append(r.addr.AsSlice(), r.l.addr.AsSlice()...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(icmp)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	endian.BigEndian.PutUint16(icmp[2:], onesComplement(append(pseudo, icmp...)))
	r.packet(unix.IPPROTO_ICMPV6, icmp)
}

// packet delivers a packet from the remote.
func (r *remote) packet(protocol byte, payload []byte) {
	r.l.t.Helper()
	_, err := unix.Write(r.tun, append(r.header(protocol, r.addr, r.l.addr, len(payload)), payload...))
	r.l.must("write to TUN", err)
}

// header is an IP header of either version.
func (r *remote) header(protocol byte, from, to netip.Addr, payload int) []byte {
	if from.Is4() {
		h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
		endian.BigEndian.PutUint16(h[2:], uint16(20+payload))
		h = append(append(h, from.AsSlice()...), to.AsSlice()...)
		endian.BigEndian.PutUint16(h[10:], onesComplement(h))
		return h
	}
	h := []byte{0x60, 0, 0, 0, 0, 0, protocol, 64}
	endian.BigEndian.PutUint16(h[4:], uint16(payload))
	return append(append(h, from.AsSlice()...), to.AsSlice()...)
}

// onesComplement is the checksum of RFC 1071.
func onesComplement(data []byte) uint16 {
	if len(data)%2 != 0 {
		data = append(data[:len(data):len(data)], 0)
	}
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(endian.BigEndian.Uint16(data[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// awaitHalfOpen waits until there are n half-open connections.
func (l *loop) awaitHalfOpen(n int) {
	l.t.Helper()
	var got int
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		counts, err := oracle.SS(l.ns)
		l.must("ss", err)
		if got = counts[tracer.StateSynRecv]; got == n {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%d half-open connections, want %d", got, n)
		}
	}
}
