package output

import (
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
)

func TestQuote(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"empty", "", ""},
		{"plain", "nginx: worker", "nginx: worker"},
		{"utf8", "naïve 名前", "naïve 名前"},
		{"backslash", `a\x1b`, `a\\x1b`},
		{"escape", "\x1b[2J", `\x1b[2J`},
		{"newline", "a\r\n\tb", `a\x0d\x0a\x09b`},
		{"nul and del", "\x00\x7f", `\x00\x7f`},
		{"c1 as utf8", "\u009b", `\u{9b}`},
		{"c1 as byte", "\x9b", `\x9b`},
		{"bidi override", "a\u202eb", `a\u{202e}b`},
		{"bidi isolate", "\u2066", `\u{2066}`},
		{"zero width", "\u200b\ufeff", `\u{200b}\u{feff}`},
		{"line separators", "\u2028\u2029", `\u{2028}\u{2029}`},
		{"tag", "\U000e0041", `\u{e0041}`},
		{"cut character", "名"[:2], `\xe5\x90`},
		{"surrogate", "\xed\xa0\x80", `\xed\xa0\x80`},
		{"replacement character", "\ufffd", "\ufffd"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			qt.Assert(t, qt.Equals(string(Quote(nil, []byte(tt.in))), tt.want))
		})
	}
}

// assertSafe fails if s holds anything that does not print.
func assertSafe(t *testing.T, s []byte) {
	t.Helper()
	qt.Assert(t, qt.IsTrue(utf8.Valid(s)), qt.Commentf("%q", s))
	for _, r := range string(s) {
		qt.Assert(t, qt.IsTrue(unicode.IsPrint(r)), qt.Commentf("%q", s))
	}
}

func FuzzQuote(f *testing.F) {
	for _, comm := range hostileComms {
		f.Add([]byte(comm))
	}
	f.Fuzz(func(t *testing.T, s []byte) {
		assertSafe(t, Quote(nil, s))
	})
}
