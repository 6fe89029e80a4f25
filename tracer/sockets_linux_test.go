package tracer

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// listSockets lists the sockets of the calling thread's namespace.
func listSockets(t testing.TB) (sockets []Socket) {
	t.Helper()
	missed, err := VisitNetns(t.Context(), SelfNetns, func(n *Netns) (err error) {
		var inexact bool
		sockets, inexact, err = n.ListSockets(t.Context())
		qt.Check(t, qt.IsFalse(inexact))
		return err
	})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.DeepEquals(missed, CensusMissed{}))
	return sockets
}

// socketsIn returns those in that state, and checks that they are n.
func socketsIn(t testing.TB, state State, n int) []Socket {
	t.Helper()
	sockets := slices.DeleteFunc(listSockets(t), func(s Socket) bool { return s.State != state })
	qt.Assert(t, qt.HasLen(sockets, n), qt.Commentf("in %v", state))
	return sockets
}

// TestListSockets makes sockets in each state and compares the list with ss, field
// by field, and what ss does not show with what was made.
func TestListSockets(t *testing.T) {
	requireRoot(t)
	for _, kind := range censusKinds {
		t.Run(kind.name, func(t *testing.T) {
			self := enterNetns(t)
			var want StateCounts
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				kind.make(t, family)
				want.add(&kind.want)
			}
			waitForStates(t, want)
			sockets := assertAsSS(t)
			minis, halfOpen, families := 0, 0, map[Family]int{}
			for _, s := range sockets {
				qt.Check(t, qt.Equals(s.Netns, self))
				families[s.Family]++
				if s.Mini {
					minis++
					qt.Check(t, qt.IsTrue(s.State == StateTimeWait || s.State == StateFinWait2))
				}
				if s.HalfOpen {
					halfOpen++
					qt.Check(t, qt.Equals(s.State, StateSynRecv))
				}
			}
			each := int(kind.want.Total())
			qt.Check(t, qt.DeepEquals(families, map[Family]int{FamilyIPv4: each, FamilyIPv6: each}))
			qt.Check(t, qt.Equals(halfOpen, 2*int(kind.want[StateSynRecv])))
			wantMinis := 2 * int(kind.want[StateTimeWait])
			if kind.name == "orphan" {
				wantMinis = 2 * censusN
			}
			qt.Check(t, qt.Equals(minis, wantMinis))
		})
	}
}

// assertAsSS lists the sockets and compares with ss, while nothing moves.
func assertAsSS(t *testing.T) (sockets []Socket) {
	t.Helper()
	var listed, before, after map[uint64]Socket
	for attempts := 1; ; attempts++ {
		before = ssSockets(t)
		sockets = listSockets(t)
		after = ssSockets(t)
		if maps.Equal(before, after) || attempts == 20 {
			break
		}
	}
	listed = map[uint64]Socket{}
	for _, s := range sockets {
		s.Netns, s.Family, s.Expires, s.Mini, s.HalfOpen = 0, 0, 0, false, false // ss does not show them, or not exactly
		listed[s.Cookie] = s
	}
	qt.Assert(t, qt.HasLen(listed, len(sockets)), qt.Commentf("two have one cookie"))
	qt.Check(t, qt.DeepEquals(sortedSockets(listed), sortedSockets(after)))
	return sockets
}

// sortedSockets returns them in the order of their cookies, as text, since
// netip.Addr does not compare deeply.
func sortedSockets(sockets map[uint64]Socket) (lines []string) {
	for _, cookie := range slices.Sorted(maps.Keys(sockets)) {
		lines = append(lines, fmt.Sprintf("%+v", sockets[cookie]))
	}
	return lines
}

var ssTimers = map[string]Timer{
	"on": TimerRetransmit, "keepalive": TimerKeepalive, "timewait": TimerTimeWait, "persist": TimerProbe,
}

// ssSockets returns what ss shows of each socket, by cookie.
func ssSockets(t testing.TB) map[uint64]Socket {
	t.Helper()
	out, err := exec.Command("ss", "-Htaneo").Output()
	qt.Assert(t, qt.IsNil(err))
	sockets := map[uint64]Socket{}
	for line := range strings.Lines(string(out)) {
		s, err := parseSS(line)
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%q", line))
		if s.State != StateClose {
			sockets[s.Cookie] = s
		}
	}
	return sockets
}

