package lifecycle

import (
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
	"github.com/google/go-cmp/cmp"
)

func TestHolderEncode(t *testing.T) {
	h := Holder{PID: 7, Since: time.Date(2026, 11, 25, 10, 0, 0, 5, time.UTC), Version: "1.2.0", start: 1 << 60}
	text, err := h.encode()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(text), `{"pid":7,"start_ticks":1152921504606846976,"since":"2026-11-25T10:00:00Z","version":"1.2.0"}`+"\n"))
	h.Since = h.Since.Truncate(time.Second)
	got, err := parseHolder(text)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.CmpEquals(got, h, cmp.AllowUnexported(Holder{})))
}

func TestParseStart(t *testing.T) {
	const after = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1900 20"
	for stat, want := range map[string]uint64{
		"7 (finwait)" + after:            1900,
		"7 (a) S 1 2 3 (b c) )" + after:  1900,
		"7 (finwait) S 1 2":              0,
		"":                               0,
		"7 (finwait)" + after[:30] + "-": 0,
	} {
		got, err := parseStart(stat)
		qt.Check(t, qt.Equals(got, want), qt.Commentf("%q: %v", stat, err))
		qt.Check(t, qt.Equals(err == nil, want != 0), qt.Commentf("%q: %v", stat, err))
	}
}

func FuzzParseHolder(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "[]", `{"pid":7,"start_ticks":1152921504606846976,"since":"2026-11-25T10:00:00Z","version":"1.2.0"}`,
		`{"pid":-1}`, `{"pid":7,"start_ticks":1,"since":"2026-11-25T10:00:00Z","version":"\u001b[31m\u202e"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := parseHolder(text)
		if err != nil {
			if h != (Holder{}) {
				t.Fatalf("%v and an error: %v", h, err)
			}
			return
		}
		if h.PID <= 0 || h.start == 0 {
			t.Fatalf("%+v is nobody", h)
		}
		if s := h.String(); !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("%q does not print", s)
		}
	})
}

func FuzzParseStart(f *testing.F) {
	f.Add("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1900 20", "x) (")
	f.Fuzz(func(t *testing.T, stat, name string) {
		_, _ = parseStart(stat)
		// Whatever a process is called, what follows is read.
		start, err := parseStart("7 (" + name + ") S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1900 20")
		if err != nil || start != 1900 {
			t.Fatalf("%q: %d, %v", name, start, err)
		}
	})
}
