package test

import (
	endian "encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// listenerCounters are for all listeners of a namespace together: of what shows in them
// there can be one thing at a time.
const listenerCounters = "the counters of listeners"

var listenerConditions = []condition{
	{name: "accept queue that stays full", finds: []string{"slow-accept"}, alone: listenerCounters, plant: plantFullQueue, check: checkFullQueue},
	{name: "nobody accepts", finds: []string{"slow-accept"}, plant: plantUnaccepted, check: checkUnaccepted},
	{name: "accept queue overflows", finds: []string{"accept-queue-overflow"}, alone: listenerCounters, plant: plantBursts, check: checkBursts},
	{name: "small backlog", finds: []string{"listen-backlog-small"}, alone: listenerCounters, plant: plantSmallBacklog, check: checkSmallBacklog},
	{name: "SYN flood", finds: []string{"syn-flood"}, alone: listenerCounters, plant: plantFlood, check: checkFlood},
	{name: "SYN flood that cookies answer", finds: []string{"syn-flood"}, alone: listenerCounters, plant: plantCookieFlood, check: checkCookieFlood},
	{name: "SYN flood without cookies", finds: []string{"syn-flood", "sysctl-syncookies-off"}, alone: listenerCounters, plant: plantDroppedFlood, check: checkDroppedFlood},
	{name: "burst of handshakes", finds: []string{"syn-backlog-small"}, alone: listenerCounters, plant: plantHandshakes, check: checkHandshakes},
	{name: "handshakes broken off", finds: []string{"half-open-resets"}, alone: listenerCounters, plant: plantHalfOpenResets},
}

// listening is a listener that does not wait in accept.
type listening struct {
	sockets
	p     *patient
	fd    int
	local netip.AddrPort
}

func (p *patient) listening(local string, backlog int) *listening {
	p.t.Helper()
	s := &listening{p: p, local: netip.MustParseAddrPort(local)}
	l := &loop{t: p.t, ns: p.ns, addr: s.local.Addr()}
	p.ns.Do(func() {
		s.fd = l.socket()
		l.bind(s.fd, s.local.Port())
		l.must("listen", unix.Listen(s.fd, backlog))
		l.must("O_NONBLOCK", unix.SetNonblock(s.fd, true))
	})
	p.t.Cleanup(func() { unix.Close(s.fd); s.close() })
	return s
}

// acceptAll accepts what there is.
func (s *listening) acceptAll() (n int) {
	for {
		fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return n
		}
		s.fds = append(s.fds, fd)
		n++
	}
}

func plantFullQueue(p *patient) {
	const backlog = 4
	s, clients := p.listening("127.0.0.1:25011", backlog), p.sockets()
	p.ns.Do(func() {
		for range backlog + 1 {
			clients.begin(p.t, s.local)
		}
	})
}

func checkFullQueue(t *testing.T, d *diagnosis) {
	f := d.find(t, "slow-accept")
	qt.Check(t, qt.Equals(f.Severity, "critical"))
	qt.Check(t, qt.Equals(f.Subject, "127.0.0.1:25011"))
	qt.Check(t, qt.Equals(f.Facts["waiting"], any(5.0)))
	qt.Check(t, qt.Equals(f.Facts["backlog"], any(4.0)))
	qt.Check(t, qt.Equals(f.Facts["pid"], any(float64(os.Getpid()))))
	qt.Check(t, qt.Matches(f.Summary, fmt.Sprintf(`.* \(%d\) accepted none in [0-9.]+ s at 127\.0\.0\.1:25011: 5 of 5 wait.*`, os.Getpid())))
}

func plantUnaccepted(p *patient) {
	s, clients := p.listening("127.0.0.1:25012", 1024), p.sockets()
	p.ns.Do(func() {
		for range connections {
			clients.begin(p.t, s.local)
		}
	})
}

func checkUnaccepted(t *testing.T, d *diagnosis) {
	f := d.find(t, "slow-accept")
	qt.Check(t, qt.Equals(f.Severity, "warning"))
	qt.Check(t, qt.Equals(f.Facts["waiting"], any(float64(connections))))
	qt.Check(t, qt.Equals(f.Facts["opened"], any(0.0)))
}

// plantBursts has more clients come at once than the queue has room for. Those that found
// none give up before they try again.
func plantBursts(p *patient) {
	s, clients := p.listening("127.0.0.1:25013", 4), p.sockets()
	p.meanwhile(func() {
		for range connections {
			clients.begin(p.t, s.local)
		}
		s.acceptAll()
		clients.close()
		s.close()
		time.Sleep(50 * time.Millisecond)
	})
}

func checkBursts(t *testing.T, d *diagnosis) {
	f := d.find(t, "accept-queue-overflow")
	qt.Check(t, qt.Equals(f.Severity, "critical"))
	qt.Check(t, qt.Equals(f.Facts["other_listen_drops"], any(0.0)))
	overflows, opened := f.Facts["listen_overflows"].(float64), f.Facts["opened"].(float64)
	// Of 23, there is room for 5; the watch may begin or end in the middle of a burst.
	ratio := overflows / opened
	qt.Check(t, qt.IsTrue(ratio > 3.2 && ratio < 4), qt.Commentf("%v overflows, %v opened", overflows, opened))
}

func plantSmallBacklog(p *patient) {
	s, clients := p.listening("127.0.0.1:25014", 4), p.sockets()
	p.meanwhile(func() {
		for range 4 {
			clients.begin(p.t, s.local)
		}
		s.acceptAll()
		clients.close()
		s.close()
		time.Sleep(10 * time.Millisecond)
	})
}

