package oracle

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

const (
	line4 = "  curl-20069   [001] ..s2.  1981.203278: inet_sock_set_state: family=AF_INET protocol=IPPROTO_TCP sport=42622 dport=53569 saddr=127.0.0.1 daddr=127.210.90.216 saddrv6=::ffff:127.0.0.1 daddrv6=::ffff:127.210.90.216 oldstate=TCP_FIN_WAIT2 newstate=TCP_CLOSE"
	line6 = " <idle>-0       [000] b.s1. 12345.000001: inet_sock_set_state: family=AF_INET6 protocol=IPPROTO_MPTCP sport=0 dport=443 saddr=0.0.0.0 daddr=0.0.0.0 saddrv6=::1 daddrv6=fd00::1 oldstate=TCP_CLOSE newstate=TCP_SYN_SENT"
)

func TestParseLine(t *testing.T) {
	l, err := parseLine(line4)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(l, Line{
		Time: 1981*time.Second + 203278*time.Microsecond, CPU: 1, PID: 20069,
		Family: tracer.FamilyIPv4, Protocol: "IPPROTO_TCP", SPort: 42622, DPort: 53569,
		SAddr: netip.MustParseAddr("127.0.0.1"), DAddr: netip.MustParseAddr("127.210.90.216"),
		SAddrV6: netip.MustParseAddr("::ffff:127.0.0.1"), DAddrV6: netip.MustParseAddr("::ffff:127.210.90.216"),
		Transition: tracer.Transition{Old: tracer.StateFinWait2, New: tracer.StateClose},
	}))
	qt.Assert(t, qt.Equals(l.Local(), netip.MustParseAddrPort("127.0.0.1:42622")))
	qt.Assert(t, qt.Equals(l.Remote(), netip.MustParseAddrPort("127.210.90.216:53569")))
	qt.Assert(t, qt.IsTrue(l.IsTCP()))

	l, err = parseLine(line6)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(l.Family, tracer.FamilyIPv6))
	qt.Assert(t, qt.Equals(l.Local(), netip.MustParseAddrPort("[::1]:0")))
	qt.Assert(t, qt.Equals(l.Remote(), netip.MustParseAddrPort("[fd00::1]:443")))
	qt.Assert(t, qt.IsFalse(l.IsTCP()))
}

// TestParseLineHostileComm has commands that look like fields.
func TestParseLineHostileComm(t *testing.T) {
	for _, comm := range []string{"a b", "x-1 [7]", "-", "1.2:", "é\x1b[31m"} {
		l, err := parseLine(comm + "-77 [000] ..... 5.000000:" + line4[len("  curl-20069   [001] ..s2.  1981.203278:"):])
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%q", comm))
		qt.Assert(t, qt.Equals(l.PID, 77))
		qt.Assert(t, qt.Equals(l.CPU, 0))
		qt.Assert(t, qt.Equals(l.Time, 5*time.Second))
	}
}

func TestParseTrace(t *testing.T) {
	lines, err := parseTrace("# tracer: nop\n#\n\n" + line4 + "\n" + line6 + "\n")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(lines, 2))

	_, err = parseTrace(line4[:len(line4)-1] + "\n")
	qt.Assert(t, qt.ErrorMatches(err, `.*unknown TCP state "CLOS".*`))
}

const expiryLine = "  tokio-rt-worker-75      [001] ..s1.  1981.203278: timer_expire_entry: timer=00000000c7e2c4d1 function=tw_timer_handler now=4295386432 baseclk=4295386432"

func TestParseExpiries(t *testing.T) {
	lines, err := parseExpiries("# tracer: nop\n" + line4 + "\n" + expiryLine + "\n")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(lines, 1))
	qt.Assert(t, qt.Equals(lines[0], Line{Time: 1981*time.Second + 203278*time.Microsecond, CPU: 1, PID: 75}))

	_, err = parseExpiries("x [0]" + expiryName)
	qt.Assert(t, qt.ErrorMatches(err, ".*too few fields.*"))
}

// FuzzParseExpiries expects an error or lines that were there.
func FuzzParseExpiries(f *testing.F) {
	for _, seed := range []string{expiryLine, line4 + "\n" + expiryLine, "#" + expiryLine, expiryName} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := parseExpiries(text)
		if err == nil && len(lines) > strings.Count(text, expiryName) {
			t.Fatalf("%q gives %d lines", text, len(lines))
		}
	})
}

// FuzzParseLine expects an error or a line whose parts are all there.
func FuzzParseLine(f *testing.F) {
	for _, seed := range []string{line4, line6, "", "# tracer: nop", eventName, "a-1 [0] . 1.000000: inet_sock_set_state: sport=x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := parseLine(s)
		if err != nil {
			return
		}
		if l.Family.String() == "unknown" || l.Protocol == "" || l.Old == 0 || l.New == 0 || l.Time < 0 ||
			!l.SAddr.IsValid() || !l.DAddr.IsValid() || !l.SAddrV6.IsValid() || !l.DAddrV6.IsValid() {
			t.Fatalf("%q gives an incomplete line without an error: %+v", s, l)
		}
		if _, err := parseLine("# " + s); !errors.Is(err, errOtherLine) {
			t.Fatalf("comment gives %v", err)
		}
	})
}
