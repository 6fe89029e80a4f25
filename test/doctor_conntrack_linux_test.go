package test

import (
	"os/exec"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

var conntrackConditions = []condition{
	{
		name: "tracking nearly full", finds: []string{"conntrack-full"},
		plant: func(p *patient) { p.fillTracking() },
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "conntrack-full")
			qt.Check(t, qt.Equals(f.Severity, "warning"))
			qt.Check(t, qt.IsTrue(f.Facts["used_percent"].(float64) >= 80))
		},
	},
	{
		name: "forgotten before keepalive", finds: []string{"sysctl-keepalive-conntrack"},
		plant: func(p *patient) {
			p.track()
			p.ns.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", "600")
			p.leaveInbound(5123)
		},
	},
}

// trackRules have a namespace's connections tracked, since one asks for their state.
// Datagrams go no further once they are in the table, which takes half the time.
const trackRules = `add table inet t
add chain inet t tracked { type filter hook output priority 0; }
add rule inet t tracked ct state new counter
add chain inet t arriving { type filter hook prerouting priority raw; }
add rule inet t arriving meta l4proto udp drop`

// track has the namespace's connections tracked.
func (p *patient) track() {
	p.t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		p.t.Skip("needs nft: ", err)
	}
	if !p.ns.HasSysctl("net.netfilter.nf_conntrack_count") {
		p.t.Skip("no connection tracking here")
	}
	out, err := p.ns.Command("nft", trackRules).CombinedOutput()
	qt.Assert(p.t, qt.IsNil(err), qt.Commentf("%s", out))
}

// fillTracking tracks five sixths of what may be. The limit is the host's, and is left as
// it is: other namespaces must not lose packets. So there are as many connections, of
// UDP, to as many loopback addresses.
func (p *patient) fillTracking() {
	p.t.Helper()
	p.track()
	p.ns.Sysctl("net.netfilter.nf_conntrack_udp_timeout", "600")
	most := p.sysctl("net/netfilter/nf_conntrack_max")
	if most == 0 || most > 1<<20 {
		p.t.Skip("as many connections are not worth the memory: ", most)
	}
	p.ns.Do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		qt.Assert(p.t, qt.IsNil(err))
		defer unix.Close(fd)
		for i := range most * 5 / 6 {
			to := &unix.SockaddrInet4{Port: 5223, Addr: [4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)}}
			if err := unix.Sendto(fd, []byte("x"), 0, to); err != nil {
				p.t.Fatal("send to one address of many: ", err)
			}
		}
	})
	qt.Assert(p.t, qt.IsTrue(p.sysctl("net/netfilter/nf_conntrack_count") >= most*4/5))
}
