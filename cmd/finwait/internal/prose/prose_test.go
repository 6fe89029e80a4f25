package prose

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
)

func TestWrap(t *testing.T) {
	long := strings.Repeat("x", Width+1)
	for _, test := range []struct {
		column, indent int
		text, want     string
	}{
		{0, 0, "", "\n"},
		{0, 2, "a  b\n\t\tc", "a b c\n"},
		{Width - 3, 4, "ab c d", "ab\n    c d\n"},
		{Width - 4, 4, "ab c d", "ab c\n    d\n"},
		{Width - 4, 0, "→→ →", "→→ →\n"}, // columns, not bytes
		{3, 2, "a " + long + " b", "a\n  " + long + "\n  b\n"},
		{Width, 2, "a", "a\n"}, // the first word is where the caller wants it
	} {
		qt.Check(t, qt.Equals(string(Wrap(nil, test.column, test.indent, test.text)), test.want))
	}
}

func TestHang(t *testing.T) {
	text := string(Hang(nil, "→ name: ", strings.Repeat("word ", 40)))
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		qt.Check(t, qt.IsTrue(utf8.RuneCountInString(line) <= Width), qt.Commentf("%s", line))
		qt.Check(t, qt.IsTrue(i == 0 || strings.HasPrefix(line, "        word")), qt.Commentf("%s", line))
	}
	qt.Check(t, qt.Equals(strings.Count(text, "word"), 40))
}

func TestNumbers(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 131072: "131,072", 1 << 62: "4,611,686,018,427,387,904"} {
		qt.Check(t, qt.Equals(Number(n), want))
	}
	for n, want := range map[float64]string{0: "0.0", 0.26: "0.3", 9.94: "9.9", 9.96: "10", 12.4: "12", 10013.4: "10,013"} {
		qt.Check(t, qt.Equals(Rate(n), want))
	}
	for n, want := range map[uint64]string{0: "0 B", 7: "7 B", 999: "999 B", 1000: "1.0 kB", 33_000_000: "33 MB", 999_900: "1.0 MB", 5e15: "5,000 TB"} {
		qt.Check(t, qt.Equals(Bytes(n), want))
	}
	for d, want := range map[time.Duration]string{
		0: "0 s", 2500 * time.Millisecond: "2.5 s", 6003 * time.Millisecond: "6 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min",
		1013 * time.Second: "17 min", 150 * time.Minute: "2.5 h", 120 * time.Hour: "5 days", 100 * 365 * 24 * time.Hour: "36,500 days",
	} {
		qt.Check(t, qt.Equals(Duration(d), want))
	}
	qt.Check(t, qt.Equals(Count(1, "file", "files")+", "+Count(1013, "file", "files"), "1 file, 1,013 files"))
}

func TestJoin(t *testing.T) {
	for want, items := range map[string][]string{"": nil, "a": {"a"}, "a or b": {"a", "b"}, "a, b or c": {"a", "b", "c"}} {
		qt.Check(t, qt.Equals(Join(items, "or"), want))
	}
	qt.Check(t, qt.Equals(Line(" a\n\t\tb  c "), "a b c"))
	qt.Check(t, qt.DeepEquals(Lines([]string{"a\n b", "c"}), []string{"a b", "c"}))
}
