package otlp

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"

	"github.com/finwait/finwait/tracer"
)

// The names of what records are.
const (
	eventTransition = "finwait.transition"
	eventConnection = "finwait.connection"
)

// Attributes are the attributes of log records, in the order in which they come.
// Those that OpenTelemetry has a convention for have its names; finwait's own are
// named as the fields of the JSON record, and hold the same. What is not known
// is absent.
//
// The time of a record is that of the transition, or of the connection's end; its
// start is finwait.duration_ns before. The body is a few words for people.
//
//   - network.type is what the packets are, and finwait.family what the socket is,
//     which differ where an IPv6 socket carries IPv4;
//   - network.connection.state is the new state, in OpenTelemetry's words, which
//     do not tell a half-open connection from SYN_RECV; finwait.new_state does.
//     A connection has none: it is over;
//   - process.pid is in the initial PID namespace, process.real_user.id is the
//     process's real user id;
//   - finwait.comm is the name that the process has given its main thread. That is
//     not its executable's, nor the command it was started by, and so it is not in
//     process.executable.name or process.command. It may hold any character but
//     NUL; bytes that are not UTF-8 have become U+FFFD;
//   - finwait.walk is the states of a connection, with the nanoseconds in each
//     where they are known: SYN_SENT:95000;ESTABLISHED:3200000000;LAST_ACK;
//   - finwait.sampling_ratio is the share of connections of which anything is
//     told, if it is not all.
var Attributes = []string{
	"network.transport", "network.type", "network.local.address", "network.local.port",
	"network.peer.address", "network.peer.port", "network.connection.state",
	"process.pid", "process.real_user.id", "container.id", "k8s.pod.uid",
	"finwait.cookie", "finwait.netns", "finwait.family", "finwait.old_state", "finwait.new_state", "finwait.dwell_ns",
	"finwait.duration_ns", "finwait.walk", "finwait.bytes_sent", "finwait.bytes_received", "finwait.segments_sent",
	"finwait.segments_received", "finwait.retransmits", "finwait.srtt_ns",
	"finwait.comm", "finwait.cgroup_id", "finwait.owner", "finwait.role", "finwait.reason", "finwait.side",
	"finwait.time_wait_reason", "finwait.evidence", "finwait.sampling_ratio",
}

// stateNames are the states in the words of network.connection.state.
var stateNames = map[tracer.State]string{
	tracer.StateEstablished: "established",
	tracer.StateSynSent:     "syn_sent",
	tracer.StateSynRecv:     "syn_received",
	tracer.StateNewSynRecv:  "syn_received",
	tracer.StateFinWait1:    "fin_wait_1",
	tracer.StateFinWait2:    "fin_wait_2",
	tracer.StateTimeWait:    "time_wait",
	tracer.StateClose:       "closed",
	tracer.StateCloseWait:   "close_wait",
	tracer.StateLastAck:     "last_ack",
	tracer.StateListen:      "listen",
	tracer.StateClosing:     "closing",
}

// orderly are the reasons for which sockets end when all goes well. Records with
// another are of severity WARN, all others INFO.
var orderly = []tracer.Reason{
	tracer.ReasonUnknown, tracer.ReasonFIN, tracer.ReasonClosed, tracer.ReasonExpired, tracer.ReasonReused, tracer.ReasonNetnsGone,
}

// encoder makes log records.
type encoder struct {
	cgroup   func(id uint64) (tracer.Cgroup, bool) // nil if there is none
	sampling float64                               // 1 if everything is told
	bodies   map[tracer.Transition]string
}

func newEncoder(cgroup func(id uint64) (tracer.Cgroup, bool)) *encoder {
	e := &encoder{cgroup: cgroup, sampling: 1, bodies: map[tracer.Transition]string{}}
	for _, t := range tracer.LegalTransitions() {
		e.bodies[t] = t.String()
	}
	return e
}