// parseSS parses a line such as "FIN-WAIT-1 0 5 127.0.0.1:80 127.0.0.1:4000
// timer:(persist,200ms,2) uid:65534 ino:4711 sk:1f cgroup:/".
func parseSS(line string) (s Socket, err error) {
	fields := strings.Fields(line)
	if s.State, err = ParseState(fields[0]); err != nil {
		return s, err
	}
	number := func(text string, base int) uint64 {
		n, numberErr := strconv.ParseUint(text, base, 64)
		if numberErr != nil {
			err = numberErr
		}
		return n
	}
	s.ReceiveQueue, s.SendQueue = uint32(number(fields[1], 10)), uint32(number(fields[2], 10))
	s.Local, s.Remote = netip.MustParseAddrPort(ssAddr(fields[3])), netip.MustParseAddrPort(ssAddr(fields[4]))
	s.Local, s.Remote = unmapPort(s.Local), unmapPort(s.Remote)
	for _, field := range fields[5:] {
		name, value, _ := strings.Cut(field, ":")
		switch name {
		case "timer":
			parts := strings.Split(strings.Trim(value, "()"), ",")
			s.Timer, s.Retransmits = ssTimers[parts[0]], uint8(number(parts[2], 10))
		case "uid":
			s.UID = uint32(number(value, 10))
		case "ino":
			s.Inode = uint32(number(value, 10))
		case "sk":
			s.Cookie = number(value, 16)
		}
	}
	return s, err
}

// ssAddr spells an address of ss as others do: it has * for what is not bound.
func ssAddr(text string) string {
	if rest, any6 := strings.CutPrefix(text, "*:"); any6 {
		text = "[::]:" + rest
	}
	if rest, noPort := strings.CutSuffix(text, ":*"); noPort {
		text = rest + ":0"
	}
	return text
}

// TestListSocketsTimers holds the timers to what they were set to.
func TestListSocketsTimers(t *testing.T) {
	requireRoot(t)
	seconds := func(n int) time.Duration { return time.Duration(n) * time.Second }
	keepAlive := func(t testing.TB, family int) {
		eachPair(t, family, func(client, _ int) {
			qt.Assert(t, qt.IsNil(unix.SetsockoptInt(client, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)))
			qt.Assert(t, qt.IsNil(unix.SetsockoptInt(client, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 300)))
			shutdown(t, client) // so that the client is in another state than the server
		})
	}
	tests := []struct {
		name     string
		make     func(t testing.TB, family int)
		state    State
		timer    Timer
		from, to time.Duration
	}{
		{"keepalive", keepAlive, StateFinWait2, TimerKeepalive, seconds(240), seconds(300)},
		{"time wait", makeTimeWait, StateTimeWait, TimerTimeWait, seconds(40), seconds(60)},
		{"orphan", makeOrphans, StateFinWait2, TimerTimeWait, seconds(40), seconds(60)},
		// TCP_LINGER2 less the minute of the mini-socket that takes over.
		{"full orphan", makeFullOrphans, StateFinWait2, TimerKeepalive, seconds(30), seconds(50)},
		{"syn sent", makeSynSent, StateSynSent, TimerRetransmit, 1, seconds(8)},
		{"half open", makeHalfOpen, StateSynRecv, TimerRetransmit, 0, seconds(60)},
		{"zero window", makeFinWait1, StateFinWait1, TimerProbe, 0, seconds(8)},
		{"listen", makeListeners, StateListen, TimerNone, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			enterNetns(t)
			tt.make(t, unix.AF_INET)
			var made []Socket
			eventually(t, func() bool {
				made = slices.DeleteFunc(listSockets(t), func(s Socket) bool { return s.State != tt.state || s.Timer != tt.timer })
				return len(made) == censusN
			}, func() string { return fmt.Sprintf("%d sockets in %v have the timer", len(made), tt.state) })
			for _, s := range made {
				qt.Check(t, qt.IsTrue(tt.from <= s.Expires && s.Expires <= tt.to), qt.Commentf("%v", s.Expires))
			}
		})
	}
}

// TestListSocketsRetransmits waits for SYNs that nobody answers to be repeated.
func TestListSocketsRetransmits(t *testing.T) {
	enterNetns(t)
	makeSynSent(t, unix.AF_INET)
	eventually(t, func() bool {
		sockets := socketsIn(t, StateSynSent, censusN)
		return !slices.ContainsFunc(sockets, func(s Socket) bool { return s.Timer != TimerRetransmit || s.Retransmits == 0 })
	}, func() string { return "no SYN was repeated" })
}

