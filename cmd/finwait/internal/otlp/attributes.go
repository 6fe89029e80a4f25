package otlp

import (
	"net/netip"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

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
func (e *encoder) transition(r *record, ev *tracer.Event, observed time.Time) {
	begin(r, eventTransition, ev.Time, observed, ev.Reason)
	body, ok := e.bodies[ev.Transition]
	if !ok {
		body = ev.String()
	}
	r.body(body)
	putSocket(r, ev.Family, ev.Local, ev.Remote)
	if name, ok := stateNames[ev.New]; ok {
		r.text("network.connection.state", name)
	}
	e.putProcess(r, &ev.Owner)
	putIDs(r, ev.Cookie, ev.Netns, ev.Family)
	r.text("finwait.old_state", ev.Old.String())
	r.text("finwait.new_state", ev.New.String())
	if ev.DwellKnown {
		r.number("finwait.dwell_ns", ev.Dwell.Nanoseconds())
	}
	putOwner(r, &ev.Owner)
	putEnd(r, ev.Role, ev.Reason, ev.Side)
	r.text("finwait.evidence", ev.Evidence.String())
	e.putSampling(r)
}

// conn writes c into r, which is new.
func (e *encoder) conn(r *record, c *tracer.Conn, observed time.Time) {
	begin(r, eventConnection, c.End, observed, c.Reason)
	if c.Reason == tracer.ReasonUnknown {
		r.body("connection ended")
	} else {
		r.body("connection ended: " + c.Reason.String())
	}
	putSocket(r, c.Family, c.Local, c.Remote)
	e.putProcess(r, &c.Owner)
	putIDs(r, c.Cookie, c.Netns, c.Family)
	if !c.Start.IsZero() {
		r.number("finwait.duration_ns", c.End.Sub(c.Start).Nanoseconds())
	}
	if len(c.Walk()) > 0 {
		r.walk(c.Walk())
	}
	if c.Counted {
		putCounts(r, c)
	}
	putOwner(r, &c.Owner)
	putEnd(r, c.Role, c.Reason, c.Side)
	if c.TimeWaitReason != tracer.ReasonUnknown {
		r.text("finwait.time_wait_reason", c.TimeWaitReason.String())
	}
	e.putSampling(r)
}

// begin writes what all records have.
func begin(r *record, name string, at time.Time, observed time.Time, reason tracer.Reason) {
	if !at.IsZero() {
		r.fixed64(recordTime, uint64(at.UnixNano()))
	}
	r.fixed64(recordObservedTime, uint64(observed.UnixNano()))
	r.str(recordEventName, name)
	severity := warn
	if slices.Contains(orderly, reason) {
		severity = info
	}
	r.varint(recordSeverityNumber, severity.number)
	r.str(recordSeverityText, severity.text)
}

type severity struct {
	number uint64
	text   string
}

var (
	info = severity{9, "INFO"}
	warn = severity{13, "WARN"}
)

func putSocket(r *record, family tracer.Family, local, remote netip.AddrPort) {
	r.text("network.transport", "tcp")
	if kind := networkType(family, local.Addr()); kind != "" {
		r.text("network.type", kind)
	}
	putPlace(r, "network.local.address", "network.local.port", local, local.Addr().IsValid())
	putPlace(r, "network.peer.address", "network.peer.port", remote, remote.Addr().IsValid() && !remote.Addr().IsUnspecified())
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
func putPlace(r *record, address, port string, at netip.AddrPort, known bool) {
	if known {
		var text [64]byte
		r.bytes(address, at.Addr().WithZone("").AppendTo(text[:0]))
	}
	if at.Port() != 0 {
		r.number(port, int64(at.Port()))
	}
}

// putProcess writes what there is a convention for, of an owner.
func (e *encoder) putProcess(r *record, o *tracer.Owner) {
	if o.Origin == tracer.OriginUnknown {
		return
	}
	if o.PID != 0 {
		r.number("process.pid", int64(o.PID))
	}
	r.number("process.real_user.id", int64(o.UID))
	if e.cgroup == nil || o.CgroupID == 0 {
		return
	}
	cgroup, _ := e.cgroup(o.CgroupID)
	if cgroup.ContainerID != "" {
		r.text("container.id", utf8Of(cgroup.ContainerID))
	}
	if cgroup.PodUID != "" {
		r.text("k8s.pod.uid", utf8Of(cgroup.PodUID))
	}
}

func putIDs(r *record, cookie uint64, netns uint32, family tracer.Family) {
	if cookie != 0 {
		r.id("finwait.cookie", cookie)
	}
	if netns != 0 {
		r.number("finwait.netns", int64(netns))
	}
	if family == tracer.FamilyIPv4 || family == tracer.FamilyIPv6 {
		r.text("finwait.family", family.String())
	}
}

func putCounts(r *record, c *tracer.Conn) {
	r.number("finwait.bytes_sent", int64(c.BytesSent))
	r.number("finwait.bytes_received", int64(c.BytesReceived))
	r.number("finwait.segments_sent", int64(c.SegmentsSent))
	r.number("finwait.segments_received", int64(c.SegmentsReceived))
	r.number("finwait.retransmits", int64(c.Retransmits))
	if c.SRTT > 0 {
		r.number("finwait.srtt_ns", c.SRTT.Nanoseconds())
	}
}

// putOwner writes what there is no convention for, of an owner.
func putOwner(r *record, o *tracer.Owner) {
	if o.Origin != tracer.OriginUnknown {
		if comm := o.Comm(); len(comm) > 0 {
			r.comm(comm)
		}
		if o.CgroupID != 0 {
			r.id("finwait.cgroup_id", o.CgroupID)
		}
	}
	r.text("finwait.owner", o.Origin.String())
}

func putEnd(r *record, role tracer.Role, reason tracer.Reason, side tracer.Side) {
	if role != tracer.RoleUnknown {
		r.text("finwait.role", role.String())
	}
	if reason != tracer.ReasonUnknown {
		r.text("finwait.reason", reason.String())
	}
	if side != tracer.SideUnknown {
		r.text("finwait.side", side.String())
	}
}

func (e *encoder) putSampling(r *record) {
	if e.sampling != 1 {
		r.real("finwait.sampling_ratio", e.sampling)
	}
}

// id writes a number of which a reader may need all 64 bits.
func (r *record) id(key string, n uint64) {
	var text [20]byte
	r.bytes(key, strconv.AppendUint(text[:0], n, 10))
}

func (r *record) comm(name []byte) {
	if utf8.Valid(name) {
		r.bytes("finwait.comm", name)
		return
	}
	r.text("finwait.comm", utf8Of(string(name)))
}

// walk writes SYN_SENT:95000;ESTABLISHED:3200000000;LAST_ACK.
func (r *record) walk(visits []tracer.Visit) {
	var text [512]byte // more than 12 states can take
	b := text[:0]
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
	r.bytes("finwait.walk", b)
}

// utf8Of returns s with every byte that is not UTF-8 as U+FFFD, as the JSON
// record has it.
func utf8Of(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}
