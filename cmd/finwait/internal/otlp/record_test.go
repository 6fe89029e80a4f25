package otlp

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"

	"github.com/finwait/finwait/tracer"
)

var comms = []string{"", "curl", "a b", "\xff\xfe", "\x1b[2J", "ü", "a\xffb\xfe", "\u202ea", "<&>", "fifteen_bytes_x"}

var containers = []string{"", strings.Repeat("0123456789abcdef", 4), "lxc\xffname", "a\nb"}

// testCgroup finds a cgroup for two ids of three.
func testCgroup(id uint64) (tracer.Cgroup, bool) {
	if id%3 == 0 {
		return tracer.Cgroup{}, false
	}
	c := tracer.Cgroup{ID: id, ContainerID: containers[id%4]}
	if id%2 == 0 {
		c.PodUID = "01234567-89ab-cdef-0123-456789abcdef"
	}
	return c, true
}

// one returns one of them.
func one[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func randomAddr(r *rand.Rand, family tracer.Family) netip.AddrPort {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:], r.Uint64())
	binary.NativeEndian.PutUint64(b[8:], r.Uint64())
	addr := netip.AddrFrom16(b)
	if family == tracer.FamilyIPv4 || r.IntN(4) == 0 {
		addr = netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrPortFrom(one(r, addr, addr, addr, netip.IPv6Unspecified(), netip.Addr{}), uint16(r.Uint32()&one(r, uint32(0), 0xffff, 0xffff)))
}

func randomOwner(r *rand.Rand) tracer.Owner {
	o := tracer.Owner{
		Origin: one(r, tracer.OriginUnknown, tracer.OriginConnect, tracer.OriginListen, tracer.OriginAccept, tracer.OriginSnapshot),
		PID:    one(r, 0, r.Uint32()), UID: one(r, 0, r.Uint32()), CgroupID: one(r, 0, r.Uint64()),
	}
	o.SetComm(one(r, comms...))
	return o
}

// testTime is now in the tests' records.
var testTime = time.Date(2026, 3, 4, 5, 6, 7, 890123456, time.UTC)

func randomTime(r *rand.Rand) time.Time { return testTime.Add(time.Duration(r.Int64N(1e15))) }

func randomDwell(r *rand.Rand) time.Duration {
	return time.Duration(one(r, 0, r.Int64N(1000), r.Int64N(1e12), math.MaxInt64))
}

// randomEvent returns a transition with all that can be known, or not.
func randomEvent(r *rand.Rand, cookie uint64) tracer.Event {
	family := one(r, tracer.FamilyIPv4, tracer.FamilyIPv6)
	ev := tracer.Event{
		Time: randomTime(r), Transition: one(r, tracer.LegalTransitions()...),
		Dwell: randomDwell(r), DwellKnown: one(r, true, false),
		Cookie: cookie, Netns: one(r, 0, r.Uint32()), Family: one(r, family, family, tracer.Family(0)),
		Local: randomAddr(r, family), Remote: randomAddr(r, family),
		Owner: randomOwner(r), Role: one(r, tracer.RoleUnknown, tracer.RoleClient, tracer.RoleServer),
		Evidence: one(r, tracer.EvidenceKernel, tracer.EvidenceTimer, tracer.EvidenceProbe),
	}
	if ev.New == tracer.StateClose {
		ev.Reason = one(r, tracer.Reasons()...)
		ev.Side = one(r, tracer.SideUnknown, tracer.SideLocal, tracer.SidePeer, tracer.SideBoth)
	}
	return ev
}

func randomConn(r *rand.Rand, cookie uint64) tracer.Conn {
	ev := randomEvent(r, cookie)
	c := tracer.Conn{
		End: ev.Time, Cookie: ev.Cookie, Netns: ev.Netns, Family: ev.Family, Local: ev.Local, Remote: ev.Remote,
		Owner: ev.Owner, Role: ev.Role, Reason: one(r, tracer.Reasons()...),
		TimeWaitReason: one(r, tracer.ReasonUnknown, tracer.ReasonExpired, tracer.ReasonReused),
		Side:           one(r, tracer.SideUnknown, tracer.SideLocal, tracer.SidePeer, tracer.SideBoth),
	}
	if r.IntN(3) > 0 {
		c.Start = c.End.Add(-time.Duration(r.Int64N(1e14)))
	}
	if c.Counted = r.IntN(3) > 0; c.Counted {
		c.BytesSent, c.BytesReceived = r.Uint64()>>1, uint64(r.Uint32())
		c.SegmentsSent, c.SegmentsReceived, c.Retransmits = r.Uint32(), r.Uint32(), one(r, 0, r.Uint32())
		c.SRTT = one(r, 0, time.Duration(r.Int64N(1e9)))
	}
	var walk []tracer.Visit
	for range r.IntN(8) {
		walk = append(walk, tracer.Visit{State: one(r, tracer.States()...), Dwell: randomDwell(r), DwellKnown: one(r, true, false)})
	}
	c.SetWalk(walk...)
	return c
}

