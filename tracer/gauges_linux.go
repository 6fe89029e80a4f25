//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Gauges returns how many sockets are in each state, by network namespace, as
// the tracer has counted: those that were there when it began, and all since.
// While sockets move, one may be in two states or in none.
//
// It waits until the sockets that were there have been counted, which takes
// some milliseconds for each network namespace, or until ctx is done. After Detach
// they are those of that moment.
func (t *Tracer) Gauges(ctx context.Context) (*Gauges, error) {
	if err := t.auditor.await(ctx); err != nil {
		return nil, fmt.Errorf("gauges: %w", err)
	}
	if !t.detached.Load() {
		t.sweep() // an orphan may have moved to TIME_WAIT
	}
	g, err := readGauges(t.coll.Maps["gauges"], t.auditor.correction)
	if err != nil {
		return nil, err
	}
	g.MissedNetns = t.auditor.missed
	return g, nil
}

// readGauges returns what the map has, with the corrections, by the cookies of
// namespaces.
func readGauges(m *ebpf.Map, correction func(cookie uint64) correction) (*Gauges, error) {
	g := &Gauges{Time: time.Now().UTC()}
	rows, err := readGaugeRows(m)
	if err != nil {
		return nil, fmt.Errorf("gauges: %w", err)
	}
	dead := superseded(rows)
	for cookie, row := range rows {
		if !dead[cookie] {
			g.Netns = append(g.Netns, NetnsGauges{row.netns, row.states(correction(cookie))})
		}
	}
	slices.SortFunc(g.Netns, func(a, b NetnsGauges) int { return cmp.Compare(a.Netns, b.Netns) })
	return g, nil
}

// gaugeRow is what the kernel side has counted in one network namespace, summed
// over all CPUs.
type gaugeRow struct {
	found         bool   // there is one
	netns         uint32 // inode number; 0 for that of no one namespace
	born          uint64 // when it was first written; 0 if it has not been
	entered, left [numStates]uint64
}

func sumGauges(perCPU []bpfFinwaitGauge) *gaugeRow {
	r := &gaugeRow{found: true}
	for i := range perCPU {
		r.netns = max(r.netns, perCPU[i].Netns) // 0 where a CPU has written nothing
		if born := perCPU[i].BornNs; born != 0 && (r.born == 0 || born < r.born) {
			r.born = born
		}
		for s := range perCPU[i].Entered {
			r.entered[s] += perCPU[i].Entered[s]
			r.left[s] += perCPU[i].Left[s]
		}
	}
	return r
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

// superseded returns the cookies of namespaces that are gone, as a younger one
// shows that has their inode number.
func superseded(rows map[uint64]*gaugeRow) map[uint64]bool {
	dead := map[uint64]bool{}
	youngest := map[uint32]uint64{} // cookies by inode number
	for cookie, row := range rows {
		other, known := youngest[row.netns]
		switch {
		case !known:
			youngest[row.netns] = cookie
		case rows[other].born < row.born:
			youngest[row.netns] = cookie
			dead[other] = true
		default:
			dead[cookie] = true
		}
	}
	return dead
}

func (r *gaugeRow) empty(by correction) bool {
	for s := range by {
		if r.of(State(s), by) != 0 {
			return false
		}
	}
	return true
}

// gaugeRows reads all rows, by the cookies of their namespaces.
func (t *Tracer) gaugeRows() (map[uint64]*gaugeRow, error) {
	return readGaugeRows(t.coll.Maps["gauges"])
}

// gaugeBatch is how many rows are read at a time, into a few pages.
const gaugeBatch = 64

func readGaugeRows(m *ebpf.Map) (map[uint64]*gaugeRow, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("read gauges: %w", err)
	}
	var (
		rows   = map[uint64]*gaugeRow{}
		cursor ebpf.MapBatchCursor
		keys   = make([]uint64, gaugeBatch)
		values = make([]bpfFinwaitGauge, gaugeBatch*cpus)
	)
	for err == nil {
		var n int
		n, err = m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			rows[keys[i]] = sumGauges(values[i*cpus : (i+1)*cpus])
		}
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) { // which says that these were all
		return nil, fmt.Errorf("read gauges: %w", err)
	}
	if others := rows[0]; others != nil {
		others.netns = 0
	}
	return rows, nil
}

// gaugeRow reads the row of one namespace; one that has none has no sockets.
func (t *Tracer) gaugeRow(cookie uint64) (*gaugeRow, error) {
	var perCPU []bpfFinwaitGauge
	err := t.coll.Maps["gauges"].Lookup(cookie, &perCPU)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return &gaugeRow{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read gauges: %w", err)
	}
	return sumGauges(perCPU), nil
}

// netnsCookie returns the cookie of the calling thread's network namespace,
// which unlike its inode number is never used again.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("ask for the network namespace's cookie (SO_NETNS_COOKIE, Linux 5.14): %w", err)
	}
	return cookie, nil
}
