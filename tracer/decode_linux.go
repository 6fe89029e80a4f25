//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"net/netip"
	"time"
	"unsafe"
)

// decodeEvent sets e to what a record of the ring buffer says. It reports
// false, and leaves e as it is, for a record that is not an event.
func decodeEvent(e *Event, record []byte, clock *clock) bool {
	if len(record) < int(unsafe.Sizeof(bpfFinwaitEvent{})) {
		return false
	}
	// The struct is generated from the one that the program writes. A slice
	// of bytes need not be aligned to it; the ring buffer's is, but Go's
	// rules ask for a copy.
	var raw bpfFinwaitEvent
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), unsafe.Sizeof(raw)), record)
	transition := Transition{State(raw.OldState), State(raw.NewState)}
	if !transition.Old.valid() || !transition.New.valid() {
		return false
	}
	*e = Event{
		Time:       clock.wall(raw.TimeNs),
		Transition: transition,
		Dwell:      time.Duration(raw.DwellNs),
		DwellKnown: raw.Flags&uint8(bpfFinwaitEventFlagsEVENT_DWELL_KNOWN) != 0,
		Cookie:     raw.Cookie,
		Netns:      raw.Tuple.Netns,
		Family:     Family(raw.Family),
		Local:      addrPort(raw.Tuple.Laddr, raw.Tuple.Lport),
		Remote:     addrPort(raw.Tuple.Raddr, raw.Tuple.Rport),
		Owner:      decodeOwner(&raw.Who),
		Role:       Role(raw.Who.Role),
		Evidence:   Evidence(raw.Evidence),
		Reason:     Reason(raw.Reason),
		Side:       Side(raw.Side),
	}
	return true
}

// addrPort takes IPv4 out of the IPv6 in which the kernel side has it.
func addrPort(addr [16]byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), port)
}

func decodeOwner(who *bpfFinwaitWho) Owner {
	return Owner{
		Origin:   Origin(who.Origin),
		PID:      who.Pid,
		UID:      who.Uid,
		CgroupID: who.CgroupId,
		comm:     who.Comm,
	}
}
