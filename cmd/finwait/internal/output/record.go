package output

import (
	"strconv"

	"github.com/finwait/finwait/tracer"
)

// field is one field of the record that json, csv and logfmt share. The order
// and the names are part of what users rely on.
type field uint8

const (
	fieldTime field = iota
	fieldCookie
	fieldNetns
	fieldFamily
	fieldLocalAddr
	fieldLocalPort
	fieldRemoteAddr
	fieldRemotePort
	fieldOldState
	fieldNewState
	fieldDwell
	fieldPID
	fieldComm
	fieldUID
	fieldCgroupID
	fieldContainerID
	fieldPodUID
	fieldOwner
	fieldRole
	fieldReason
	fieldSide
	fieldEvidence
	fieldStart
	fieldDuration
	fieldWalk
	fieldBytesSent
	fieldBytesReceived
	fieldSegmentsSent
	fieldSegmentsReceived
	fieldRetransmits
	fieldSRTT
	fieldTimeWaitReason

	numFields
)

// eventFields are the fields of a transition, in their order.
var eventFields = []field{
	fieldTime, fieldCookie, fieldNetns, fieldFamily, fieldLocalAddr, fieldLocalPort, fieldRemoteAddr, fieldRemotePort,
	fieldOldState, fieldNewState, fieldDwell, fieldPID, fieldComm, fieldUID, fieldCgroupID, fieldContainerID, fieldPodUID,
	fieldOwner, fieldRole, fieldReason, fieldSide, fieldEvidence,
}

// connFields are those of a connection.
var connFields = []field{
	fieldTime, fieldStart, fieldDuration, fieldCookie, fieldNetns, fieldFamily, fieldLocalAddr, fieldLocalPort,
	fieldRemoteAddr, fieldRemotePort, fieldPID, fieldComm, fieldUID, fieldCgroupID, fieldContainerID, fieldPodUID,
	fieldOwner, fieldRole, fieldWalk, fieldBytesSent, fieldBytesReceived, fieldSegmentsSent, fieldSegmentsReceived,
	fieldRetransmits, fieldSRTT, fieldReason, fieldSide, fieldTimeWaitReason,
}

var fieldNames = [numFields]string{
	fieldTime:        "time",
	fieldCookie:      "cookie",
	fieldNetns:       "netns",
	fieldFamily:      "family",
	fieldLocalAddr:   "local_addr",
	fieldLocalPort:   "local_port",
	fieldRemoteAddr:  "remote_addr",
	fieldRemotePort:  "remote_port",
	fieldOldState:    "old_state",
	fieldNewState:    "new_state",
	fieldDwell:       "dwell_ns",
	fieldPID:         "pid",
	fieldComm:        "comm",
	fieldUID:         "uid",
	fieldCgroupID:    "cgroup_id",
	fieldContainerID: "container_id",
	fieldPodUID:      "pod_uid",
	fieldOwner:       "owner",
	fieldRole:        "role",
	fieldReason:      "reason",
	fieldSide:        "side",
	fieldEvidence:    "evidence",

	fieldStart:            "start",
	fieldDuration:         "duration_ns",
	fieldWalk:             "walk",
	fieldBytesSent:        "bytes_sent",
	fieldBytesReceived:    "bytes_received",
	fieldSegmentsSent:     "segments_sent",
	fieldSegmentsReceived: "segments_received",
	fieldRetransmits:      "retransmits",
	fieldSRTT:             "srtt_ns",
	fieldTimeWaitReason:   "time_wait_reason",
}

// record is an event with what is known of its owner's cgroup, or a connection
// and an event that has what both have.
type record struct {
	*tracer.Event
	conn   *tracer.Conn
	cgroup tracer.Cgroup
}

// cgroupLookup is Options.Cgroup.
type cgroupLookup func(id uint64) (tracer.Cgroup, bool)

// record returns the record of ev.
func (lookup cgroupLookup) record(ev *tracer.Event) record {
	r := record{Event: ev}
	if lookup != nil && fieldCgroupID.known(&r) {
		r.cgroup, _ = lookup(ev.Owner.CgroupID)
	}
	return r
}

// conn returns the record of c; ev is a place for what a connection has of an
// event.
func (lookup cgroupLookup) conn(c *tracer.Conn, ev *tracer.Event) record {
	*ev = tracer.Event{
		Time: c.End, Cookie: c.Cookie, Netns: c.Netns, Family: c.Family, Local: c.Local, Remote: c.Remote,
		Owner: c.Owner, Role: c.Role, Reason: c.Reason, Side: c.Side,
	}
	r := lookup.record(ev)
	r.conn = c
	return r
}

