package metrics

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/finwait/finwait/tracer"
)

// maxCgroups is how many cgroups have series of their own.
const maxCgroups = 50

// unknown is the label of the sockets of no cgroup that is known. Paths begin with
// a slash.
const unknown = "unknown"

// cgroups is the breakdown by cgroup of the process that has the socket open.
type cgroups struct {
	census  census
	pathOf  func(pid uint32) string // "" if it is not known
	members members
	sums    map[string]*tracer.StateCounts // of the last census, by label
}

func newCgroups() *cgroups {
	return &cgroups{census: newCensus(tracer.ByProcess), pathOf: cgroupOf, members: members{limit: maxCgroups, in: map[string]bool{}}}
}

func (c *cgroups) collect(ctx context.Context, ch chan<- prometheus.Metric) error {
	census, isNew, err := c.census.read(ctx)
	if err != nil {
		return err
	}
	if isNew {
		c.sums = c.sum(census)
	}
	for _, label := range slices.Sorted(maps.Keys(c.sums)) {
		collectStates(ch, cgroupSocketsDesc, c.sums[label], label)
		if container, pod := tracer.ParseCgroupPath(label); container != "" || pod != "" {
			ch <- gauge(cgroupInfoDesc, 1, label, container, pod)
		}
	}
	c.census.collect(ch)
	return nil
}

// sum returns the sockets of each cgroup that has a series of its own, and of the
// others.
func (c *cgroups) sum(census *tracer.Census) map[string]*tracer.StateCounts {
	all := map[string]*tracer.StateCounts{unknown: {}}
	for i := range census.Groups {
		g := &census.Groups[i]
		label := c.label(g.PID)
		if all[label] == nil {
			all[label] = &tracer.StateCounts{}
		}
		addCounts(all[label], &g.States)
	}
	sizes := map[string]uint64{}
	for label, counts := range all {
		sizes[label] = counts.Total()
	}
	delete(sizes, unknown)
	c.members.update(sizes)

	sums := map[string]*tracer.StateCounts{unknown: all[unknown], other: {}}
	for label := range sizes {
		if c.members.in[label] {
			sums[label] = all[label]
		} else {
			addCounts(sums[other], all[label])
		}
	}
	return sums
}

// label returns the path of the cgroup that a process is in. Whoever made the
// cgroup chose its name, which may hold any byte: what is no text, or would do
// something to a terminal, has one sign for all of it, and cgroups that differ in
// nothing else are one here.
func (c *cgroups) label(pid uint32) string {
	if pid == 0 {
		return unknown
	}
	if path := c.pathOf(pid); path != "" {
		return strings.Map(printable, path)
	}
	return unknown
}

func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}

// cgroupOf returns the path of the version 2 cgroup of a process, or "".
func cgroupOf(pid uint32) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "" // it has ended since
	}
	return parseCgroup(text)
}

// outOf returns a path without what leads out of the cgroup namespace of this process,
// which is how the kernel shows cgroups that are not below its root: what stands before
// the rest there is not known.
func outOf(path string) string {
	for strings.HasPrefix(path, "/../") {
		path = path[len("/.."):]
	}
	return path
}

// parseCgroup returns the path of the version 2 cgroup in what /proc/PID/cgroup
// says, or "". The kernel lets no newline into the name of a cgroup.
func parseCgroup(text []byte) string {
	for line := range bytes.Lines(text) {
		if path, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("0::")); ok && bytes.HasPrefix(path, []byte("/")) {
			return outOf(string(bytes.TrimSuffix(path, []byte(" (deleted)"))))
		}
	}
	return ""
}

// members are the cgroups that have series of their own. Which these are changes
// seldom, so that few series end and begin: one stays as long as it has sockets,
// unless one that is more than twice as large takes its place.
type members struct {
	limit int
	in    map[string]bool
}

// update chooses the members anew, by how many sockets each cgroup has.
func (m *members) update(sizes map[string]uint64) {
	maps.DeleteFunc(m.in, func(name string, _ bool) bool { return sizes[name] == 0 })
	bySize := func(a, b string) int { return cmp.Or(cmp.Compare(sizes[b], sizes[a]), cmp.Compare(a, b)) }
	inside := slices.SortedFunc(maps.Keys(m.in), bySize)
	for _, name := range slices.SortedFunc(maps.Keys(sizes), bySize) {
		switch {
		case m.in[name] || sizes[name] == 0:
			continue
		case len(m.in) < m.limit:
		case len(inside) > 0 && sizes[name] > 2*sizes[inside[len(inside)-1]]:
			delete(m.in, inside[len(inside)-1])
			inside = inside[:len(inside)-1]
		default:
			return
		}
		m.in[name] = true
	}
}