// TestListSocketsQueues checks what counts in the queues.
func TestListSocketsQueues(t *testing.T) {
	enterNetns(t)
	const waiting, backlog = 7, 23
	l := listen(t, loopback(unix.AF_INET, 0), backlog)
	clients := make([]int, waiting)
	for i := range clients {
		clients[i] = tcpSocket(t, unix.AF_INET)
		qt.Assert(t, qt.IsNil(unix.Connect(clients[i], loopback(unix.AF_INET, portOf(t, l)))))
	}
	port := uint16(portOf(t, l))
	awaitListener := func(n uint32) {
		t.Helper()
		eventually(t, func() bool { return socketsIn(t, StateListen, 1)[0].ReceiveQueue == n }, func() string { return "queue of the listener" })
		qt.Check(t, qt.Equals(socketsIn(t, StateListen, 1)[0].SendQueue, backlog))
	}
	awaitListener(waiting)
	accepted, unaccepted := 0, 0
	for _, s := range socketsIn(t, StateEstablished, 2*waiting) {
		qt.Check(t, qt.IsFalse(s.HalfOpen || s.Mini))
		if s.Inode != 0 {
			accepted++
			continue
		}
		unaccepted++
		qt.Check(t, qt.Equals(s.Local.Port(), port))
	}
	qt.Check(t, qt.Equals(unaccepted, waiting))
	qt.Check(t, qt.Equals(accepted, waiting))

	first, second := accept(t, l), accept(t, l)
	awaitListener(waiting - 2)

	data := make([]byte, 23)
	_, err := unix.Write(clients[0], data)
	qt.Assert(t, qt.IsNil(err))
	awaitQueue(t, StateEstablished, first, uint32(len(data)))
	shutdown(t, clients[0])
	awaitQueue(t, StateCloseWait, first, uint32(len(data))+1)

	shutdown(t, clients[1]) // its FIN counts until the end of the stream is read
	awaitQueue(t, StateCloseWait, second, 1)
	n, err := unix.Read(second, data)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(n, 0))
	awaitQueue(t, StateCloseWait, second, 0)
}

func accept(t testing.TB, listener int) int {
	t.Helper()
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	qt.Assert(t, qt.IsNil(err))
	closeAtEnd(t, fd)
	return fd
}

// awaitQueue waits until the socket is in that state with so many bytes to read.
func awaitQueue(t *testing.T, state State, fd int, want uint32) {
	t.Helper()
	var got Socket
	eventually(t, func() bool {
		got = socketOf(t, fd)
		return got.State == state && got.ReceiveQueue == want
	}, func() string {
		return fmt.Sprintf("%v with %d bytes, want %v with %d", got.State, got.ReceiveQueue, state, want)
	})
}

// socketOf returns the socket of that file.
func socketOf(t testing.TB, fd int) Socket {
	t.Helper()
	sockets, inode := listSockets(t), inodeOf(t, fd)
	i := slices.IndexFunc(sockets, func(s Socket) bool { return s.Inode == inode })
	qt.Assert(t, qt.Not(qt.Equals(i, -1)))
	return sockets[i]
}

// TestListSocketsSendQueue checks that a SYN and a FIN that are not acknowledged
// count as a byte each.
func TestListSocketsSendQueue(t *testing.T) {
	enterNetns(t)
	makeSynSent(t, unix.AF_INET)
	for _, s := range socketsIn(t, StateSynSent, censusN) {
		qt.Check(t, qt.Equals(s.SendQueue, 1))
	}
	eachPair(t, unix.AF_INET, func(client, server int) {
		nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
		qt.Assert(t, qt.IsNil(unix.SetsockoptSockFprog(server, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: 1, Filter: &nothing[0]})))
		_, err := unix.Write(client, make([]byte, 7))
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(socketOf(t, client).SendQueue, 7))
		shutdown(t, client)
		closing := socketOf(t, client)
		qt.Check(t, qt.Equals(closing.State, StateFinWait1))
		qt.Check(t, qt.Equals(closing.SendQueue, 8))
	})
}

