package output

import (
	"strconv"

	"github.com/finwait/finwait/tracer"
)

// field is one field of the records that json, csv and logfmt share. Its name
// and its place among the others are part of what users rely on.
type field struct {
	name string
	kind kind
	// append appends the value, as it was chosen if it is text, and nothing if
	// it is not known. A field that is not known is left out (csv: left empty);
	// it is never written as a zero.
	append appender
}

type appender func(dst []byte, r *record) []byte

// kind is what a value is, and so how a format has to write it.
type kind uint8

const (
	// word needs no escaping in any format.
	word kind = iota
	// number is a JSON number, or true or false. Numbers of 64 bits are words,
	// because JavaScript and jq keep 53 of them; times would need 104 days to
	// get there, and bytes 8 petabytes.
	number
	// text was chosen by somebody else, so that it must be escaped.
	text
	// list is a walk, which is a word but in JSON.
	list
)

// The fields of a transition.
var (
	fieldTime       = &field{"time", word, appendEventTime}
	fieldCookie     = &field{"cookie", word, func(dst []byte, r *record) []byte { return appendNonzero(dst, r.Cookie) }}
	fieldNetns      = &field{"netns", number, func(dst []byte, r *record) []byte { return appendNonzero(dst, uint64(r.Netns)) }}
	fieldFamily     = &field{"family", word, appendFamily}
	fieldLocalAddr  = &field{"local_addr", word, appendLocalAddr}
	fieldLocalPort  = &field{"local_port", number, func(dst []byte, r *record) []byte { return appendNonzero(dst, uint64(r.Local.Port())) }}
	fieldRemoteAddr = &field{"remote_addr", word, appendRemoteAddr}
	fieldRemotePort = &field{"remote_port", number, func(dst []byte, r *record) []byte { return appendNonzero(dst, uint64(r.Remote.Port())) }}
	fieldOldState   = &field{"old_state", word, func(dst []byte, r *record) []byte { return append(dst, r.Old.String()...) }}
	fieldNewState   = &field{"new_state", word, func(dst []byte, r *record) []byte { return append(dst, r.New.String()...) }}
	fieldDwell      = &field{"dwell_ns", number, appendDwell}
	fieldRole       = &field{"role", word, appendRole}
	fieldReason     = &field{"reason", word, func(dst []byte, r *record) []byte { return appendReason(dst, r.Reason) }}
	fieldSide       = &field{"side", word, appendSide}
	fieldSampling   = &field{"sampling_ratio", number, appendSampling}
	fieldEvidence   = &field{"evidence", word, func(dst []byte, r *record) []byte { return append(dst, r.Evidence.String()...) }}
)

// Those of an owner.
var (
	fieldPID         = &field{"pid", number, ofOwner(func(dst []byte, r *record) []byte { return appendNonzero(dst, uint64(r.Owner.PID)) })}
	fieldComm        = &field{"comm", text, ofOwner(func(dst []byte, r *record) []byte { return append(dst, r.Owner.Comm()...) })}
	fieldUID         = &field{"uid", number, ofOwner(func(dst []byte, r *record) []byte { return strconv.AppendUint(dst, uint64(r.Owner.UID), 10) })}
	fieldCgroupID    = &field{"cgroup_id", word, ofOwner(func(dst []byte, r *record) []byte { return appendNonzero(dst, r.Owner.CgroupID) })}
	fieldContainerID = &field{"container_id", text, func(dst []byte, r *record) []byte { return append(dst, r.cgroup.ContainerID...) }}
	fieldPodUID      = &field{"pod_uid", text, func(dst []byte, r *record) []byte { return append(dst, r.cgroup.PodUID...) }}
	fieldOwner       = &field{"owner", word, func(dst []byte, r *record) []byte { return append(dst, r.Owner.Origin.String()...) }}
)

// Those of a connection alone.
var (
	fieldStart            = &field{"start", word, appendStart}
	fieldDuration         = &field{"duration_ns", number, appendConnDuration}
	fieldWalk             = &field{"walk", list, func(dst []byte, r *record) []byte { return appendWalk(dst, r.conn.Walk()) }}
	fieldBytesSent        = &field{"bytes_sent", number, counted(func(c *tracer.Conn) uint64 { return c.BytesSent })}
	fieldBytesReceived    = &field{"bytes_received", number, counted(func(c *tracer.Conn) uint64 { return c.BytesReceived })}
	fieldSegmentsSent     = &field{"segments_sent", number, counted(func(c *tracer.Conn) uint64 { return uint64(c.SegmentsSent) })}
	fieldSegmentsReceived = &field{"segments_received", number, counted(func(c *tracer.Conn) uint64 { return uint64(c.SegmentsReceived) })}
	fieldRetransmits      = &field{"retransmits", number, counted(func(c *tracer.Conn) uint64 { return uint64(c.Retransmits) })}
	fieldSRTT             = &field{"srtt_ns", number, appendSRTT}
	fieldTimeWaitReason   = &field{"time_wait_reason", word, func(dst []byte, r *record) []byte { return appendReason(dst, r.conn.TimeWaitReason) }}
)

// fieldSet is the fields of a line, in their order.
type fieldSet struct {
	before []*field
	// owner has those that the owner alone decides: how they are written is
	// remembered.
	owner []*field
	after []*field
}

// ownerFields are the fields of an owner: the process, then where it runs.
var ownerFields = []*field{fieldPID, fieldComm, fieldUID, fieldCgroupID, fieldContainerID, fieldPodUID, fieldOwner}

