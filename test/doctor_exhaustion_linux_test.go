package test

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// What finwait doctor forecasts comes about: connect fails for want of a port when it says.
func TestDoctorForecast(t *testing.T) {
	p := &patient{t, inhabited(t)}
	p.ns.Sysctl("net.ipv4.ip_local_port_range", "18000 18999")
	p.ns.Sysctl("net.ipv4.tcp_tw_reuse", "0")
	s := p.service(10001)
	failed := make(chan time.Time, 1)
	next, over := time.Now(), false
	p.meanwhile(func() { // 47 connections a second
		next = next.Add(time.Second / 47)
		time.Sleep(time.Until(next))
		if over {
			return
		}
		client, server, err := s.open()
		switch {
		case errors.Is(err, unix.EADDRNOTAVAIL):
			failed <- time.Now()
			over = true
		case err != nil:
			t.Errorf("connect: %v", err)
			over = true
		default:
			unix.Close(client)
			unix.Close(server)
		}
	})
	d := p.diagnose()
	f := d.find(t, "port-exhaustion")
	qt.Check(t, qt.Equals(f.Severity, "critical"))
	left, _ := f.Facts["time_left_seconds"].(float64)
	t.Logf("%s\n%v", f.Summary, f.Facts)
	select {
	case at := <-failed:
		took := at.Sub(d.Time).Seconds()
		t.Logf("forecast %.2fs, took %.2fs", left, took)
		qt.Check(t, qt.IsTrue(took > 5 && math.Abs(took-left) <= 0.2*took), qt.Commentf("forecast %.1fs, took %.1fs", left, took))
	case <-time.After(time.Minute):
		t.Fatalf("no connect has failed; forecast %.1fs", left)
	}
}

// Sockets that are bound before they connect take a port from all destinations.
func TestDoctorBoundPorts(t *testing.T) {
	p := &patient{t, inhabited(t)}
	p.fewPorts()
	bound, other := p.service(10001), p.service(10002)
	var err error
	p.ns.Do(func() {
		for range 1000 {
			var fd int
			if fd, err = churnSocket(); err != nil {
				return
			}
			p.closeAtEnd(fd)
			var server int
			if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err == nil {
				err = unix.Connect(fd, bound.at)
			}
			if err == nil {
				server, _, err = unix.Accept4(bound.listener, unix.SOCK_CLOEXEC)
			}
			if err != nil {
				return
			}
			p.closeAtEnd(server)
		}
	})
	qt.Assert(t, qt.IsNil(err))
	p.meanwhile(other.dialInVain)
	d := p.diagnose()
	qt.Check(t, qt.DeepEquals(d.ids(), []string{"port-exhaustion"}))
	var subjects []string
	for _, f := range d.Findings {
		subjects = append(subjects, f.Subject)
	}
	qt.Assert(t, qt.DeepEquals(subjects, []string{"127.0.0.1 to 127.0.0.1:10001", "any to 127.0.0.1:10002"}))
	qt.Check(t, qt.Equals(d.Findings[1].Severity, "critical"))
	qt.Check(t, qt.Equals(d.Findings[1].Facts["ports_used"], any(1000.)))
	failed, _ := d.Findings[1].Facts["connects_failed"].(float64)
	qt.Check(t, qt.IsTrue(failed >= 23), qt.Commentf("%v", d.Findings[1]))
}
