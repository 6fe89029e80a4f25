package oracle

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/finwait/finwait/test/internal/netns"
)

// Counters are a file of /proc/net, by group and name: Counters["Tcp"]["CurrEstab"].
type Counters map[string]map[string]int

// Sockstat returns /proc/net/sockstat and sockstat6 of the namespace, such as
// ["TCP"]["tw"] and ["TCP6"]["inuse"]. "orphan", "alloc" and "mem" are the
// whole host's.
func Sockstat(ns *netns.NS) (Counters, error) {
	return readCounters(ns, parseSockstat, "sockstat", "sockstat6")
}

// SNMP returns /proc/net/snmp and netstat of the namespace, such as
// ["Tcp"]["PassiveOpens"] and ["TcpExt"]["TW"].
func SNMP(ns *netns.NS) (Counters, error) {
	return readCounters(ns, parseSNMP, "snmp", "netstat")
}

func readCounters(ns *netns.NS, parse func(Counters, string) error, files ...string) (Counters, error) {
	counters := Counters{}
	for _, file := range files {
		var text []byte
		var err error
		ns.Do(func() { text, err = os.ReadFile("/proc/thread-self/net/" + file) })
		if err != nil {
			return nil, err
		}
		if err := parse(counters, string(text)); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return counters, nil
}

// parseSockstat parses lines such as "TCP: inuse 3 orphan 0 tw 23".
func parseSockstat(into Counters, text string) error {
	for line := range strings.Lines(text) {
		group, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if len(fields)%2 != 0 {
			return fmt.Errorf("line %q: odd number of fields", line)
		}
		names, values := []string{}, []string{}
		for i := 0; i < len(fields); i += 2 {
			names, values = append(names, fields[i]), append(values, fields[i+1])
		}
		if err := into.add(group, names, values); err != nil {
			return fmt.Errorf("line %q: %w", line, err)
		}
	}
	return nil
}

// parseSNMP parses pairs of lines, the first with the names and the second
// with the values.
func parseSNMP(into Counters, text string) error {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines)%2 != 0 {
		return fmt.Errorf("odd number of lines")
	}
	for i := 0; i < len(lines); i += 2 {
		group, names, _ := strings.Cut(lines[i], ":")
		other, values, _ := strings.Cut(lines[i+1], ":")
		if group != other {
			return fmt.Errorf("names of %q before values of %q", group, other)
		}
		if err := into.add(group, strings.Fields(names), strings.Fields(values)); err != nil {
			return fmt.Errorf("group %q: %w", group, err)
		}
	}
	return nil
}

func (c Counters) add(group string, names, values []string) error {
	if len(names) != len(values) {
		return fmt.Errorf("%d names for %d values", len(names), len(values))
	}
	c[group] = map[string]int{}
	for i, name := range names {
		n, err := strconv.Atoi(values[i])
		if err != nil {
			return err
		}
		c[group][name] = n
	}
	return nil
}