// TestListSocketsMappedIPv4 checks that IPv6 sockets that carry IPv4 have IPv4
// addresses, of whatever kind they are.
func TestListSocketsMappedIPv4(t *testing.T) {
	enterNetns(t)
	l := listen(t, &unix.SockaddrInet6{}, 128)
	client, _ := connectPair(t, l, unix.AF_INET, loopback(unix.AF_INET, portOf(t, l)))
	c, s := connectPair(t, l, unix.AF_INET, loopback(unix.AF_INET, portOf(t, l)))
	closeSockets(s, c)
	waitForStates(t, StateCounts{StateListen: 1, StateEstablished: 2, StateTimeWait: 1})
	self := netip.MustParseAddr("127.0.0.1")
	for _, s := range assertAsSS(t) {
		switch {
		case s.State == StateListen:
			qt.Check(t, qt.Equals(s.Family, FamilyIPv6))
			qt.Check(t, qt.Equals(s.Local.Addr(), netip.IPv6Unspecified()))
			qt.Check(t, qt.Equals(s.Remote, netip.AddrPortFrom(netip.IPv6Unspecified(), 0)))
		case int(s.Local.Port()) == portOf(t, client):
			qt.Check(t, qt.Equals(s.Family, FamilyIPv4))
		default:
			qt.Check(t, qt.Equals(s.Family, FamilyIPv6))
			qt.Check(t, qt.Equals(s.Local, netip.AddrPortFrom(self, uint16(portOf(t, l)))))
			qt.Check(t, qt.Equals(s.Remote.Addr(), self))
		}
	}
}

// TestListSocketsHalfOpen tells half-open connections from full sockets in
// SYN_RECV, of which Fast Open makes some. Both wait for an ACK that nobody sends.
func TestListSocketsHalfOpen(t *testing.T) {
	enterNetns(t)
	setSysctl(t, "net.ipv4.tcp_fastopen", "514") // 0x202: servers take it, without a cookie
	run(t, "ip", "route", "add", "192.0.2.0/24", "dev", "lo")
	plain, fast := listen(t, loopback(unix.AF_INET, 0), 128), listen(t, loopback(unix.AF_INET, 0), 128)
	qt.Assert(t, qt.IsNil(unix.SetsockoptInt(fast, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 128)))
	for i := range censusN {
		sendSYN(t, uint16(1000+i), uint16(portOf(t, plain)))
		sendSYN(t, uint16(1000+i), uint16(portOf(t, fast)))
	}
	waitForStates(t, StateCounts{StateListen: 2, StateSynRecv: 2 * censusN})
	halfOpen := 0
	for _, s := range socketsIn(t, StateSynRecv, 2*censusN) {
		qt.Check(t, qt.Equals(s.HalfOpen, int(s.Local.Port()) == portOf(t, plain)))
		qt.Check(t, qt.Equals(s.Inode, 0))
		qt.Check(t, qt.IsFalse(s.Mini))
		if s.HalfOpen {
			halfOpen++
		}
	}
	qt.Check(t, qt.Equals(halfOpen, censusN))
}

// sendSYN sends a SYN with data in it, from an address that is nobody's.
func sendSYN(t testing.TB, from, to uint16) {
	t.Helper()
	const ipHeader, headerWords, syn = 20, 5, 1 << 1
	src, dst := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")
	packet := make([]byte, ipHeader, 64)
	packet[0], packet[8], packet[9] = 4<<4|ipHeader/4, 64, unix.IPPROTO_TCP // the kernel fills in the rest
	copy(packet[12:], src.AsSlice())
	copy(packet[16:], dst.AsSlice())
	segment := make([]byte, headerWords*4)
	be := binary.BigEndian
	be.PutUint16(segment[0:], from)
	be.PutUint16(segment[2:], to)
	segment[12], segment[13] = headerWords<<4, syn
	be.PutUint16(segment[14:], 1<<15)
	segment = append(segment, "GET"...)
	be.PutUint16(segment[16:], tcpChecksum(src, dst, segment))

	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	qt.Assert(t, qt.IsNil(err))
	defer unix.Close(fd)
	qt.Assert(t, qt.IsNil(unix.Sendto(fd, append(packet, segment...), 0, loopback(unix.AF_INET, 0))))
}

// tcpChecksum is that of RFC 9293, 3.1.
func tcpChecksum(src, dst netip.Addr, segment []byte) uint16 {
	data := append(src.AsSlice(), dst.AsSlice()...)
	data = append(data, 0, unix.IPPROTO_TCP, byte(len(segment)>>8), byte(len(segment)))
	data = append(data, segment...)
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

func TestListSocketsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := VisitNetns(t.Context(), SelfNetns, func(n *Netns) error {
		sockets, inexact, err := n.ListSockets(ctx)
		qt.Check(t, qt.HasLen(sockets, 0))
		qt.Check(t, qt.IsFalse(inexact))
		return err
	})
	qt.Assert(t, qt.ErrorIs(err, context.Canceled))
}

func TestTimerNames(t *testing.T) {
	for timer, want := range map[Timer]string{
		TimerNone: "none", TimerRetransmit: "retransmit", TimerKeepalive: "keepalive",
		TimerTimeWait: "time_wait", TimerProbe: "probe", 9: "timer_9",
	} {
		qt.Check(t, qt.Equals(timer.String(), want))
	}
}
