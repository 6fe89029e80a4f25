package oracle

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func line(local, remote, transition string) Line {
	l, r := netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote)
	t, err := tracer.ParseTransition(transition)
	if err != nil {
		panic(err)
	}
	return Line{
		Protocol: "IPPROTO_TCP", SPort: l.Port(), DPort: r.Port(),
		SAddrV6: netip.AddrFrom16(l.Addr().As16()), DAddrV6: netip.AddrFrom16(r.Addr().As16()),
		Transition: t,
	}
}

func transitions(names ...string) []tracer.Transition {
	var all []tracer.Transition
	for _, name := range names {
		t, err := tracer.ParseTransition(name)
		if err != nil {
			panic(err)
		}
		all = append(all, t)
	}
	return all
}

func tupleOf(local, remote string) Tuple {
	return Tuple{netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote)}
}

// TestSequences has a socket that is given its port late, and connects again
// while the kernel still says its old one.
func TestSequences(t *testing.T) {
	const server = "127.0.0.2:80"
	got := Sequences([]Line{
		line("127.0.0.1:0", server, "CLOSE:SYN_SENT"),
		line("127.0.0.1:5001", server, "SYN_SENT:ESTABLISHED"),
		line(server, "127.0.0.1:5001", "LISTEN:SYN_RECV"),
		line("127.0.0.1:5001", server, "ESTABLISHED:CLOSE"),
		line("127.0.0.1:5001", server, "CLOSE:SYN_SENT"),
		line("127.0.0.1:5002", server, "SYN_SENT:CLOSE"),
		line("127.0.0.1:0", "127.0.0.3:80", "CLOSE:SYN_SENT"),
	})
	qt.Assert(t, qt.DeepEquals(got, map[Tuple][]tracer.Transition{
		tupleOf("127.0.0.1:5001", server):      transitions("CLOSE:SYN_SENT", "SYN_SENT:ESTABLISHED", "ESTABLISHED:CLOSE"),
		tupleOf("127.0.0.1:5002", server):      transitions("CLOSE:SYN_SENT", "SYN_SENT:CLOSE"),
		tupleOf(server, "127.0.0.1:5001"):      transitions("LISTEN:SYN_RECV"),
		tupleOf("127.0.0.1:0", "127.0.0.3:80"): transitions("CLOSE:SYN_SENT"),
	}))
}

func TestFilters(t *testing.T) {
	lines := []Line{
		line("127.0.0.1:5001", "127.0.0.2:80", "SYN_SENT:ESTABLISHED"),
		line("127.0.0.3:80", "127.0.0.1:5002", "LISTEN:SYN_RECV"),
		line("[fd00::1]:80", "[::1]:5003", "LISTEN:SYN_RECV"),
	}
	mptcp := lines[0]
	mptcp.Protocol = "IPPROTO_MPTCP"
	lines = append(lines, mptcp)

	qt.Check(t, qt.IsTrue(slices.Equal(About(lines, netip.MustParseAddr("127.0.0.2")), lines[:1])))
	qt.Check(t, qt.IsTrue(slices.Equal(About(lines, netip.MustParseAddr("fd00::1")), lines[2:3])))
	qt.Check(t, qt.IsTrue(slices.Equal(OnPorts(lines, 5002, 5003), lines[1:3])))
	qt.Check(t, qt.HasLen(OnPorts(lines, 80), 4))
}
