//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Gauges returns how many sockets are in each state, by network namespace, as
// the tracer has counted: those that were there when it began, and all since.
// While sockets move, one may be in two states or in none.
//
// It waits until the sockets that were there have been counted, which takes
// some milliseconds for each network namespace, or until ctx is done. It must
// not be called after Detach.
func (t *Tracer) Gauges(ctx context.Context) (*Gauges, error) {
	if err := t.auditor.await(ctx); err != nil {
		return nil, fmt.Errorf("gauges: %w", err)
	}
	t.sweep() // an orphan may have moved to TIME_WAIT
	g := &Gauges{Time: time.Now().UTC()}
	rows, err := t.gaugeRows()
	if err != nil {
		return nil, fmt.Errorf("gauges: %w", err)
	}
	for netns, row := range rows {
		g.Netns = append(g.Netns, NetnsGauges{netns, row.states(t.auditor.correction(netns))})
	}
	slices.SortFunc(g.Netns, func(a, b NetnsGauges) int { return cmp.Compare(a.Netns, b.Netns) })
	return g, nil
}

// gaugeRow is what the kernel side has counted in one network namespace. An
// inode number that was used twice has two keys.
type gaugeRow struct {
	keys          []uint64
	entered, left [numStates]uint64
}

func (r *gaugeRow) add(perCPU []bpfFinwaitGauge) {
	for i := range perCPU {
		for s := range perCPU[i].Entered {
			r.entered[s] += perCPU[i].Entered[s]
			r.left[s] += perCPU[i].Left[s]
		}
	}
}

// correction is what audits have found to be missing, or too much.
type correction [numStates]int64

// states returns how many are in each state. A socket that is moving may be
// out of one and not yet in another: there is no less than none.
func (r *gaugeRow) states(by correction) (c StateCounts) {
	for s := range c {
		c[s] = uint64(max(0, r.of(State(s), by)))
	}
	return c
}

func (r *gaugeRow) of(s State, by correction) int64 {
	return int64(r.entered[s]-r.left[s]) + by[s]
}

// gaugeRows reads all rows, by the inode numbers of their namespaces.
func (t *Tracer) gaugeRows() (map[uint32]*gaugeRow, error) {
	rows := map[uint32]*gaugeRow{}
	var (
		key    uint64
		perCPU []bpfFinwaitGauge
	)
	all := t.coll.Maps["gauges"].Iterate()
	for all.Next(&key, &perCPU) {
		netns := netnsOf(key, perCPU)
		row := rows[netns]
		if row == nil {
			row = &gaugeRow{}
			rows[netns] = row
		}
		row.keys = append(row.keys, key)
		row.add(perCPU)
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read gauges: %w", err)
	}
	return rows, nil
}

// gaugeRow reads the row with those keys anew.
func (t *Tracer) gaugeRow(keys []uint64) (*gaugeRow, error) {
	row := &gaugeRow{keys: keys}
	for _, key := range keys {
		var perCPU []bpfFinwaitGauge
		if err := t.coll.Maps["gauges"].Lookup(key, &perCPU); err != nil {
			return nil, fmt.Errorf("read gauges: %w", err)
		}
		row.add(perCPU)
	}
	return row, nil
}

// netnsOf returns the inode number that stands in the rows of those CPUs that
// have written any; that of key 0 is of no one namespace.
func netnsOf(key uint64, perCPU []bpfFinwaitGauge) uint32 {
	if key == 0 {
		return 0
	}
	for i := range perCPU {
		if perCPU[i].Netns != 0 {
			return perCPU[i].Netns
		}
	}
	return 0
}