// wanted is what a record should be, worked out apart from the encoder.
type wanted struct {
	event, body, severity string
	time                  time.Time
	attributes            map[string]any
}

func (w *wanted) set(key string, known bool, value any) {
	if known {
		w.attributes[key] = value
	}
}

// conventionStates are the states as the convention has them, in the order of
// the kernel's numbers.
var conventionStates = strings.Fields("- established syn_sent syn_received fin_wait_1 fin_wait_2 time_wait closed close_wait last_ack listen closing syn_received")

func wantTransition(ev *tracer.Event) *wanted {
	w := &wanted{event: "finwait.transition", body: ev.Old.String() + "→" + ev.New.String(), time: ev.Time, attributes: map[string]any{}}
	w.common(ev)
	w.set("network.connection.state", true, conventionStates[ev.New])
	w.set("finwait.old_state", true, ev.Old.String())
	w.set("finwait.new_state", true, ev.New.String())
	w.set("finwait.dwell_ns", ev.DwellKnown, int64(ev.Dwell))
	w.set("finwait.evidence", true, ev.Evidence.String())
	return w
}

func wantConn(c *tracer.Conn) *wanted {
	w := &wanted{event: "finwait.connection", body: "connection ended: " + c.Reason.String(), time: c.End, attributes: map[string]any{}}
	if c.Reason == tracer.ReasonUnknown {
		w.body = "connection ended"
	}
	w.common(&tracer.Event{
		Cookie: c.Cookie, Netns: c.Netns, Family: c.Family, Local: c.Local, Remote: c.Remote,
		Owner: c.Owner, Role: c.Role, Reason: c.Reason, Side: c.Side,
	})
	w.set("finwait.duration_ns", !c.Start.IsZero(), int64(c.End.Sub(c.Start)))
	var words []string
	for _, v := range c.Walk() {
		word := v.State.String()
		if v.DwellKnown {
			word += fmt.Sprintf(":%d", v.Dwell)
		}
		words = append(words, word)
	}
	w.set("finwait.walk", len(words) > 0, strings.Join(words, ";"))
	w.set("finwait.bytes_sent", c.Counted, int64(c.BytesSent))
	w.set("finwait.bytes_received", c.Counted, int64(c.BytesReceived))
	w.set("finwait.segments_sent", c.Counted, int64(c.SegmentsSent))
	w.set("finwait.segments_received", c.Counted, int64(c.SegmentsReceived))
	w.set("finwait.retransmits", c.Counted, int64(c.Retransmits))
	w.set("finwait.srtt_ns", c.Counted && c.SRTT > 0, int64(c.SRTT))
	w.set("finwait.time_wait_reason", c.TimeWaitReason != 0, c.TimeWaitReason.String())
	return w
}

