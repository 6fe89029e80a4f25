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

	numFields
)

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
}

// record is an event with what is known of its owner's cgroup.
type record struct {
	*tracer.Event
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
	}
	return true
}

// number says whether the field is a JSON number. Those of 64 bits are
// strings, because JavaScript and jq keep 53 of them; dwell_ns would need 104
// days to get there.
func (f field) number() bool {
	switch f {
	case fieldNetns, fieldLocalPort, fieldRemotePort, fieldDwell, fieldPID, fieldUID:
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
	return append(dst, f.word(ev)...)
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
