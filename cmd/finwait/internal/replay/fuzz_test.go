package replay

import (
	"bytes"
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

// FuzzLine reads what may be anything. What is read is JSON, and reads the same
// once it is written.
func FuzzLine(f *testing.F) {
	for line := range strings.Lines(goldenLines(f) + line1 + line2 + conn1 + conn2) {
		f.Add([]byte(line))
	}
	f.Add([]byte(`{"time":"2026-11-22T09:08:07Z","walk":[],"x":[{"\ud83d\ude00":-0.1E+9}],"comm":"\ud83d\ufffd","owner":"listen"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var d decoder
		record, err := d.decode(line)
		if err != nil {
			qt.Assert(t, qt.Not(qt.Equals(err.Error(), "")))
			return
		}
		qt.Assert(t, qt.IsTrue(json.Valid(line)))
		qt.Assert(t, qt.Not(qt.Equals(record.Event == nil, record.Conn == nil)))
		checkAgainstJSON(t, line, record)

		w := newWriter(t)
		written := w.append(nil, record)
		record, err = d.decode(written)
		if err != nil { // of a year that RFC 3339 has not
			qt.Assert(t, qt.ErrorMatches(err, `(time|start): .*|there is no time in it`))
			return
		}
		qt.Assert(t, qt.Equals(string(w.append(nil, record)), string(written)))
	})
}

// checkAgainstJSON holds record to what encoding/json has of the line.
func checkAgainstJSON(t *testing.T, line []byte, record *Record) {
	t.Helper()
	var want struct {
		SamplingRatio float64
		Port          uint16
	}
	fields := map[string]json.RawMessage{}
	qt.Assert(t, qt.IsNil(json.Unmarshal(line, &fields)))
	for _, raw := range fields {
		if string(raw) == "null" { // and an earlier one of that name may count
			return
		}
	}
	for name, into := range map[string]any{"sampling_ratio": &want.SamplingRatio, "local_port": &want.Port} {
		if raw, ok := fields[name]; ok {
			qt.Assert(t, qt.IsNil(json.Unmarshal(raw, into)))
		}
	}
	var container string
	if raw, ok := fields["container_id"]; ok {
		qt.Assert(t, qt.IsNil(json.Unmarshal(raw, &container)))
	}
	local := netip.AddrPort{}
	if record.Event != nil {
		local = record.Event.Local
	} else {
		local = record.Conn.Local
	}
	qt.Assert(t, qt.Equals(record.SamplingRatio, want.SamplingRatio))
	qt.Assert(t, qt.Equals(record.ContainerID, container))
	qt.Assert(t, qt.Equals(local.Port(), want.Port))
}

// FuzzRoundTrip writes records of the fuzzer's, reads them back and writes them
// again.
func FuzzRoundTrip(f *testing.F) {
	v6 := netip.MustParseAddr("2001:db8::1").As16()
	f.Add([]byte("curl"), []byte{127, 0, 0, 1}, []byte{10, 0, 0, 1}, uint64(7), uint64(math.MaxUint64), int64(1_800_000_000_123_456_789))
	f.Add([]byte("=a,\"\x1b[2J\r\n\xff<\u202e"), v6[:], v6[:], uint64(math.MaxUint64), uint64(0x5555555555555555), int64(1))
	f.Add([]byte("\ufffd\U0001f600\xf0\x9f"), []byte{}, make([]byte, 16), uint64(0), uint64(0), int64(math.MaxInt64))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), make([]byte, 4), make([]byte, 4), uint64(1)<<63, uint64(0xaaaaaaaaaaaaaaaa), int64(1e18))
	f.Fuzz(func(t *testing.T, comm, local, remote []byte, id, bits uint64, ns int64) {
		ev := fuzzEvent(comm, local, remote, id, bits, ns)
		c := fuzzConn(&ev, id, bits)
		logged := output.Logged{ContainerID: string(comm), PodUID: string(remote), SamplingRatio: float64(bits>>40) / (1 << 24)}
		w := newWriter(t)
		for _, record := range []*Record{{Event: &ev, Logged: logged}, {Conn: &c, Logged: logged}} {
			line := w.append(nil, record)
			var d decoder
			read, err := d.decode(line)
			qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", line))
			qt.Assert(t, qt.Equals(read.Event != nil, record.Event != nil))
			qt.Assert(t, qt.Equals(string(w.append(nil, read)), string(line)))
			if read.Event != nil {
				checkEvent(t, read.Event, &ev)
			}
		}
	})
}

// checkEvent holds what was read to what was written, but for what no format
// tells.
func checkEvent(t *testing.T, got, want *tracer.Event) {
	t.Helper()
	qt.Assert(t, qt.IsTrue(got.Time.Equal(want.Time)))
	qt.Assert(t, qt.Equals(got.Transition, want.Transition))
	qt.Assert(t, qt.Equals(got.DwellKnown, want.DwellKnown))
	if want.DwellKnown {
		qt.Assert(t, qt.Equals(got.Dwell, want.Dwell))
	}
	qt.Assert(t, qt.Equals(got.Cookie, want.Cookie))
	qt.Assert(t, qt.Equals(got.Netns, want.Netns))
	qt.Assert(t, qt.Equals(got.Role, want.Role))
	qt.Assert(t, qt.Equals(got.Evidence, want.Evidence))
	qt.Assert(t, qt.Equals(got.Reason, want.Reason))
	qt.Assert(t, qt.Equals(got.Side, want.Side))
	qt.Assert(t, qt.Equals(got.Local, want.Local))
	qt.Assert(t, qt.Equals(got.Remote.Port(), want.Remote.Port()))
	if addr := want.Remote.Addr(); addr.IsValid() && !addr.IsUnspecified() {
		qt.Assert(t, qt.Equals(got.Remote.Addr(), addr))
	}
	qt.Assert(t, qt.Equals(got.Owner.Origin, want.Owner.Origin))
	if want.Owner.Origin != tracer.OriginUnknown {
		qt.Assert(t, qt.Equals(got.Owner.PID, want.Owner.PID))
		qt.Assert(t, qt.Equals(got.Owner.UID, want.Owner.UID))
		qt.Assert(t, qt.Equals(got.Owner.CgroupID, want.Owner.CgroupID))
		qt.Assert(t, qt.Equals(string(got.Owner.Comm()), Comm(string(want.Owner.Comm()))))
	}
}

// fuzzEvent spreads the fuzzer's bytes over what a kernel can tell.
func fuzzEvent(comm, local, remote []byte, id, bits uint64, ns int64) tracer.Event {
	localAddr, _ := netip.AddrFromSlice(local)
	remoteAddr, _ := netip.AddrFromSlice(remote)
	all := tracer.States()
	pick := func(shift, n uint64) uint64 { return bits >> shift % n }
	ev := tracer.Event{
		Time:       time.Unix(0, ns),
		Transition: tracer.Transition{Old: all[pick(0, 12)], New: all[pick(4, 12)]},
		Dwell:      time.Duration(id >> 1),
		DwellKnown: pick(8, 2) == 1,
		Cookie:     id,
		Netns:      uint32(bits >> 9),
		Family:     []tracer.Family{tracer.FamilyIPv4, tracer.FamilyIPv6, 0}[pick(16, 3)],
		Local:      netip.AddrPortFrom(localAddr.Unmap(), uint16(bits>>24)),
		Remote:     netip.AddrPortFrom(remoteAddr.Unmap(), uint16(bits>>32)),
		Owner:      tracer.Owner{Origin: tracer.Origin(pick(40, 5)), PID: uint32(id), UID: uint32(id >> 32), CgroupID: bits * id},
		Role:       tracer.Role(pick(44, 3)),
		Evidence:   tracer.Evidence(pick(48, 3)),
		Reason:     tracer.Reason(pick(50, uint64(len(tracer.Reasons())))),
		Side:       tracer.Side(pick(56, 4)),
	}
	ev.Owner.SetComm(string(comm))
	return ev
}

// fuzzConn returns a connection with what it shares with ev.
func fuzzConn(ev *tracer.Event, id, bits uint64) tracer.Conn {
	c := tracer.Conn{
		End: ev.Time, Cookie: ev.Cookie, Netns: ev.Netns, Family: ev.Family, Local: ev.Local, Remote: ev.Remote,
		Owner: ev.Owner, Role: ev.Role, Reason: ev.Reason, Side: ev.Side,
		Counted: bits>>1&1 == 1, BytesSent: id, BytesReceived: bits, SegmentsSent: uint32(id), SegmentsReceived: uint32(bits),
		Retransmits: uint32(id >> 32), SRTT: time.Duration(uint32(bits)) * time.Microsecond,
		TimeWaitReason: tracer.Reason(bits >> 20 % uint64(len(tracer.Reasons()))),
	}
	if bits>>2&1 == 1 {
		c.Start = ev.Time.Add(-time.Duration(id >> 2))
	}
	var walk []tracer.Visit
	for i, s := range tracer.States() {
		if bits>>i&1 == 1 {
			walk = append(walk, tracer.Visit{State: s, Dwell: time.Duration(id >> i >> 1), DwellKnown: id>>i&1 == 1})
		}
	}
	c.SetWalk(walk...)
	return c
}

// FuzzCompressed reads what may be anything, compressed or not.
func FuzzCompressed(f *testing.F) {
	for _, text := range []string{line1, line1 + conn1, ""} {
		f.Add([]byte(text))
		f.Add(gzipped(f, text))
		f.Add(zstandard(f, text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		troubles := uint64(0)
		r := New([]string{"-"}, Options{Stdin: bytes.NewReader(data), Complain: func(error) { troubles++ }})
		for _, err := range r.Records(t.Context()) {
			qt.Assert(t, qt.IsNil(err))
		}
		c := r.Counts()
		qt.Assert(t, qt.Equals(troubles, c.Damaged+c.Broken))
	})
}