func checkSmallBacklog(t *testing.T, d *diagnosis) {
	f := d.find(t, "listen-backlog-small")
	qt.Check(t, qt.Equals(f.Subject, "127.0.0.1:25014"))
	qt.Check(t, qt.Equals(f.Facts["backlog"], any(4.0)))
	qt.Check(t, qt.HasLen(f.Sysctls, 0), qt.Commentf("the application limits it, not somaxconn"))
}

// flood sends a SYN from each of 23 addresses, from the port.
func (r *remote) flood(port uint16) {
	network := r.addr.As4()
	for i := range byte(connections) {
		network[3] = i + 1
		r.addr = netip.AddrFrom4(network)
		r.syn(port)
	}
}

func plantFlood(p *patient) {
	const here = "192.0.5.254:25015"
	r := p.far("tun-flood", "192.0.5.1", here)
	p.listening(here, 1024)
	for port := range uint16(7) {
		r.flood(remotePort + port)
	}
}

func checkFlood(t *testing.T, d *diagnosis) {
	f := d.find(t, "syn-flood")
	qt.Check(t, qt.Equals(f.Severity, "warning"))
	qt.Check(t, qt.Equals(f.Facts["half_open"], any(float64(7*connections))))
	qt.Check(t, qt.Equals(f.Facts["synack_retransmitted"], any(float64(7*connections))))
	qt.Check(t, qt.Equals(f.Facts["addresses"], any(float64(connections))))
}

// plantLastingFlood floods a listener as long as the test lasts.
func plantLastingFlood(p *patient, device, network, port string, backlog int) {
	here := network + ".254:" + port
	r := p.far(device, network+".1", here)
	p.listening(here, backlog)
	from := uint16(remotePort)
	p.meanwhile(func() {
		r.flood(from)
		from++
		time.Sleep(50 * time.Millisecond)
	})
}

func plantCookieFlood(p *patient) { plantLastingFlood(p, "tun-cookies", "192.0.6", "25016", 4) }

func checkCookieFlood(t *testing.T, d *diagnosis) {
	f := d.find(t, "syn-flood")
	qt.Check(t, qt.Equals(f.Severity, "warning"))
	qt.Check(t, qt.Equals(f.Facts["syn_cookies_valid"], any(0.0)))
	qt.Check(t, qt.Matches(f.Summary, `[0-9,]+ SYN cookies sent, [0-9.,]+ a second, 0 came back.*`))
	qt.Check(t, qt.Equals(f.Facts["tcp_syncookies"], any(1.0)))
}

func plantDroppedFlood(p *patient) {
	p.ns.Sysctl("net.ipv4.tcp_syncookies", "0")
	plantLastingFlood(p, "tun-drops", "192.0.7", "25017", connections)
}

func checkDroppedFlood(t *testing.T, d *diagnosis) {
	f := d.find(t, "syn-flood")
	qt.Check(t, qt.Equals(f.Severity, "critical"))
	qt.Check(t, qt.Equals(f.Facts["syns_dropped"], f.Facts["syn_queue_full_dropped"]))
	half := f.Facts["half_open"].(float64)
	qt.Check(t, qt.IsTrue(half == connections || half == connections+1), qt.Commentf("%v half-open, backlog %d", half, connections))
}

// plantHandshakes has clients connect together, which all complete their handshakes.
func plantHandshakes(p *patient) {
	const here, backlog = "192.0.8.254:25018", 10
	r, s := p.far("tun-burst", "192.0.8.1", here), p.listening(here, backlog)
	from := uint16(remotePort)
	p.meanwhile(func() {
		for range connections {
			r.syn(from)
			from++
		}
		for done, until := 0, time.Now().Add(time.Second); done < connections && time.Now().Before(until); {
			r.hear(func(segment []byte) {
				seq, ack := endian.BigEndian.Uint32(segment[4:]), endian.BigEndian.Uint32(segment[8:])
				switch flags := segment[13]; {
				case flags&flagSYN != 0:
					r.reply(segment, flagACK, ack, seq+1)
					done += s.acceptAll()
					s.close()
				case flags&flagFIN != 0:
					r.reply(segment, flagFIN|flagACK, ack, seq+1)
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
	})
}

func checkHandshakes(t *testing.T, d *diagnosis) {
	f := d.find(t, "syn-backlog-small")
	qt.Check(t, qt.Equals(f.Subject, "192.0.8.254:25018"))
	qt.Check(t, qt.Equals(f.Facts["backlog"], any(10.0)))
	full, sent, valid := f.Facts["syn_queue_full"].(float64), f.Facts["syn_cookies_sent"].(float64), f.Facts["syn_cookies_valid"].(float64)
	qt.Check(t, qt.Equals(full, sent))
	qt.Check(t, qt.IsTrue(valid >= sent-connections && valid <= sent+connections), qt.Commentf(fmt.Sprint(f.Facts)))
}

func plantHalfOpenResets(p *patient) {
	const here = "192.0.9.254:25019"
	r := p.far("tun-resets", "192.0.9.1", here)
	p.listening(here, 1024)
	from := uint16(remotePort)
	p.meanwhile(func() {
		for range connections {
			r.syn(from)
			r.rst(from)
			from++
		}
		time.Sleep(20 * time.Millisecond)
	})
}
