package output

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
	"github.com/google/go-cmp/cmp"

	"github.com/finwait/finwait/tracer"
)

var hostileComms = []string{
	"", "curl", "a b", `a"b`, `a\b`, "a,b", "=1+1", "+1", "-1", "@x", "'", "＝1", "\t=1", "\r\n",
	"\x1b[2J", "\x00a", "\x7f", "\u009b", "\u202ea", "\u2028", "<&>", "\xff\xfe", "\U0001f600", "\U000e0041", "k=v",
}

// addSeeds gives the corpus that the fuzz targets share.
func addSeeds(f *testing.F) {
	for i, comm := range hostileComms {
		f.Add([]byte(comm), []byte{127, 0, 0, 1}, []byte{10, 0, 0, 1}, uint64(i), uint64(math.MaxUint64)<<i, int64(i))
	}
	v6 := netip.MustParseAddr("2001:db8::1").As16()
	mapped := netip.MustParseAddr("::ffff:10.0.0.1").As16()
	f.Add([]byte("v6"), v6[:], v6[:], uint64(math.MaxUint64), uint64(math.MaxUint64), int64(math.MaxInt64))
	f.Add([]byte("none"), []byte{}, make([]byte, 16), uint64(0), uint64(0), int64(math.MinInt64))
	f.Add([]byte("mapped"), mapped[:], mapped[:], uint64(1), uint64(2), int64(3))
}

// fuzzEvent spreads the fuzzer's bytes over the fields of an event.
func fuzzEvent(comm, local, remote []byte, id, bits uint64, ns int64) tracer.Event {
	localAddr, _ := netip.AddrFromSlice(local)
	remoteAddr, _ := netip.AddrFromSlice(remote)
	states := tracer.States()
	ev := tracer.Event{
		Time:       time.Unix(ns/1e9, ns%1e9),
		Transition: tracer.Transition{Old: states[bits%12], New: states[bits>>4%12]},
		Dwell:      time.Duration(ns),
		DwellKnown: bits>>8&1 == 1,
		Cookie:     id,
		Netns:      uint32(bits >> 9),
		Family:     tracer.Family(bits >> 16),
		Local:      netip.AddrPortFrom(localAddr, uint16(bits>>24)),
		Remote:     netip.AddrPortFrom(remoteAddr, uint16(bits>>32)),
		Owner: tracer.Owner{
			Origin: tracer.Origin(bits >> 40 & 3), PID: uint32(id), UID: uint32(id >> 32), CgroupID: bits,
		},
		Role:     tracer.Role(bits >> 44 & 3),
		Evidence: tracer.Evidence(bits >> 48 & 1),
	}
	ev.Owner.SetComm(string(comm))
	return ev
}

// fuzzOptions has a cgroup whose container and pod have the fuzzer's name.
func fuzzOptions(name []byte) Options {
	return Options{Cgroup: func(id uint64) (tracer.Cgroup, bool) {
		return tracer.Cgroup{ID: id, ContainerID: string(name), PodUID: string(name)}, true
	}}
}

// textFields are the fields that hold the fuzzer's bytes.
var textFields = []string{"comm", "container_id", "pod_uid"}

// wantRecord returns the record of ev as it should read after decoding, worked
// out apart from the encoders.
func wantRecord(ev *tracer.Event, name []byte) map[string]string {
	want := map[string]string{
		"time":      ev.Time.UTC().Format("2006-01-02T15:04:05.000000000Z"),
		"old_state": ev.Old.String(),
		"new_state": ev.New.String(),
		"owner":     ev.Owner.Origin.String(),
		"evidence":  ev.Evidence.String(),
	}
	set := func(key string, known bool, value string) {
		if known {
			want[key] = value
		}
	}
	id := func(v uint64) string { return strconv.FormatUint(v, 10) }
	owned := ev.Owner.Origin != tracer.OriginUnknown
	remote := ev.Remote.Addr()
	set("cookie", ev.Cookie != 0, id(ev.Cookie))
	set("netns", ev.Netns != 0, id(uint64(ev.Netns)))
	set("family", ev.Family.String() != "unknown", ev.Family.String())
	set("local_addr", ev.Local.Addr().IsValid(), ev.Local.Addr().String())
	set("local_port", ev.Local.Port() != 0, id(uint64(ev.Local.Port())))
	set("remote_addr", remote.IsValid() && !remote.IsUnspecified(), remote.String())
	set("remote_port", ev.Remote.Port() != 0, id(uint64(ev.Remote.Port())))
	set("dwell_ns", ev.DwellKnown, strconv.FormatInt(int64(ev.Dwell), 10))
	set("pid", owned && ev.Owner.PID != 0, id(uint64(ev.Owner.PID)))
	set("comm", owned && len(ev.Owner.Comm()) > 0, string(ev.Owner.Comm()))
	set("uid", owned, id(uint64(ev.Owner.UID)))
	set("cgroup_id", owned && ev.Owner.CgroupID != 0, id(ev.Owner.CgroupID))
	set("container_id", owned && ev.Owner.CgroupID != 0 && len(name) > 0, string(name))
	set("pod_uid", owned && ev.Owner.CgroupID != 0 && len(name) > 0, string(name))
	set("role", ev.Role != tracer.RoleUnknown, ev.Role.String())
	return want
}

// eachText puts in the place of each text of the record what the format makes
// of it.
func eachText(want map[string]string, as func(field, text string) string) {
	for _, field := range textFields {
		if text, ok := want[field]; ok {
			want[field] = as(field, text)
		}
	}
}

