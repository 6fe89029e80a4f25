package test

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// outgoingPorts is the word for those that change which ports connect can have.
const outgoingPorts = "outgoing ports"

var portConditions = []condition{
	{
		name:  "ports are nearly all in TIME_WAIT",
		finds: []string{"port-exhaustion"},
		alone: outgoingPorts,
		plant: func(p *patient) {
			p.fewPorts()
			p.serviceAway(10001).spend(900)
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "port-exhaustion")
			qt.Check(t, qt.Equals(f.Severity, "info")) // nobody opens any now
			free, _ := f.Facts["free_again_in_seconds"].(float64)
			qt.Check(t, qt.IsTrue(free > 0 && free <= 61), qt.Commentf("%v", f.Facts))
			delete(f.Facts, "free_again_in_seconds")
			qt.Check(t, qt.Equals(f.Subject, "203.0.113.23 to 203.0.113.23:10001"))
			qt.Check(t, qt.DeepEquals(f.Facts, map[string]any{
				"ports_in_range": 28232., "ports_reserved": 27232., "ports_listening": 0., "ports_taken": 900., "ports_left": 100.,
				"ports_open": 0., "ports_time_wait": 900., "ports_fin_wait2": 0., "new_per_second": 0., "connects_failed": 0.,
			}))
		},
	},
	{
		name:  "ports are all taken",
		finds: []string{"port-exhaustion"},
		alone: outgoingPorts,
		plant: func(p *patient) {
			p.fewPorts()
			s := p.serviceAway(10002)
			s.hold(1000)
			p.meanwhile(s.dialInVain)
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "port-exhaustion")
			qt.Check(t, qt.Equals(f.Severity, "critical"))
			failed, _ := f.Facts["connects_failed"].(float64)
			qt.Check(t, qt.IsTrue(failed >= 23), qt.Commentf("%v", f.Facts))
			delete(f.Facts, "connects_failed")
			qt.Check(t, qt.DeepEquals(f.Facts, map[string]any{
				"ports_in_range": 28232., "ports_reserved": 27232., "ports_listening": 0., "ports_taken": 1000., "ports_left": 0.,
				"ports_open": 1000., "ports_time_wait": 0., "ports_fin_wait2": 0., "new_per_second": 0., "time_left_seconds": 0.,
				"pid": float64(os.Getpid()), "comm": ownComm(t),
			}))
		},
	},
	{
		name:  "a client opens connection after connection",
		finds: []string{"client-churn"},
		alone: outgoingPorts,
		plant: func(p *patient) {
			s := p.serviceAway(10003)
			next := time.Now()
			p.meanwhile(func() { // 110 a second, which take more than a fifth of the ports
				next = next.Add(time.Second / 110)
				time.Sleep(time.Until(next))
				s.spend(1)
			})
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "client-churn")
			qt.Check(t, qt.Equals(f.Severity, "info"))
			who := fmt.Sprintf("%s (%d)", ownComm(t), os.Getpid())
			qt.Check(t, qt.Equals(f.Subject, who+" to 203.0.113.23:10003"))
			perSecond, _ := f.Facts["opened_per_second"].(float64)
			qt.Check(t, qt.IsTrue(perSecond >= 93 && perSecond <= 130), qt.Commentf("%v", f.Facts))
			held, _ := f.Facts["ports_held"].(float64)
			qt.Check(t, qt.IsTrue(held >= 3*93 && held <= 30*130), qt.Commentf("%v", f.Facts))
			held, _ = f.Facts["ports_held_in_the_end"].(float64)
			qt.Check(t, qt.IsTrue(held >= 60*93 && held <= 62*130), qt.Commentf("%v", f.Facts))
			qt.Check(t, qt.StringContains(f.Summary, who))
		},
	},
}

// fewPorts leaves clients the first thousand of the default range of ports.
func (p *patient) fewPorts() {
	p.t.Helper()
	p.ns.Sysctl("net.ipv4.ip_local_reserved_ports", "33768-60999")
}

// service is a listener to which connections are made. Its clients close first, and so have
// TIME_WAIT.
type service struct {
	p        *patient
	listener int
	at       unix.Sockaddr
}

// service listens on a port of 127.0.0.1.
func (p *patient) service(port int) *service {
	p.t.Helper()
	return p.serviceAt(unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}

// serviceAway listens on a port of an address that is local, but not the kernel's idea of
// loopback: by default connect takes over no port in TIME_WAIT there (tcp_twsk_unique).
func (p *patient) serviceAway(port int) *service {
	p.t.Helper()
	out, err := p.ns.Command("ip", "address", "replace", "203.0.113.23/32", "dev", "lo").CombinedOutput()
	qt.Assert(p.t, qt.IsNil(err), qt.Commentf("%s", out))
	return p.serviceAt(unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte{203, 0, 113, 23}})
}

func (p *patient) serviceAt(family int, at unix.Sockaddr) *service {
	p.t.Helper()
	s := &service{p: p, at: at}
	var err error
	p.ns.Do(func() {
		if s.listener, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			p.closeAtEnd(s.listener)
			err = errors.Join(unix.Bind(s.listener, at), unix.Listen(s.listener, 128))
		}
	})
	qt.Assert(p.t, qt.IsNil(err))
	return s
}

func (p *patient) closeAtEnd(fd int) { p.t.Cleanup(func() { unix.Close(fd) }) }

// dial opens a client's socket and connects it, in the namespace in which the thread is.
func (s *service) dial() (fd int, err error) {
	family := unix.AF_INET
	if _, ok := s.at.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, s.at); err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// dialInVain connects where no port is left, a hundred times a second.
func (s *service) dialInVain() {
	time.Sleep(10 * time.Millisecond)
	fd, err := s.dial()
	if err == nil {
		unix.Close(fd)
	}
	qt.Check(s.p.t, qt.ErrorIs(err, unix.EADDRNOTAVAIL))
}

// open makes a connection.
func (s *service) open() (client, server int, err error) {
	if client, err = s.dial(); err != nil {
		return 0, 0, err
	}
	if server, _, err = unix.Accept4(s.listener, unix.SOCK_CLOEXEC); err != nil {
		unix.Close(client)
	}
	return client, server, err
}

// spend makes n connections, one after the other, whose clients go to TIME_WAIT.
func (s *service) spend(n int) {
	s.p.t.Helper()
	var err error
	s.p.ns.Do(func() {
		for range n {
			var client, server int
			if client, server, err = s.open(); err != nil {
				return
			}
			unix.Close(client)
			unix.Close(server)
		}
	})
	qt.Check(s.p.t, qt.IsNil(err))
}

// hold makes n connections that stay open until the test ends.
func (s *service) hold(n int) {
	s.p.t.Helper()
	var err error
	s.p.ns.Do(func() {
		for range n {
			var client, server int
			if client, server, err = s.open(); err != nil {
				return
			}
			s.p.closeAtEnd(client)
			s.p.closeAtEnd(server)
		}
	})
	qt.Assert(s.p.t, qt.IsNil(err))
}