// transition writes ev into r, which is new.
func (e *encoder) transition(r plog.LogRecord, ev *tracer.Event, observed pcommon.Timestamp) {
	begin(r, eventTransition, ev.Time, observed, ev.Reason)
	body, ok := e.bodies[ev.Transition]
	if !ok {
		body = ev.String()
	}
	r.Body().SetStr(body)
	m := r.Attributes()
	m.EnsureCapacity(24)
	putSocket(m, ev.Family, ev.Local, ev.Remote)
	if name, ok := stateNames[ev.New]; ok {
		m.PutStr("network.connection.state", name)
	}
	e.putProcess(m, &ev.Owner)
	putIDs(m, ev.Cookie, ev.Netns, ev.Family)
	m.PutStr("finwait.old_state", ev.Old.String())
	m.PutStr("finwait.new_state", ev.New.String())
	if ev.DwellKnown {
		m.PutInt("finwait.dwell_ns", ev.Dwell.Nanoseconds())
	}
	putOwner(m, &ev.Owner)
	putEnd(m, ev.Role, ev.Reason, ev.Side)
	m.PutStr("finwait.evidence", ev.Evidence.String())
	e.putSampling(m)
}

// conn writes c into r, which is new.
func (e *encoder) conn(r plog.LogRecord, c *tracer.Conn, observed pcommon.Timestamp) {
	begin(r, eventConnection, c.End, observed, c.Reason)
	if c.Reason == tracer.ReasonUnknown {
		r.Body().SetStr("connection ended")
	} else {
		r.Body().SetStr("connection ended: " + c.Reason.String())
	}
	m := r.Attributes()
	m.EnsureCapacity(32)
	putSocket(m, c.Family, c.Local, c.Remote)
	e.putProcess(m, &c.Owner)
	putIDs(m, c.Cookie, c.Netns, c.Family)
	if !c.Start.IsZero() {
		m.PutInt("finwait.duration_ns", c.End.Sub(c.Start).Nanoseconds())
	}
	if len(c.Walk()) > 0 {
		m.PutStr("finwait.walk", walk(c.Walk()))
	}
	if c.Counted {
		putCounts(m, c)
	}
	putOwner(m, &c.Owner)
	putEnd(m, c.Role, c.Reason, c.Side)
	if c.TimeWaitReason != tracer.ReasonUnknown {
		m.PutStr("finwait.time_wait_reason", c.TimeWaitReason.String())
	}
	e.putSampling(m)
}

// begin writes what all records have.
func begin(r plog.LogRecord, name string, at time.Time, observed pcommon.Timestamp, reason tracer.Reason) {
	r.SetEventName(name)
	if !at.IsZero() {
		r.SetTimestamp(pcommon.NewTimestampFromTime(at))
	}
	r.SetObservedTimestamp(observed)
	if slices.Contains(orderly, reason) {
		r.SetSeverityNumber(plog.SeverityNumberInfo)
		r.SetSeverityText("INFO")
	} else {
		r.SetSeverityNumber(plog.SeverityNumberWarn)
		r.SetSeverityText("WARN")
	}
}

func putSocket(m pcommon.Map, family tracer.Family, local, remote netip.AddrPort) {
	m.PutStr("network.transport", "tcp")
	if kind := networkType(family, local.Addr()); kind != "" {
		m.PutStr("network.type", kind)
	}
	putPlace(m, "network.local.address", "network.local.port", local, local.Addr().IsValid())
	putPlace(m, "network.peer.address", "network.peer.port", remote, remote.Addr().IsValid() && !remote.Addr().IsUnspecified())
}

// networkType returns what the packets are: the addresses tell, of an IPv6 socket
// that carries IPv4.
func networkType(family tracer.Family, local netip.Addr) string {
	switch {
	case local.Is4(), local.Is4In6():
		return "ipv4"
	case local.Is6():
		return "ipv6"
	case family == tracer.FamilyIPv4, family == tracer.FamilyIPv6:
		return family.String()
	}
	return ""
}