func assertOneLine(t *testing.T, line []byte) {
	t.Helper()
	qt.Assert(t, qt.Equals(bytes.IndexByte(line, '\n'), len(line)-1))
	assertSafe(t, line[:len(line)-1])
}

// assertRemembers fails if enc, which has written ev as line, writes it in another
// way later.
func assertRemembers(t *testing.T, enc Encoder, ev *tracer.Event, line []byte) {
	t.Helper()
	other := *ev
	other.Owner.SetComm("other")
	other.Time = ev.Time.Add(time.Second)
	for _, between := range []*tracer.Event{ev, &other} {
		enc.AppendEvent(nil, between)
		qt.Assert(t, qt.Equals(string(enc.AppendEvent(nil, ev)), string(line)))
	}
}

func FuzzJSON(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, comm, local, remote []byte, id, bits uint64, ns int64) {
		ev := fuzzEvent(comm, local, remote, id, bits, ns)
		enc := newLines(&jsonSyntax, &eventFields, fuzzOptions(comm))
		line := enc.AppendEvent(nil, &ev)
		assertOneLine(t, line)
		assertRemembers(t, enc, &ev, line)

		want := wantRecord(&ev, comm)
		eachText(want, func(_, name string) string { return viaStd(t, name) })
		qt.Assert(t, qt.Equals(cmp.Diff(want, decodeJSON(t, line)), ""))
	})
}

// viaStd returns s after encoding/json has written and read it.
func viaStd(t *testing.T, s string) string {
	t.Helper()
	text, err := json.Marshal(s)
	qt.Assert(t, qt.IsNil(err))
	var back string
	qt.Assert(t, qt.IsNil(json.Unmarshal(text, &back)))
	return back
}

// decodeJSON decodes a record and fails if a field has the wrong JSON type.
func decodeJSON(t *testing.T, line []byte) map[string]string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	var raw map[string]any
	qt.Assert(t, qt.IsNil(dec.Decode(&raw)), qt.Commentf("%s", line))
	got := make(map[string]string)
	for key, value := range raw {
		switch key {
		case "netns", "local_port", "remote_port", "dwell_ns", "pid", "uid":
			got[key] = value.(json.Number).String()
		default:
			got[key] = value.(string)
		}
	}
	return got
}

func FuzzCSV(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, comm, local, remote []byte, id, bits uint64, ns int64) {
		ev := fuzzEvent(comm, local, remote, id, bits, ns)
		enc := newLines(&csvSyntax, &eventFields, fuzzOptions(comm))
		line := enc.AppendEvent(nil, &ev)
		assertOneLine(t, line)
		assertRemembers(t, enc, &ev, line)

		r := csv.NewReader(bytes.NewReader(append(enc.AppendHeader(nil), line...)))
		rows, err := r.ReadAll()
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", line))
		qt.Assert(t, qt.HasLen(rows, 2))

		got := make(map[string]string)
		for i, key := range rows[0] {
			if rows[1][i] != "" {
				got[key] = rows[1][i]
			}
		}
		want := wantRecord(&ev, comm)
		eachText(want, func(field, name string) string {
			qt.Assert(t, qt.IsFalse(strings.ContainsAny(got[field][:1], "=+-@\t\r")))
			cell := string(Quote(nil, []byte(name)))
			first, _ := utf8.DecodeRuneInString(name)
			if strings.ContainsRune("=+-@\t\r\n＝＋－＠", first) {
				cell = "'" + cell
			}
			return cell
		})
		qt.Assert(t, qt.Equals(cmp.Diff(want, got), ""))
	})
}

func FuzzLogfmt(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, comm, local, remote []byte, id, bits uint64, ns int64) {
		ev := fuzzEvent(comm, local, remote, id, bits, ns)
		enc := newLines(&logfmtSyntax, &eventFields, fuzzOptions(comm))
		line := enc.AppendEvent(nil, &ev)
		assertOneLine(t, line)
		assertRemembers(t, enc, &ev, line)

		want := wantRecord(&ev, comm)
		eachText(want, func(_, name string) string { return string([]rune(name)) }) // as JSON: U+FFFD for what is not UTF-8
		qt.Assert(t, qt.Equals(cmp.Diff(want, decodeLogfmt(t, string(line))), ""))
	})
}

// decodeLogfmt is a strict parser of the little that logfmt is.
func decodeLogfmt(t *testing.T, line string) map[string]string {
	t.Helper()
	got := make(map[string]string)
	for line != "\n" {
		key, rest, ok := strings.Cut(line, "=")
		qt.Assert(t, qt.IsTrue(ok), qt.Commentf("%q", line))
		var value string
		if strings.HasPrefix(rest, `"`) {
			dec := json.NewDecoder(strings.NewReader(rest))
			qt.Assert(t, qt.IsNil(dec.Decode(&value)))
			rest = rest[dec.InputOffset():]
		} else {
			end := strings.IndexAny(rest, " \n")
			value, rest = rest[:end], rest[end:]
		}
		got[key] = value
		line = strings.TrimPrefix(rest, " ")
	}
	return got
}

func FuzzTable(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, comm, local, remote []byte, id, bits uint64, ns int64) {
		ev := fuzzEvent(comm, local, remote, id, bits, ns)
		assertOneLine(t, newTable(Options{Location: time.UTC}).AppendEvent(nil, &ev))
	})
}
