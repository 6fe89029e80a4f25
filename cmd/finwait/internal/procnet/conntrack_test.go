package procnet

import (
	"testing"

	"github.com/go-quicktest/qt"
)

const conntrackText = `entries  clashres found insert_failed drop early_drop icmp_error
00000017  00000000 00000000 00000001 0000000a ffffffff 00000000
00000017  00000000 00000000 00000002 00000010 00000001 00000000
`

var columnTests = []struct {
	name, text string
	want       Counters // nil if it is an error
}{
	{"two CPUs", conntrackText, Counters{"insert_failed": 3, "drop": 26, "early_drop": 1 << 32}},
	{"missing columns", "entries drop\n00000017 00000003\n", Counters{"drop": 3}},
	{"none of the columns", "entries found\n00000017 00000003\n", Counters{}},
	{"another order", "early_drop drop\n00000001 00000002\n", Counters{"early_drop": 1, "drop": 2}},
	{"no CPU", "entries drop\n", Counters{}},
	{"no line end", "drop\n1", Counters{"drop": 1}},
	{"more values than names", "entries drop\n1 2 3\n", nil},
	{"fewer values than names", "entries drop\n1\n", nil},
	{"an empty line", "entries drop\n1 2\n\n1 2\n", nil},
	{"too great", "drop\n100000000\n", nil},
	{"negative", "drop\n-1\n", nil},
	{"words", "drop\nmany\n", nil},
	{"words elsewhere", "found drop\nmany 5\n", Counters{"drop": 5}},
	{"nothing", "", Counters{}},
	{"garbage", "\x00\xff drop\n\xff\n", nil},
}

func TestSumColumns(t *testing.T) {
	for _, test := range columnTests {
		t.Run(test.name, func(t *testing.T) {
			got, err := sumColumns(test.text, dropColumns...)
			if test.want == nil {
				qt.Assert(t, qt.IsNotNil(err))
				return
			}
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.DeepEquals(got, test.want))
		})
	}
}

// FuzzSumColumns expects an error, or sums of columns that were asked for.
func FuzzSumColumns(f *testing.F) {
	for _, test := range columnTests {
		f.Add(test.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sums, err := sumColumns(text, dropColumns...)
		if err != nil {
			return
		}
		for name := range sums {
			qt.Assert(t, qt.SliceContains(dropColumns, name))
		}
	})
}
