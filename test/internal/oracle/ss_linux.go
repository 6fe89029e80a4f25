package oracle

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/tracer"
)

// SS counts the TCP sockets of the namespace in each state, as ss -Htan lists
// them. A state without a socket is not in the map.
func SS(ns *netns.NS) (map[tracer.State]int, error) {
	out, err := ns.Command("ss", "-Htan").Output()
	if err != nil {
		return nil, fmt.Errorf("ss -Htan: %w", err)
	}
	return countStates(string(out))
}

// Cookies returns the socket cookies that ss -e shows as sk:, of the TCP sockets
// in a state that ss calls so.
func Cookies(ns *netns.NS, state string) (map[Tuple]uint64, error) {
	out, err := ns.Command("ss", "-Htane", "state", state).Output()
	if err != nil {
		return nil, fmt.Errorf("ss -Htane state %s: %w", state, err)
	}
	return parseCookies(string(out))
}

// parseCookies parses lines such as
// "0 0 127.0.0.1:80 127.0.0.1:40002 timer:(on,1sec,0) ino:0 sk:1f cgroup:/".
func parseCookies(out string) (map[Tuple]uint64, error) {
	cookies := map[Tuple]uint64{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			return nil, fmt.Errorf("line of ss %q: too short", line)
		}
		local, err := netip.ParseAddrPort(fields[2])
		if err != nil {
			return nil, fmt.Errorf("line of ss %q: %w", line, err)
		}
		remote, err := netip.ParseAddrPort(fields[3])
		if err != nil {
			return nil, fmt.Errorf("line of ss %q: %w", line, err)
		}
		for _, field := range fields[4:] {
			if hex, ok := strings.CutPrefix(field, "sk:"); ok {
				if cookies[Tuple{local, remote}], err = strconv.ParseUint(hex, 16, 64); err != nil {
					return nil, fmt.Errorf("line of ss %q: %w", line, err)
				}
			}
		}
	}
	return cookies, nil
}

func countStates(out string) (map[tracer.State]int, error) {
	counts := map[tracer.State]int{}
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(line, " ")
		state, err := tracer.ParseState(name)
		if err != nil {
			return nil, fmt.Errorf("line of ss %q: %w", line, err)
		}
		counts[state]++
	}
	return counts, nil
}
