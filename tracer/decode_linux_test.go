package tracer

import (
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/go-quicktest/qt"
)

func rawEvent() bpfFinwaitEvent {
	var raw bpfFinwaitEvent
	raw.TimeNs = uint64(now(1)) // CLOCK_MONOTONIC
	raw.DwellNs = 1500
	raw.Cookie = 4711
	raw.Flags = uint8(bpfFinwaitEventFlagsEVENT_DWELL_KNOWN)
	raw.OldState, raw.NewState = uint8(StateFinWait2), uint8(StateTimeWait)
	raw.Evidence = uint8(EvidenceTimer)
	raw.Family = uint8(FamilyIPv4)
	raw.Tuple.Netns = 4026531840
	raw.Tuple.Laddr = netip.MustParseAddr("::ffff:192.0.2.1").As16()
	raw.Tuple.Raddr = netip.MustParseAddr("::ffff:192.0.2.2").As16()
	raw.Tuple.Lport, raw.Tuple.Rport = 40000, 443
	raw.Who.Origin, raw.Who.Role = uint8(OriginConnect), uint8(RoleClient)
	raw.Who.Pid, raw.Who.Uid, raw.Who.CgroupId = 42, 1000, 99
	copy(raw.Who.Comm[:], "curl")
	return raw
}

func bytesOf(raw *bpfFinwaitEvent) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(raw)), unsafe.Sizeof(*raw))
}

func TestDecodeEvent(t *testing.T) {
	raw := rawEvent()
	var ev Event
	var c clock
	qt.Assert(t, qt.IsTrue(decodeEvent(&ev, bytesOf(&raw), &c)))

	qt.Check(t, qt.IsTrue(time.Since(ev.Time).Abs() < time.Minute), qt.Commentf("%v", ev.Time))
	qt.Check(t, qt.Equals(ev.String(), "FIN_WAIT2→TIME_WAIT"))
	qt.Check(t, qt.Equals(ev.Dwell, 1500*time.Nanosecond))
	qt.Check(t, qt.IsTrue(ev.DwellKnown))
	qt.Check(t, qt.Equals(ev.Cookie, 4711))
	qt.Check(t, qt.Equals(ev.Netns, 4026531840))
	qt.Check(t, qt.Equals(ev.Local.String(), "192.0.2.1:40000"))
	qt.Check(t, qt.Equals(ev.Remote.String(), "192.0.2.2:443"))
	qt.Check(t, qt.Equals(ev.Owner.PID, 42))
	qt.Check(t, qt.Equals(ev.Owner.UID, 1000))
	qt.Check(t, qt.Equals(ev.Owner.CgroupID, 99))
	qt.Check(t, qt.Equals(string(ev.Owner.Comm()), "curl"))
	qt.Check(t, qt.Equals(ev.Owner.Origin, OriginConnect))
	qt.Check(t, qt.Equals(ev.Role, RoleClient))
	qt.Check(t, qt.Equals(ev.Evidence, EvidenceTimer))
}

func TestDecodeAllocatesNothing(t *testing.T) {
	raw := rawEvent()
	record := bytesOf(&raw)
	var ev Event
	var c clock
	qt.Assert(t, qt.Equals(testing.AllocsPerRun(1000, func() { decodeEvent(&ev, record, &c) }), 0))
}

func BenchmarkDecode(b *testing.B) {
	raw := rawEvent()
	record := bytesOf(&raw)
	var ev Event
	var c clock
	b.ReportAllocs()
	for b.Loop() {
		decodeEvent(&ev, record, &c)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	raw := rawEvent()
	f.Add(bytesOf(&raw))
	f.Add(bytesOf(&raw)[:50])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, record []byte) {
		var ev Event
		var c clock
		if !decodeEvent(&ev, record, &c) {
			qt.Assert(t, qt.Equals(ev, Event{}))
			return
		}
		qt.Assert(t, qt.IsTrue(len(record) >= int(unsafe.Sizeof(raw))))
		qt.Assert(t, qt.IsTrue(ev.Old.valid() && ev.New.valid()))
		qt.Assert(t, qt.IsTrue(ev.Local.Addr().IsValid() && ev.Remote.Addr().IsValid()))
		_ = ev.Family.String() + ev.Role.String() + ev.Evidence.String() + ev.Owner.Origin.String()
	})
}