// known says whether ev tells the field. A field that it does not tell is left
// out (csv: left empty); it is never written as a zero.
func (f field) known(ev *record) bool {
	switch f {
	case fieldTime:
		return !ev.Time.IsZero()
	case fieldCookie:
		return ev.Cookie != 0
	case fieldNetns:
		return ev.Netns != 0
	case fieldFamily:
		return hasFamily(ev.Event)
	case fieldLocalAddr:
		return ev.Local.Addr().IsValid()
	case fieldLocalPort:
		return ev.Local.Port() != 0
	case fieldRemoteAddr:
		return hasRemote(ev.Event)
	case fieldRemotePort:
		return ev.Remote.Port() != 0
	case fieldDwell:
		return ev.DwellKnown
	case fieldPID:
		return hasOwner(ev.Event) && ev.Owner.PID != 0
	case fieldComm:
		return hasOwner(ev.Event) && len(ev.Owner.Comm()) != 0
	case fieldUID:
		return hasOwner(ev.Event)
	case fieldCgroupID:
		return hasOwner(ev.Event) && ev.Owner.CgroupID != 0
	case fieldContainerID:
		return ev.cgroup.ContainerID != ""
	case fieldPodUID:
		return ev.cgroup.PodUID != ""
	case fieldRole:
		return ev.Role != tracer.RoleUnknown
	case fieldReason:
		return ev.Reason != tracer.ReasonUnknown
	case fieldSide:
		return ev.Side != tracer.SideUnknown
	case fieldStart, fieldDuration:
		return !ev.conn.Start.IsZero()
	case fieldWalk:
		return len(ev.conn.Walk()) > 0
	case fieldBytesSent, fieldBytesReceived, fieldSegmentsSent, fieldSegmentsReceived, fieldRetransmits:
		return ev.conn.Counted
	case fieldSRTT:
		return ev.conn.Counted && ev.conn.SRTT > 0
	case fieldTimeWaitReason:
		return ev.conn.TimeWaitReason != tracer.ReasonUnknown
	}
	return true
}

// number says whether the field is a JSON number. Those of 64 bits are
// strings, because JavaScript and jq keep 53 of them; times would need 104 days
// to get there, and bytes 8 petabytes.
func (f field) number() bool {
	switch f {
	case fieldNetns, fieldLocalPort, fieldRemotePort, fieldDwell, fieldPID, fieldUID,
		fieldDuration, fieldBytesSent, fieldBytesReceived, fieldSegmentsSent, fieldSegmentsReceived, fieldRetransmits, fieldSRTT:
		return true
	}
	return false
}

// text says whether somebody else chose the field's value, so that it must be
// escaped.
func (f field) text() bool {
	switch f {
	case fieldComm, fieldContainerID, fieldPodUID:
		return true
	}
	return false
}

// textRoom is the longest text of a record: the name of a cgroup.
const textRoom = 255

// append appends the field's value. It needs no escaping in any format, unless
// it is text, which is appended as it was chosen.
func (f field) append(dst []byte, ev *record) []byte {
	switch f {
	case fieldTime:
		return appendTime(dst, ev.Time)
	case fieldCookie:
		return strconv.AppendUint(dst, ev.Cookie, 10)
	case fieldNetns:
		return strconv.AppendUint(dst, uint64(ev.Netns), 10)
	case fieldLocalAddr:
		return appendAddr(dst, ev.Local.Addr())
	case fieldLocalPort:
		return strconv.AppendUint(dst, uint64(ev.Local.Port()), 10)
	case fieldRemoteAddr:
		return appendAddr(dst, ev.Remote.Addr())
	case fieldRemotePort:
		return strconv.AppendUint(dst, uint64(ev.Remote.Port()), 10)
	case fieldDwell:
		return strconv.AppendInt(dst, ev.Dwell.Nanoseconds(), 10)
	case fieldPID:
		return strconv.AppendUint(dst, uint64(ev.Owner.PID), 10)
	case fieldComm:
		return append(dst, ev.Owner.Comm()...)
	case fieldUID:
		return strconv.AppendUint(dst, uint64(ev.Owner.UID), 10)
	case fieldCgroupID:
		return strconv.AppendUint(dst, ev.Owner.CgroupID, 10)
	case fieldContainerID:
		return append(dst, ev.cgroup.ContainerID...)
	case fieldPodUID:
		return append(dst, ev.cgroup.PodUID...)
	}
	if ev.conn != nil {
		return f.appendConn(dst, ev)
	}
	return append(dst, f.word(ev)...)
}

// appendConn is append for the fields of a connection alone.
func (f field) appendConn(dst []byte, r *record) []byte {
	c := r.conn
	switch f {
	case fieldStart:
		return appendTime(dst, c.Start)
	case fieldDuration:
		return strconv.AppendInt(dst, c.End.Sub(c.Start).Nanoseconds(), 10)
	case fieldWalk:
		return appendWalk(dst, c.Walk())
	case fieldBytesSent:
		return strconv.AppendUint(dst, c.BytesSent, 10)
	case fieldBytesReceived:
		return strconv.AppendUint(dst, c.BytesReceived, 10)
	case fieldSegmentsSent:
		return strconv.AppendUint(dst, uint64(c.SegmentsSent), 10)
	case fieldSegmentsReceived:
		return strconv.AppendUint(dst, uint64(c.SegmentsReceived), 10)
	case fieldRetransmits:
		return strconv.AppendUint(dst, uint64(c.Retransmits), 10)
	case fieldSRTT:
		return strconv.AppendInt(dst, c.SRTT.Nanoseconds(), 10)
	case fieldTimeWaitReason:
		return append(dst, c.TimeWaitReason.String()...)
	}
	return append(dst, f.word(r)...)
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

// word returns the value of a field that is one of a few fixed words.
func (f field) word(ev *record) string {
	switch f {
	case fieldFamily:
		return ev.Family.String()
	case fieldOldState:
		return ev.Old.String()
	case fieldNewState:
		return ev.New.String()
	case fieldOwner:
		return ev.Owner.Origin.String()
	case fieldRole:
		return ev.Role.String()
	case fieldReason:
		return ev.Reason.String()
	case fieldSide:
		return ev.Side.String()
	case fieldEvidence:
		return ev.Evidence.String()
	}
	return ""
}