// eventFields are the fields of a transition.
var eventFields = fieldSet{
	before: []*field{
		fieldTime, fieldCookie, fieldNetns, fieldFamily, fieldLocalAddr, fieldLocalPort, fieldRemoteAddr, fieldRemotePort,
		fieldOldState, fieldNewState, fieldDwell,
	},
	owner: ownerFields,
	after: []*field{fieldRole, fieldReason, fieldSide, fieldEvidence, fieldSampling},
}

// connFields are those of a connection.
var connFields = fieldSet{
	before: []*field{
		fieldTime, fieldStart, fieldDuration, fieldCookie, fieldNetns, fieldFamily, fieldLocalAddr, fieldLocalPort,
		fieldRemoteAddr, fieldRemotePort,
	},
	owner: ownerFields,
	after: []*field{
		fieldRole, fieldWalk, fieldBytesSent, fieldBytesReceived, fieldSegmentsSent, fieldSegmentsReceived,
		fieldRetransmits, fieldSRTT, fieldReason, fieldSide, fieldTimeWaitReason, fieldSampling,
	},
}

// record is what a line tells: an event with what is known of its owner's
// cgroup. A connection has an event too, with what both have, and so have stuck
// sockets.
type record struct {
	*tracer.Event
	conn     *tracer.Conn
	stuck    *stuckEvent
	cgroup   tracer.Cgroup
	sampling float64

	times, starts clock
}

// connEvent returns what a connection has of an event.
func connEvent(c *tracer.Conn) tracer.Event {
	return tracer.Event{
		Time: c.End, Cookie: c.Cookie, Netns: c.Netns, Family: c.Family, Local: c.Local, Remote: c.Remote,
		Owner: c.Owner, Role: c.Role, Reason: c.Reason, Side: c.Side,
	}
}

// appendNonzero appends a number that is 0 if it is not known.
func appendNonzero(dst []byte, n uint64) []byte {
	if n == 0 {
		return dst
	}
	return strconv.AppendUint(dst, n, 10)
}

func appendEventTime(dst []byte, r *record) []byte {
	if r.Time.IsZero() {
		return dst
	}
	return r.times.append(dst, r.Time)
}

func appendFamily(dst []byte, r *record) []byte {
	if r.Family != tracer.FamilyIPv4 && r.Family != tracer.FamilyIPv6 {
		return dst
	}
	return append(dst, r.Family.String()...)
}

func appendLocalAddr(dst []byte, r *record) []byte {
	if !r.Local.Addr().IsValid() {
		return dst
	}
	return appendAddr(dst, r.Local.Addr())
}

func appendRemoteAddr(dst []byte, r *record) []byte {
	if !hasRemote(r.Event) {
		return dst
	}
	return appendAddr(dst, r.Remote.Addr())
}

func appendDwell(dst []byte, r *record) []byte {
	if !r.DwellKnown {
		return dst
	}
	return strconv.AppendInt(dst, r.Dwell.Nanoseconds(), 10)
}

func appendRole(dst []byte, r *record) []byte {
	if r.Role == tracer.RoleUnknown {
		return dst
	}
	return append(dst, r.Role.String()...)
}

func appendReason(dst []byte, reason tracer.Reason) []byte {
	if reason == tracer.ReasonUnknown {
		return dst
	}
	return append(dst, reason.String()...)
}

func appendSide(dst []byte, r *record) []byte {
	if r.Side == tracer.SideUnknown {
		return dst
	}
	return append(dst, r.Side.String()...)
}

// appendSampling appends nothing where there is a record of every connection.
func appendSampling(dst []byte, r *record) []byte {
	if r.sampling <= 0 || r.sampling >= 1 {
		return dst
	}
	return strconv.AppendFloat(dst, r.sampling, 'g', -1, 64)
}

// ofOwner keeps what value appends to records whose owner is known: of the
// others nothing in the owner is valid.
func ofOwner(value appender) appender {
	return func(dst []byte, r *record) []byte {
		if !hasOwner(r.Event) {
			return dst
		}
		return value(dst, r)
	}
}

func appendStart(dst []byte, r *record) []byte {
	if r.conn.Start.IsZero() {
		return dst
	}
	return r.starts.append(dst, r.conn.Start)
}

func appendConnDuration(dst []byte, r *record) []byte {
	if r.conn.Start.IsZero() {
		return dst
	}
	return strconv.AppendInt(dst, r.conn.End.Sub(r.conn.Start).Nanoseconds(), 10)
}

// counted returns what appends one of the kernel's own numbers of a connection.
func counted(value func(c *tracer.Conn) uint64) appender {
	return func(dst []byte, r *record) []byte {
		if !r.conn.Counted {
			return dst
		}
		return strconv.AppendUint(dst, value(r.conn), 10)
	}
}

func appendSRTT(dst []byte, r *record) []byte {
	if !r.conn.Counted || r.conn.SRTT <= 0 {
		return dst
	}
	return strconv.AppendInt(dst, r.conn.SRTT.Nanoseconds(), 10)
}

// appendWalk appends SYN_SENT:95000;ESTABLISHED:3200000000;LAST_ACK, with the
// dwell in nanoseconds where it is known.
func appendWalk(dst []byte, walk []tracer.Visit) []byte {
	for i, v := range walk {
		if i > 0 {
			dst = append(dst, ';')
		}
		dst = append(dst, v.State.String()...)
		if v.DwellKnown {
			dst = append(dst, ':')
			dst = strconv.AppendInt(dst, v.Dwell.Nanoseconds(), 10)
		}
	}
	return dst
}