// putPlace leaves a zone out: it is a name that somebody chose.
func putPlace(m pcommon.Map, address, port string, at netip.AddrPort, known bool) {
	if known {
		m.PutStr(address, at.Addr().WithZone("").String())
	}
	if at.Port() != 0 {
		m.PutInt(port, int64(at.Port()))
	}
}

// putProcess writes what there is a convention for, of an owner.
func (e *encoder) putProcess(m pcommon.Map, o *tracer.Owner) {
	if o.Origin == tracer.OriginUnknown {
		return
	}
	if o.PID != 0 {
		m.PutInt("process.pid", int64(o.PID))
	}
	m.PutInt("process.real_user.id", int64(o.UID))
	if e.cgroup == nil || o.CgroupID == 0 {
		return
	}
	cgroup, _ := e.cgroup(o.CgroupID)
	if cgroup.ContainerID != "" {
		m.PutStr("container.id", utf8Of(cgroup.ContainerID))
	}
	if cgroup.PodUID != "" {
		m.PutStr("k8s.pod.uid", utf8Of(cgroup.PodUID))
	}
}

func putIDs(m pcommon.Map, cookie uint64, netns uint32, family tracer.Family) {
	if cookie != 0 {
		m.PutStr("finwait.cookie", strconv.FormatUint(cookie, 10))
	}
	if netns != 0 {
		m.PutInt("finwait.netns", int64(netns))
	}
	if family == tracer.FamilyIPv4 || family == tracer.FamilyIPv6 {
		m.PutStr("finwait.family", family.String())
	}
}

func putCounts(m pcommon.Map, c *tracer.Conn) {
	m.PutInt("finwait.bytes_sent", int64(c.BytesSent))
	m.PutInt("finwait.bytes_received", int64(c.BytesReceived))
	m.PutInt("finwait.segments_sent", int64(c.SegmentsSent))
	m.PutInt("finwait.segments_received", int64(c.SegmentsReceived))
	m.PutInt("finwait.retransmits", int64(c.Retransmits))
	if c.SRTT > 0 {
		m.PutInt("finwait.srtt_ns", c.SRTT.Nanoseconds())
	}
}

// putOwner writes what there is no convention for, of an owner.
func putOwner(m pcommon.Map, o *tracer.Owner) {
	if o.Origin != tracer.OriginUnknown {
		if comm := o.Comm(); len(comm) > 0 {
			m.PutStr("finwait.comm", utf8Of(string(comm)))
		}
		if o.CgroupID != 0 {
			m.PutStr("finwait.cgroup_id", strconv.FormatUint(o.CgroupID, 10))
		}
	}
	m.PutStr("finwait.owner", o.Origin.String())
}

func putEnd(m pcommon.Map, role tracer.Role, reason tracer.Reason, side tracer.Side) {
	if role != tracer.RoleUnknown {
		m.PutStr("finwait.role", role.String())
	}
	if reason != tracer.ReasonUnknown {
		m.PutStr("finwait.reason", reason.String())
	}
	if side != tracer.SideUnknown {
		m.PutStr("finwait.side", side.String())
	}
}

func (e *encoder) putSampling(m pcommon.Map) {
	if e.sampling != 1 {
		m.PutDouble("finwait.sampling_ratio", e.sampling)
	}
}

// walk returns SYN_SENT:95000;ESTABLISHED:3200000000;LAST_ACK.
func walk(visits []tracer.Visit) string {
	b := make([]byte, 0, 192)
	for i, v := range visits {
		if i > 0 {
			b = append(b, ';')
		}
		b = append(b, v.State.String()...)
		if v.DwellKnown {
			b = append(b, ':')
			b = strconv.AppendInt(b, v.Dwell.Nanoseconds(), 10)
		}
	}
	return string(b)
}
