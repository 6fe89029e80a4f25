//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// ring is a ring buffer, its reader, and the most that waited in it.
type ring struct {
	*ringbuf.Reader // nil until it is open
	name            string
	used            bool // something is put into it
	highWater       atomic.Uint64
}

func (r *ring) open(m *ebpf.Map) (err error) {
	if r.Reader, err = ringbuf.NewReader(m); err != nil {
		return fmt.Errorf("open ring buffer: %w", err)
	}
	return nil
}

// ringbufHeader is what a record takes beside its data: BPF_RINGBUF_HDR_SZ.
const ringbufHeader = 8

// took notes what waited when a record was read: what the reader found behind
// it, which it says with each, and the record itself.
func (r *ring) took(record *ringbuf.Record) {
	const align = 8 // __bpf_ringbuf_reserve rounds up to it
	size := (len(record.RawSample) + align - 1) / align * align
	r.waited(uint64(ringbufHeader + size + record.Remaining))
}

// waited raises the high-water mark to n if it is lower.
func (r *ring) waited(n uint64) {
	for high := r.highWater.Load(); n > high; high = r.highWater.Load() {
		if r.highWater.CompareAndSwap(high, n) {
			return
		}
	}
}

// ringStats returns the numbers of the rings that are used. It looks into them
// as well: a reader that has stopped does not see how they fill.
func (t *Tracer) ringStats() []RingStats {
	t.closing.RLock()
	defer t.closing.RUnlock()
	var stats []RingStats
	for _, r := range t.readers() {
		if !r.used || t.closed {
			continue
		}
		r.waited(uint64(r.AvailableBytes()))
		stats = append(stats, RingStats{r.name, uint64(r.BufferSize()), r.highWater.Load()})
	}
	return stats
}
