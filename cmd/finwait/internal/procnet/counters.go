package procnet

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Counters are what the kernel has counted, each of which only grows, by name.
// Names are the kernel's: "Tcp.PassiveOpens", "TcpExt.ListenOverflows". One that
// this kernel does not have is absent.
type Counters map[string]uint64

// notCounters are what the kernel lists with the counters of Tcp and is none:
// constants, MaxConn of which is -1, and the sockets that are established now
// (RFC 4022).
var notCounters = map[string]bool{
	"Tcp.RtoAlgorithm": true,
	"Tcp.RtoMin":       true,
	"Tcp.RtoMax":       true,
	"Tcp.MaxConn":      true,
	"Tcp.CurrEstab":    true,
}

// ReadCounters reads the groups Tcp and TcpExt of the calling thread's network
// namespace, since the namespace was made, without what does not count: RtoMin
// and the like, and CurrEstab, which falls too.
//
// The kernel sums them over the CPUs one after the other, so two of them may be
// apart by what happened meanwhile.
func ReadCounters() (Counters, error) {
	c := Counters{}
	for _, part := range []struct{ file, group string }{{"snmp", "Tcp"}, {"netstat", "TcpExt"}} {
		text, err := os.ReadFile(threadNet + part.file)
		if err != nil {
			return nil, fmt.Errorf("read the kernel's counters: %w", err)
		}
		if err := c.addGroup(string(text), part.group); err != nil {
			return nil, fmt.Errorf("read %s: %w", threadNet+part.file, err)
		}
	}
	return c, nil
}

// Sub returns by how much each counter has grown since earlier was read, in the
// same namespace. One that earlier does not have is absent, and so is one that
// was greater then, as when they are another namespace's.
func (c Counters) Sub(earlier Counters) Counters {
	grown := Counters{}
	for name, now := range c {
		if before, known := earlier[name]; known && before <= now {
			grown[name] = now - before
		}
	}
	return grown
}

// addGroup adds a group's counters. Two lines begin with its name: that of the
// names, and that of the values.
func (c Counters) addGroup(text, group string) error {
	var names []string
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(line, group+":")
		switch {
		case !found:
		case names == nil:
			names = strings.Fields(rest)
		default:
			return c.addValues(group, names, strings.Fields(rest))
		}
	}
	return fmt.Errorf("no values of %s", group)
}

func (c Counters) addValues(group string, names, values []string) error {
	if len(names) != len(values) {
		return fmt.Errorf("%s has %d names and %d values", group, len(names), len(values))
	}
	for i, name := range names {
		name = group + "." + name
		if notCounters[name] {
			continue
		}
		n, err := strconv.ParseUint(values[i], 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c[name] = n
	}
	return nil
}
