package test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

var timeWaitConditions = []condition{
	{
		name:  "many sockets are in TIME_WAIT",
		finds: []string{"time-wait-large"},
		plant: func(p *patient) {
			p.ns.Sysctl("net.ipv4.tcp_max_tw_buckets", "131072") // a small host has fewer
			// To so many addresses, of either family, that no client lacks a port.
			s := p.serviceAt(unix.AF_INET, &unix.SockaddrInet4{Port: 10010})
			for i := range 41 {
				s.at = &unix.SockaddrInet4{Port: 10010, Addr: [4]byte{127, 1, 0, byte(1 + i)}}
				s.spend(690)
			}
			for i := range 3 {
				p.serviceAt(unix.AF_INET6, &unix.SockaddrInet6{Port: 10011 + i, Addr: [16]byte{15: 1}}).spend(690)
			}
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "time-wait-large")
			qt.Check(t, qt.Equals(f.Severity, "info"))
			qt.Check(t, qt.Equals(f.Facts["time_wait_sockets"], any(44*690.)))
			qt.Check(t, qt.Equals(f.Facts["mini_sockets"], any(44*690.)))
			each, _ := f.Facts["memory_bytes"].(float64)
			each /= 44 * 690
			qt.Check(t, qt.IsTrue(each > 200 && each < 400), qt.Commentf("%v bytes each", each))
		},
	},
	{
		name:  "TIME_WAIT is near its limit",
		finds: []string{"time-wait-limit", "sysctl-max-tw-buckets"},
		alone: wholeNetns,
		plant: func(p *patient) {
			p.service(10004).spend(23)
			p.limitTimeWait(+2)
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "time-wait-limit")
			qt.Check(t, qt.Equals(f.Severity, "warning"))
			qt.Check(t, qt.Equals(f.Facts["time_wait_sockets"], any(23.)))
			qt.Check(t, qt.Equals(f.Facts["tcp_max_tw_buckets"], any(25.)))
		},
	},
	{
		name:  "TIME_WAIT is refused",
		finds: []string{"time-wait-refused", "sysctl-max-tw-buckets"},
		alone: wholeNetns,
		plant: func(p *patient) {
			s := p.service(10005)
			s.spend(23)
			p.limitTimeWait(0)
			p.meanwhile(func() {
				time.Sleep(20 * time.Millisecond)
				s.spend(1)
			})
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "time-wait-refused")
			qt.Check(t, qt.Equals(f.Severity, "warning"))
			qt.Check(t, qt.Equals(f.Facts["time_wait_sockets"], any(23.)))
			refused, _ := f.Facts["refused"].(float64)
			qt.Check(t, qt.IsTrue(refused >= 23), qt.Commentf("%v", f.Facts))
		},
	},
}

// limitTimeWait allows as many sockets in TIME_WAIT as there are, and some more.
func (p *patient) limitTimeWait(more int) {
	p.t.Helper()
	out, err := p.ns.Command("ss", "--no-header", "--numeric", "--tcp", "state", "time-wait").Output()
	qt.Assert(p.t, qt.IsNil(err))
	p.ns.Sysctl("net.ipv4.tcp_max_tw_buckets", strconv.Itoa(strings.Count(string(out), "\n")+more))
}