// common sets what both have.
func (w *wanted) common(ev *tracer.Event) {
	w.severity = "WARN"
	switch ev.Reason.String() {
	case "unknown", "fin", "closed", "expired", "reused", "netns_gone":
		w.severity = "INFO"
	}
	local, remote, owner := ev.Local.Addr(), ev.Remote.Addr(), &ev.Owner
	w.set("network.transport", true, "tcp")
	switch {
	case local.IsValid():
		w.set("network.type", true, map[bool]string{true: "ipv4", false: "ipv6"}[local.Unmap().Is4()])
	case ev.Family != 0:
		w.set("network.type", true, map[tracer.Family]string{2: "ipv4", 10: "ipv6"}[ev.Family])
	}
	w.set("network.local.address", local.IsValid(), local.String())
	w.set("network.local.port", ev.Local.Port() != 0, int64(ev.Local.Port()))
	w.set("network.peer.address", remote.IsValid() && !remote.IsUnspecified(), remote.String())
	w.set("network.peer.port", ev.Remote.Port() != 0, int64(ev.Remote.Port()))
	w.set("finwait.cookie", ev.Cookie != 0, strconv.FormatUint(ev.Cookie, 10))
	w.set("finwait.netns", ev.Netns != 0, int64(ev.Netns))
	w.set("finwait.family", ev.Family != 0, ev.Family.String())
	w.set("finwait.owner", true, owner.Origin.String())
	w.set("finwait.role", ev.Role != 0, ev.Role.String())
	w.set("finwait.reason", ev.Reason != 0, ev.Reason.String())
	w.set("finwait.side", ev.Side != 0, ev.Side.String())
	if owner.Origin == tracer.OriginUnknown {
		return
	}
	w.set("process.pid", owner.PID != 0, int64(owner.PID))
	w.set("process.real_user.id", true, int64(owner.UID))
	comm := ""
	for _, c := range string(owner.Comm()) { // each byte that is not UTF-8 is U+FFFD
		comm += string(c)
	}
	w.set("finwait.comm", comm != "", comm)
	w.set("finwait.cgroup_id", owner.CgroupID != 0, strconv.FormatUint(owner.CgroupID, 10))
	if owner.CgroupID == 0 {
		return
	}
	cgroup, _ := testCgroup(owner.CgroupID)
	w.set("container.id", cgroup.ContainerID != "", strings.ReplaceAll(cgroup.ContainerID, "\xff", "\uFFFD"))
	w.set("k8s.pod.uid", cgroup.PodUID != "", cgroup.PodUID)
}

// check fails the test if the record is another.
func (w *wanted) check(t *testing.T, r plog.LogRecord) {
	t.Helper()
	qt.Assert(t, qt.Equals(r.EventName(), w.event))
	qt.Assert(t, qt.Equals(r.Body().AsString(), w.body))
	qt.Assert(t, qt.Equals(r.SeverityText(), w.severity))
	qt.Assert(t, qt.Equals(r.SeverityNumber(), map[string]plog.SeverityNumber{"INFO": 9, "WARN": 13}[w.severity]))
	qt.Assert(t, qt.IsTrue(r.Timestamp().AsTime().Equal(w.time)))
	qt.Assert(t, qt.DeepEquals(r.Attributes().AsRaw(), w.attributes))
}

// decodedLogs returns what is in a request, as another library reads it.
func decodedLogs(t *testing.T, body []byte) plog.Logs {
	t.Helper()
	request := plogotlp.NewExportRequest()
	qt.Assert(t, qt.IsNil(request.UnmarshalProto(body)))
	return request.Logs()
}

// decoded returns the records of a request.
func decoded(t *testing.T, body []byte) []plog.LogRecord {
	t.Helper()
	return recordsOf(decodedLogs(t, body))
}

func recordsOf(logs plog.Logs) (all []plog.LogRecord) {
	for _, of := range logs.ResourceLogs().All() {
		for _, in := range of.ScopeLogs().All() {
			for _, r := range in.LogRecords().All() {
				all = append(all, r)
			}
		}
	}
	return all
}

// testLogs returns one that only makes requests.
func testLogs() *Logs {
	l := &Logs{encoder: newEncoder(testCgroup), origin: newOrigin([]attribute{{"service.name", "finwait"}, {"a", ""}}, "v1")}
	l.SetSamplingRatio(1)
	return l
}

func TestRecords(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var events []tracer.Event
	var conns []tracer.Conn
	for i := range uint64(2000) {
		events = append(events, randomEvent(r, i))
		conns = append(conns, randomConn(r, math.MaxUint64-i))
	}
	l := testLogs()
	before := time.Now()
	body, n := request(l, events, l.encoder.transition)
	qt.Assert(t, qt.Equals(n, len(events)))
	seen := map[string]bool{}
	for i, record := range decoded(t, body) {
		wantTransition(&events[i]).check(t, record)
		qt.Assert(t, qt.IsFalse(record.ObservedTimestamp().AsTime().Before(before)))
		for key := range record.Attributes().All() {
			seen[key] = true
		}
	}
	of := decodedLogs(t, body).ResourceLogs().At(0)
	qt.Assert(t, qt.DeepEquals(of.Resource().Attributes().AsRaw(), map[string]any{"service.name": "finwait", "a": ""}))
	qt.Assert(t, qt.Equals(of.ScopeLogs().At(0).Scope().Name(), "github.com/finwait/finwait"))
	qt.Assert(t, qt.Equals(of.ScopeLogs().At(0).Scope().Version(), "v1"))
	body, n = request(l, conns, l.encoder.conn)
	qt.Assert(t, qt.Equals(n, len(conns)))
	for i, record := range decoded(t, body) {
		wantConn(&conns[i]).check(t, record)
		for key := range record.Attributes().All() {
			seen[key] = true
		}
	}
	l.encoder.sampling = 0.25
	body, _ = request(l, conns[:1], l.encoder.conn)
	ratio, ok := decoded(t, body)[0].Attributes().Get("finwait.sampling_ratio")
	qt.Assert(t, qt.IsTrue(ok))
	qt.Assert(t, qt.Equals(ratio.Double(), 0.25))
	seen["finwait.sampling_ratio"] = true
	for _, key := range Attributes {
		qt.Check(t, qt.IsTrue(seen[key]), qt.Commentf("no record has %s", key))
		delete(seen, key)
	}
	qt.Assert(t, qt.HasLen(seen, 0))
}

