package tracer

import (
	"testing"

	"github.com/go-quicktest/qt"
)

func TestTotalOf(t *testing.T) {
	const text = `sockets: used 296
TCP: inuse 23 orphan 2 tw 17 alloc 31 mem 4
UDP: inuse 5 mem 1
Tcp: RtoAlgorithm MaxConn ActiveOpens CurrEstab
Tcp: 1 -1 99 7
`
	for _, tc := range []struct {
		label, name string
		want        int64
	}{
		{"TCP:", "inuse", 23}, {"TCP:", "tw", 17}, {"UDP:", "inuse", 5},
		{"Tcp:", "CurrEstab", 7}, {"Tcp:", "MaxConn", -1},
	} {
		got, err := totalOf([]byte(text), tc.label, tc.name)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(got, tc.want), qt.Commentf("%s %s", tc.label, tc.name))
	}
	for _, missing := range [][2]string{{"TCP:", "nonsense"}, {"TCP6:", "inuse"}} {
		_, err := totalOf([]byte(text), missing[0], missing[1])
		qt.Check(t, qt.IsNotNil(err))
	}
}

func FuzzTotalOf(f *testing.F) {
	f.Add([]byte("TCP: inuse 3 tw 4\n"), "TCP:", "tw")
	f.Add([]byte("Tcp: A B\nTcp: 1\n"), "Tcp:", "B")
	f.Fuzz(func(_ *testing.T, text []byte, label, name string) {
		_, _ = totalOf(text, label, name)
	})
}

func TestReadTotals(t *testing.T) {
	got, err := readTotals()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(got.sockets >= got.established), qt.Commentf("%+v", got))
}
