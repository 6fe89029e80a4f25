package test

import (
	endian "encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

var openingConditions = []condition{
	{name: "peer that does not answer", finds: []string{"syn-sent-pileup"}, plant: plantSilence, check: checkSilence},
	{name: "peer that nobody waits for", finds: []string{"syn-sent-pileup"}, plant: plantImpatience},
	{name: "nobody listens", finds: []string{"connect-refused"}, plant: plantRefusal, check: func(t *testing.T, d *diagnosis) {
		f := d.find(t, "connect-refused")
		qt.Check(t, qt.Equals(f.Severity, "warning"))
		qt.Check(t, qt.Equals(f.Subject, "127.0.0.1:25002"))
		qt.Check(t, qt.Equals(f.Facts["refused"], f.Facts["attempts"]))
		qt.Check(t, qt.Equals(f.Facts["pid"], any(float64(os.Getpid()))))
	}},
	{name: "first SYN is lost", finds: []string{"slow-handshake"}, plant: plantLostSYN, check: func(t *testing.T, d *diagnosis) {
		f := d.find(t, "slow-handshake")
		qt.Check(t, qt.Equals(f.Facts["slow_handshakes"], f.Facts["measured_handshakes"]))
		longest := f.Facts["longest_seconds"].(float64)
		qt.Check(t, qt.IsTrue(longest >= 1 && longest < 2), qt.Commentf("%v", longest))
	}},
}

// far is a remote beyond a TUN device of its own, which sends to a port of the namespace.
// It does nothing by itself.
func (p *patient) far(device, addr, local string) *remote {
	p.t.Helper()
	to := netip.MustParseAddrPort(local)
	l := &loop{t: p.t, ns: p.ns, addr: to.Addr(), listener: end{local: to}}
	r := &remote{l: l, addr: netip.MustParseAddr(addr), tun: l.openTUN(device, to.Addr().String()+"/24"), window: 1024}
	p.t.Cleanup(func() { unix.Close(r.tun) })
	l.must("O_NONBLOCK", unix.SetNonblock(r.tun, true))
	return r
}

// hear calls handle with each TCP segment that has come to the remote since the last time.
func (r *remote) hear(handle func(segment []byte)) {
	packet := make([]byte, 2048)
	for {
		n, err := unix.Read(r.tun, packet)
		if err != nil {
			return // no more
		}
		if header := int(packet[0]&0xf) * 4; packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_TCP && n >= header+20 {
			handle(packet[header:n])
		}
	}
}

// reply answers a segment from the port that it came to, to the one that it came from.
func (r *remote) reply(s []byte, flags byte, seq, ack uint32) {
	to := netip.AddrPortFrom(r.l.addr, endian.BigEndian.Uint16(s[0:]))
	r.segmentTo(to, endian.BigEndian.Uint16(s[2:]), flags, seq, ack)
}

// sockets are descriptors that are closed when the test ends.
type sockets struct{ fds []int }

func (p *patient) sockets() *sockets {
	s := &sockets{}
	p.t.Cleanup(s.close)
	return s
}

func (s *sockets) close() {
	for _, fd := range s.fds {
		unix.Close(fd)
	}
	s.fds = nil
}

// begin begins to connect in the namespace of the thread, and does not wait.
func (s *sockets) begin(t testing.TB, to netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Errorf("socket: %v", err)
		return
	}
	s.fds = append(s.fds, fd)
	switch err := unix.Connect(fd, sockaddrOf(to)); {
	case err == nil, errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.ECONNREFUSED):
	default:
		t.Errorf("connect to %v: %v", to, err)
	}
}

var silent = netip.MustParseAddrPort("192.0.2.1:25001")

func plantSilence(p *patient) { p.waitForSilent() }

// waitForSilent connects to a peer that does not answer.
func (p *patient) waitForSilent() *sockets {
	p.far("tun-silent", silent.Addr().String(), "192.0.2.254:25001")
	s := p.sockets()
	p.ns.Do(func() {
		for range connections {
			s.begin(p.t, silent)
		}
	})
	return s
}

func checkSilence(t *testing.T, d *diagnosis) {
	f := d.find(t, "syn-sent-pileup")
	qt.Check(t, qt.Equals(f.Subject, silent.String()))
	qt.Check(t, qt.Equals(f.Facts["waiting_sockets"], any(float64(connections))))
	qt.Check(t, qt.Equals(f.Facts["syn_retransmitted_sockets"], any(float64(connections))))
	qt.Check(t, qt.Equals(f.Facts["pid"], any(float64(os.Getpid()))))
}

// plantImpatience has nobody wait for longer than a second and a bit: at no two looks is
// there the same socket.
func plantImpatience(p *patient) {
	to := netip.MustParseAddrPort("192.0.3.1:25004")
	p.far("tun-slow", to.Addr().String(), "192.0.3.254:25004")
	s := p.sockets()
	began := time.Now()
	p.meanwhile(func() {
		if time.Since(began) > 1200*time.Millisecond {
			s.close()
			began = time.Now()
		}
		if len(s.fds) < connections {
			s.begin(p.t, to)
		}
		time.Sleep(time.Millisecond)
	})
}

func plantRefusal(p *patient) {
	s := p.sockets()
	p.meanwhile(func() {
		s.begin(p.t, netip.MustParseAddrPort("127.0.0.1:25002"))
		s.close()
		time.Sleep(10 * time.Millisecond)
	})
}

func plantLostSYN(p *patient) {
	to := netip.MustParseAddrPort("192.0.4.1:25003")
	r := p.far("tun-lossy", to.Addr().String(), "192.0.4.254:25003")
	s := p.sockets()
	syns := map[uint16]int{}
	p.meanwhile(func() {
		s.begin(p.t, to)
		r.hear(func(segment []byte) {
			if segment[13] != flagSYN {
				return
			}
			port := endian.BigEndian.Uint16(segment[0:])
			if syns[port]++; syns[port] == 2 {
				r.reply(segment, flagSYN|flagACK, remoteISN, endian.BigEndian.Uint32(segment[4:])+1)
			}
		})
		time.Sleep(30 * time.Millisecond)
	})
}

// TestConnectTimeout compares after how long connect fails, as doctor says, with the
// kernel.
func TestConnectTimeout(t *testing.T) {
	for _, test := range []struct{ name, linear string }{
		{"all intervals double", "0"},
		{"one does not", "1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := &patient{t, inhabited(t)}
			const linear = "net.ipv4.tcp_syn_linear_timeouts"
			if p.ns.HasSysctl(linear) {
				p.ns.Sysctl(linear, test.linear)
			} else if test.linear != "0" {
				t.Skip("this kernel has no " + linear)
			}
			p.ns.Sysctl("net.ipv4.tcp_syn_retries", "1")
			for _, fd := range p.waitForSilent().fds {
				qt.Assert(t, qt.IsNil(unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_SYNCNT, 6))) // for doctor
			}
			began := time.Now()
			s := p.sockets()
			p.ns.Do(func() { s.begin(t, silent) })
			ready := []unix.PollFd{{Fd: int32(s.fds[0]), Events: unix.POLLOUT}}
			qt.Assert(t, qt.IsNil(uninterrupted(func() error { _, err := unix.Poll(ready, 30_000); return err })))
			got := time.Since(began).Seconds()
			want := p.diagnose().find(t, "syn-sent-pileup").Facts["connect_fails_after_seconds"].(float64)
			qt.Check(t, qt.IsTrue(got >= want && got < want+1), qt.Commentf("after %v s, want %v", got, want))
		})
	}
}
