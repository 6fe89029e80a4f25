package logfile

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// What is recognised is to the letter what a log gives, and nothing of another log.
func FuzzRotatedName(f *testing.F) {
	for _, name := range []string{
		"conns.log", "conns.log-20261125T231500.000000000Z", "conns.log-20261125T231500.123456789Z.gz",
		"conns.log-20261125T231500.000000000Z.zst", "conns.log-20261125T231500.000000000Z.zst.tmp",
		"conns.log-20261125T231500.000000000Z.tmp", "conns.log-20261125T231500,000000000Z", "conns.log-20260230T000000.000000000Z",
		"conns.log-20261125", "conns.log.1", "conns.log-20261125T231560.000000000Z", "conns.log-.gz",
	} {
		f.Add("conns.log", name, int64(1), byte(1))
	}
	f.Fuzz(func(t *testing.T, base, name string, ns int64, kind byte) {
		if n, ok := parseRotated(base, name); ok {
			qt.Check(t, qt.Equals(n.of(base), name))
			rest, found := strings.CutPrefix(name, base+"-")
			qt.Check(t, qt.IsTrue(found))
			qt.Check(t, qt.IsTrue(len(rest) >= len("20060102T150405.000000000Z")))
			qt.Check(t, qt.IsFalse(strings.ContainsAny(rest, "/\x00")))
		}
		want := rotatedName{time: time.Unix(0, ns).UTC(), extension: []string{"", ".gz", ".zst"}[kind%3]}
		want.temp = want.extension != "" && kind&4 != 0
		got, ok := parseRotated(base, want.of(base))
		qt.Check(t, qt.IsTrue(ok))
		qt.Check(t, qt.Equals(got, want))
		_, ok = parseRotated(base+"x", want.of(base))
		qt.Check(t, qt.IsFalse(ok))
	})
}

// Names sort as the times do.
func TestRotatedNamesSort(t *testing.T) {
	times := []time.Time{time.Unix(0, 0), time.Unix(0, 1), time.Unix(9, 999_999_999), time.Unix(10, 0), time.Unix(1<<32, 0)}
	last := ""
	for _, at := range times {
		name := rotatedName{time: at}.of("conns.log")
		qt.Check(t, qt.IsTrue(name > last))
		last = name
	}
}

// What is cut off begins as a record does and has no line end, and all before it
// stays.
func FuzzLastRecord(f *testing.F) {
	for _, data := range []string{"", "a", "a\n", "a\n{", "a\n{\"time\":\"x", "\x00", "{\x00", "a\n\x00\x00", "\n{\"tine"} {
		f.Add([]byte(data), 0)
		f.Add([]byte(data), 5000)
	}
	f.Fuzz(func(t *testing.T, data []byte, zeros int) {
		data = append(data, make([]byte, min(max(zeros, 0), 20_000))...)
		end, ok := lastRecord(bytes.NewReader(data), int64(len(data)))
		if !ok {
			qt.Check(t, qt.IsFalse(bytes.HasSuffix(data, newline)))
			return
		}
		cut := bytes.TrimRight(data[end:], "\x00")
		qt.Check(t, qt.IsFalse(bytes.Contains(cut, newline)))
		qt.Check(t, qt.IsTrue(bytes.HasPrefix(cut, []byte(recordStart)) || strings.HasPrefix(recordStart, string(cut))))
		qt.Check(t, qt.IsTrue(end == 0 || data[end-1] == '\n'))
	})
}

func FuzzRecordTime(f *testing.F) {
	f.Add([]byte(`{"time":"2026-11-22T09:08:07.060500000Z","cookie"`))
	f.Add([]byte(`{"time":""`))
	f.Add([]byte(`{"time":"2026-11-22T09:08:07.060500000`))
	f.Fuzz(func(t *testing.T, head []byte) {
		at, ok := recordTime(head)
		if !ok {
			return
		}
		_, text, _ := strings.Cut(string(head), recordStart)
		text, _, _ = strings.Cut(text, `"`)
		want, err := time.Parse(time.RFC3339Nano, text)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.IsTrue(at.Equal(want)))
	})
}

func FuzzParseSync(f *testing.F) {
	for _, text := range []string{"never", "rotate", "1s", "0", "-1ns", "1h", "9223372036854775807ns"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sync, err := ParseSync(text)
		if err != nil {
			return
		}
		_, err = Options{Path: "x", Sync: sync}.validate()
		qt.Check(t, qt.IsNil(err))
		again, err := ParseSync(sync.String())
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(again, sync))
	})
}

func TestRecordTime(t *testing.T) {
	b := newBatch(0, 1, 1)
	for _, line := range bytes.SplitAfter(bytes.TrimSpace(mustEncode(b)), newline) {
		at, ok := recordTime(line[:len(recordStart)+len(time.RFC3339Nano)])
		qt.Check(t, qt.IsTrue(ok))
		qt.Check(t, qt.IsTrue(time.Since(at) < time.Minute))
	}
	for _, bad := range []string{"", "{}", `{"time":"yesterday"`, `{"time":"2026-11-22T09:08:07.060500000Z`, `x{"time":"2026-11-22T09:08:07Z"`} {
		_, ok := recordTime([]byte(bad))
		qt.Check(t, qt.IsFalse(ok), qt.Commentf("%q", bad))
	}
}
