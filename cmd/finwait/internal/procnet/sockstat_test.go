package procnet

import (
	"testing"

	"github.com/go-quicktest/qt"
)

const (
	sockstatText = `sockets: used 12
TCP: inuse 1 orphan 2 tw 3 alloc 33 mem 74
UDP: inuse 5 mem 6
`
	sockstat6Text = "TCP6: inuse 7\nUDP6: inuse 8\n"
)

var sockstatTests = []struct {
	name, text, text6 string
	want              *Sockstat // nil if it is an error
}{
	{"both", sockstatText, sockstat6Text, &Sockstat{InUse: 1, InUse6: 7, TimeWait: 3, Orphans: 2, Allocated: 33, MemoryPages: 74}},
	{"another order, and more", "TCP: mem 5 new 9 alloc 4 tw 3 orphan 2 inuse 1 odd\n", sockstat6Text,
		&Sockstat{InUse: 1, InUse6: 7, TimeWait: 3, Orphans: 2, Allocated: 4, MemoryPages: 5}},
	{"no tw", "TCP: inuse 1 orphan 2 alloc 33 mem 74\n", sockstat6Text, nil},
	{"no value", "TCP: inuse 1 orphan 2 tw 3 alloc 33 mem", sockstat6Text, nil},
	{"negative", "TCP: inuse -1 orphan 2 tw 3 alloc 33 mem 74\n", sockstat6Text, nil},
	{"words", "TCP: inuse orphan tw alloc mem\n", sockstat6Text, nil},
	{"no TCP", "UDP: inuse 5\n", sockstat6Text, nil},
	{"no TCP6", sockstatText, "UDP6: inuse 5\n", nil},
	{"nothing", "", "", nil},
	{"garbage", "TCP:\x00\xff inuse", "TCP6", nil},
}

func TestParseSockstat(t *testing.T) {
	for _, test := range sockstatTests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseSockstat(test.text, test.text6)
			if test.want == nil {
				qt.Assert(t, qt.IsNotNil(err))
				qt.Check(t, qt.Equals(got, Sockstat{}))
				return
			}
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(got, *test.want))
		})
	}
}

func TestParsePressure(t *testing.T) {
	const head = "protocol  size sockets  memory press maxhdr  slab module\n"
	for text, want := range map[string]string{
		head + "TCPv6 2432 0 405 yes 192 yes kernel\nTCP   2304      1     405   no     192   yes  kernel\n": "no",
		head + "TCPv6 2432 0 405 no 192 yes kernel\nTCP   2304      1     405   yes    192   yes  kernel\n":  "yes",
		head + "TCP 2304 1 405 NI 192 yes kernel\n":                                                          "",
		head + "TCP 2304 1 405\n": "",
		head:                      "",
		"":                        "",
	} {
		got, err := parsePressure(text)
		qt.Check(t, qt.Equals(err == nil, want != ""), qt.Commentf("%s", text))
		qt.Check(t, qt.Equals(got, want == "yes"), qt.Commentf("%s", text))
	}
}

// FuzzParseSockstat expects an error without numbers, or the same numbers where
// others follow them.
func FuzzParseSockstat(f *testing.F) {
	for _, test := range sockstatTests {
		f.Add(test.text, test.text6)
	}
	f.Fuzz(func(t *testing.T, text, text6 string) {
		got, err := parseSockstat(text, text6)
		if err != nil {
			qt.Assert(t, qt.Equals(got, Sockstat{}))
			return
		}
		again, err := parseSockstat(text+"\nTCP: inuse x\n", text6+"\nTCP6: inuse x\n")
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(again, got))
	})
}
