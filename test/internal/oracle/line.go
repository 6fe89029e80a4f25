package oracle

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/finwait/finwait/tracer"
)

// Line is one record of sock:inet_sock_set_state, as tracefs prints it.
type Line struct {
	// Time is the kernel's CLOCK_MONOTONIC.
	Time time.Duration
	// CPU and PID are where the transition happened and who was interrupted
	// there.
	CPU, PID int
	Family   tracer.Family
	// Protocol is the kernel's name, such as "IPPROTO_TCP".
	Protocol     string
	SPort, DPort uint16
	// SAddr and DAddr mean something in IPv4 only. SAddrV6 and DAddrV6 hold
	// the IPv4 addresses too, mapped.
	SAddr, DAddr, SAddrV6, DAddrV6 netip.Addr
	tracer.Transition
}

// Local is the socket's own end. Its port is 0 or an earlier connection's in
// CLOSE→SYN_SENT, unless the socket was bound.
func (l *Line) Local() netip.AddrPort { return netip.AddrPortFrom(l.SAddrV6.Unmap(), l.SPort) }

// Remote is the other end, or an unspecified address and port 0.
func (l *Line) Remote() netip.AddrPort { return netip.AddrPortFrom(l.DAddrV6.Unmap(), l.DPort) }

// IsTCP reports whether the line is about a TCP socket. MPTCP sockets, which
// the same tracepoint reports, are not; the subflows under them are.
func (l *Line) IsTCP() bool { return l.Protocol == "IPPROTO_TCP" }

const (
	eventName  = " inet_sock_set_state: "
	expiryName = " timer_expire_entry: "
)

// errOtherLine is what parseLine returns for a line that is no record of the
// event: a comment or an empty line.
var errOtherLine = errors.New("not an inet_sock_set_state record")

// parseTrace parses an instance's trace file.
func parseTrace(text string) ([]Line, error) {
	var lines []Line
	for s := range strings.Lines(text) {
		l, err := parseLine(strings.TrimSuffix(s, "\n"))
		switch {
		case errors.Is(err, errOtherLine):
		case err != nil:
			return nil, err
		default:
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// parseExpiries parses an instance's trace file for the expiries of timers.
func parseExpiries(text string) ([]Line, error) {
	var lines []Line
	for s := range strings.Lines(text) {
		head, _, ok := strings.Cut(s, expiryName)
		if !ok || strings.HasPrefix(s, "#") {
			continue
		}
		var l Line
		if err := l.parseHead(head); err != nil {
			return nil, fmt.Errorf("trace line %q: %w", s, err)
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// parseLine parses a line of an instance's trace file with the clock "mono".
func parseLine(s string) (Line, error) {
	head, body, ok := strings.Cut(s, eventName)
	if !ok || strings.HasPrefix(s, "#") {
		return Line{}, errOtherLine
	}
	var l Line
	if err := l.parseHead(head); err != nil {
		return Line{}, fmt.Errorf("trace line %q: %w", s, err)
	}
	if err := l.parseBody(body); err != nil {
		return Line{}, fmt.Errorf("trace line %q: %w", s, err)
	}
	return l, nil
}

// parseHead parses "comm-PID [CPU] FLAGS SECONDS:". The command may hold
// anything, so the fields are taken from the end.
func (l *Line) parseHead(s string) error {
	fields := strings.Fields(s)
	if len(fields) < 4 {
		return errors.New("too few fields before the event's name")
	}
	fields = fields[len(fields)-4:]
	task, cpu, stamp := fields[0], fields[1], fields[3]

	var err error
	if l.PID, err = strconv.Atoi(task[strings.LastIndexByte(task, '-')+1:]); err != nil {
		return err
	}
	if l.CPU, err = strconv.Atoi(strings.Trim(cpu, "[]")); err != nil {
		return err
	}
	l.Time, err = parseStamp(strings.TrimSuffix(stamp, ":"))
	return err
}

func parseStamp(s string) (time.Duration, error) {
	sec, frac, _ := strings.Cut(s, ".")
	whole, err := strconv.ParseUint(sec, 10, 32)
	if err != nil {
		return 0, err
	}
	micro, err := strconv.ParseUint(frac, 10, 32)
	if err != nil {
		return 0, err
	}
	if len(frac) != 6 {
		return 0, fmt.Errorf("timestamp %q is not in microseconds", s)
	}
	return time.Duration(whole)*time.Second + time.Duration(micro)*time.Microsecond, nil
}

func (l *Line) parseBody(s string) error {
	fields := map[string]string{}
	for _, f := range strings.Fields(s) {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("field %q has no value", f)
		}
		fields[key] = value
	}
	var p fieldParser
	l.Family = p.family(fields["family"])
	l.Protocol = fields["protocol"]
	l.SPort, l.DPort = p.port(fields["sport"]), p.port(fields["dport"])
	l.SAddr, l.DAddr = p.addr(fields["saddr"]), p.addr(fields["daddr"])
	l.SAddrV6, l.DAddrV6 = p.addr(fields["saddrv6"]), p.addr(fields["daddrv6"])
	l.Old, l.New = p.state(fields["oldstate"]), p.state(fields["newstate"])
	if l.Protocol == "" {
		p.fail(errors.New("no protocol"))
	}
	return p.err
}

// fieldParser parses fields and keeps the first error.
type fieldParser struct{ err error }

func (p *fieldParser) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *fieldParser) family(s string) tracer.Family {
	switch s {
	case "AF_INET":
		return tracer.FamilyIPv4
	case "AF_INET6":
		return tracer.FamilyIPv6
	}
	p.fail(fmt.Errorf("unknown family %q", s))
	return 0
}

func (p *fieldParser) port(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		p.fail(err)
	}
	return uint16(n)
}

func (p *fieldParser) addr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		p.fail(err)
	}
	return a
}

func (p *fieldParser) state(s string) tracer.State {
	name, ok := strings.CutPrefix(s, "TCP_")
	if !ok {
		p.fail(fmt.Errorf("unknown state %q", s))
		return 0
	}
	state, err := tracer.ParseState(name)
	if err != nil {
		p.fail(err)
	}
	return state
}
