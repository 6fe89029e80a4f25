//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"context"
	"iter"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
)

// defaultConnBuffer is the size of the ring buffer of connections, if asked for.
const defaultConnBuffer = 4 << 20

// Conns yields the connections that pass the filter and Options.Conns, when
// they have ended. Without Options.Conns there are none.
//
// It is like [Tracer.Events] in everything else, and may run beside it. A
// connection that ends in TIME_WAIT is told when that has ended, a minute after
// its last segment, unless ConnOptions.AtTimeWait asks for less.
func (t *Tracer) Conns(ctx context.Context) iter.Seq2[*Conn, error] {
	return stream(ctx, t, t.conns, decodeConn)
}

// decodeConn sets c to what a record of the ring buffer says. It reports
// false, and leaves c as it is, for a record that is not a connection.
func decodeConn(c *Conn, record []byte, clock *clock) bool {
	if len(record) < int(unsafe.Sizeof(bpfFinwaitConn{})) {
		return false
	}
	var raw bpfFinwaitConn // see decodeEvent
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), unsafe.Sizeof(raw)), record)
	*c = Conn{
		End:              clock.wall(raw.EndNs),
		Cookie:           raw.Cookie,
		Netns:            raw.Tuple.Netns,
		Family:           Family(raw.Family),
		Local:            addrPort(raw.Tuple.Laddr, raw.Tuple.Lport),
		Remote:           addrPort(raw.Tuple.Raddr, raw.Tuple.Rport),
		Owner:            decodeOwner(&raw.Who),
		Role:             Role(raw.Who.Role),
		Counted:          raw.Counted != 0,
		BytesSent:        raw.BytesSent,
		BytesReceived:    raw.BytesReceived,
		SegmentsSent:     raw.SegmentsSent,
		SegmentsReceived: raw.SegmentsReceived,
		Retransmits:      raw.Retransmits,
		SRTT:             time.Duration(raw.SrttUs) * time.Microsecond,
		Reason:           Reason(raw.Reason),
		TimeWaitReason:   Reason(raw.TimeWaitReason),
		Side:             Side(raw.Side),
	}
	if raw.Walk.StartNs != 0 {
		c.Start = clock.wall(raw.Walk.StartNs)
	}
	for _, s := range walkOrder {
		if raw.Walk.Visited>>s&1 == 0 {
			continue
		}
		c.visits[c.visited] = Visit{s, time.Duration(raw.Walk.DwellNs[s]), raw.Walk.Known>>s&1 != 0}
		c.visited++
	}
	return true
}

// size sets the sizes of what bpf/record.h needs, of which there is next
// to nothing if nobody wants connections.
func (o *ConnOptions) size(spec *ebpf.CollectionSpec) {
	if o == nil {
		return
	}
	spec.Maps["ended"].MaxEntries = defaultConnBuffer
	if o.Buffer > 0 {
		spec.Maps["ended"].MaxEntries = uint32(o.Buffer)
	}
	spec.Maps["records"].MaxEntries = spec.Maps["minis"].MaxEntries
}