// TestRecordsUnknown has the records of which nothing is known say nothing.
func TestRecordsUnknown(t *testing.T) {
	l := testLogs()
	l.encoder.cgroup = nil
	body, _ := request(l, make([]tracer.Event, 1), l.encoder.transition)
	r := decoded(t, body)[0]
	qt.Assert(t, qt.Equals(r.Timestamp(), pcommon.Timestamp(0)))
	qt.Assert(t, qt.DeepEquals(r.Attributes().AsRaw(), map[string]any{
		"network.transport": "tcp", "finwait.old_state": "STATE_0", "finwait.new_state": "STATE_0",
		"finwait.owner": "unknown", "finwait.evidence": "kernel",
	}))
	body, _ = request(l, make([]tracer.Conn, 1), l.encoder.conn)
	r = decoded(t, body)[0]
	qt.Assert(t, qt.DeepEquals(r.Attributes().AsRaw(), map[string]any{"network.transport": "tcp", "finwait.owner": "unknown"}))
}

func TestStateNames(t *testing.T) {
	for _, s := range tracer.States() {
		qt.Check(t, qt.Equals(stateNames[s], conventionStates[s]))
	}
}

// FuzzRecord has names that others chose come out as valid UTF-8 and nothing
// else changed.
func FuzzRecord(f *testing.F) {
	for i, comm := range comms {
		f.Add(comm, containers[i%4], uint64(i))
	}
	f.Fuzz(func(t *testing.T, comm, container string, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		ev := randomEvent(r, seed)
		ev.Owner.Origin, ev.Owner.CgroupID = tracer.OriginConnect, 1
		ev.Owner.SetComm(comm)
		l := testLogs()
		l.encoder.cgroup = func(uint64) (tracer.Cgroup, bool) { return tracer.Cgroup{ContainerID: container}, true }
		body, _ := request(l, []tracer.Event{ev}, l.encoder.transition)
		record := decoded(t, body)[0]
		for key, value := range record.Attributes().All() {
			qt.Assert(t, qt.IsTrue(utf8.ValidString(value.AsString())), qt.Commentf("%s", key))
		}
		id, _ := record.Attributes().Get("container.id")
		if utf8.ValidString(container) {
			qt.Assert(t, qt.Equals(id.Str(), container))
		}
		got, _ := record.Attributes().Get("finwait.comm")
		if want := string(ev.Owner.Comm()); utf8.ValidString(want) {
			qt.Assert(t, qt.Equals(got.Str(), want))
		}
	})
}

func BenchmarkRecords(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	var events []tracer.Event
	var conns []tracer.Conn
	for i := range uint64(4096) {
		ev := randomEvent(r, i)
		ev.Owner.Origin = tracer.OriginConnect
		ev.Owner.SetComm("curl")
		events = append(events, ev)
		conns = append(conns, randomConn(r, i))
	}
	l := testLogs()
	b.Run("transitions", func(b *testing.B) { benchmarkRecords(b, l, events, l.encoder.transition) })
	b.Run("connections", func(b *testing.B) { benchmarkRecords(b, l, conns, l.encoder.conn) })
}

// benchmarkRecords measures records made and encoded, of which b.N are made.
func benchmarkRecords[T any](b *testing.B, l *Logs, records []T, encode func(*record, *T, time.Time)) {
	b.ReportAllocs()
	size := 0
	for left := b.N; left > 0; left -= len(records) {
		body, _ := request(l, records[:min(left, len(records))], encode)
		size += len(body)
	}
	b.ReportMetric(float64(size)/float64(b.N), "B/record")
}
