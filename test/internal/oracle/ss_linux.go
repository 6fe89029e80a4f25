package oracle

import (
	"fmt"
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
