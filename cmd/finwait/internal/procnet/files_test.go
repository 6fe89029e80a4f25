package procnet

import (
	"math"
	"testing"

	"github.com/go-quicktest/qt"
)

var limitTests = []struct {
	name, text string
	want       uint64
	ok         bool
}{
	{"whole", `Limit                     Soft Limit           Hard Limit           Units     
Max processes             96365                96365                processes 
Max open files            1024                 524288               files     
Max locked memory         8388608              8388608              bytes     
`, 1024, true},
	{"no limit", "Max open files            unlimited            unlimited            files\n", math.MaxUint64, true},
	{"none allowed", "Max open files            0                    0                    files\n", 0, true},
	{"cut off", "Max open files  1024", 1024, true},
	{"no value", "Max open files            \n", 0, false},
	{"negative", "Max open files  -1  5  files\n", 0, false},
	{"too great", "Max open files  18446744073709551616  5  files\n", 0, false},
	{"words", "Max open files  many  5  files\n", 0, false},
	{"another line", "Max open filesystems  5  5  files\n", 0, false},
	{"a zombie's", "", 0, false},
	{"garbage", "\x00\xffMax open files", 0, false},
}

func TestSoftFileLimit(t *testing.T) {
	for _, test := range limitTests {
		t.Run(test.name, func(t *testing.T) {
			got, ok := softFileLimit(test.text)
			qt.Check(t, qt.Equals(ok, test.ok))
			qt.Check(t, qt.Equals(got, test.want))
		})
	}
}

// FuzzSoftFileLimit expects no number, or the same where more follows.
func FuzzSoftFileLimit(f *testing.F) {
	for _, test := range limitTests {
		f.Add(test.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, ok := softFileLimit(text)
		if !ok {
			return
		}
		again, ok := softFileLimit(text + "\nMax open files  x  x  files\n")
		qt.Assert(t, qt.IsTrue(ok))
		qt.Assert(t, qt.Equals(again, n))
	})
}
