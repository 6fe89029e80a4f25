package sysctl

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestValues(t *testing.T) {
	v := Values{"one": "23", "minus": "-1", "three": "1 2 3", "word": "cubic", "empty": "", "ports": "8080,9000-9010", "huge": "18446744073709551615"}
	for _, test := range []struct {
		name string
		one  int64
		all  []int64
	}{
		{"one", 23, []int64{23}}, {"minus", -1, []int64{-1}}, {"three", 0, []int64{1, 2, 3}},
		{"word", 0, nil}, {"empty", 0, nil}, {"ports", 0, nil}, {"huge", 0, nil}, {"gone", 0, nil},
	} {
		one, ok := v.Int(test.name)
		qt.Check(t, qt.Equals(ok, len(test.all) == 1), qt.Commentf(test.name))
		if ok {
			qt.Check(t, qt.Equals(one, test.one), qt.Commentf(test.name))
		}
		all, ok := v.Ints(test.name)
		qt.Check(t, qt.DeepEquals(all, test.all), qt.Commentf(test.name))
		qt.Check(t, qt.Equals(ok, test.all != nil), qt.Commentf(test.name))
	}
	ports, ok := v.Ports("ports")
	qt.Check(t, qt.IsTrue(ok))
	qt.Check(t, qt.DeepEquals(ports, []PortRange{{8080, 8080}, {9000, 9010}}))
	ports, ok = v.Ports("empty")
	qt.Check(t, qt.IsTrue(ok))
	qt.Check(t, qt.HasLen(ports, 0))
	_, ok = v.Ports("gone")
	qt.Check(t, qt.IsFalse(ok))
	_, ok = v.Ports("word")
	qt.Check(t, qt.IsFalse(ok))
}

func TestParsePorts(t *testing.T) {
	for _, test := range []struct {
		text string
		want []PortRange
	}{
		{"9000-9010,8080", []PortRange{{8080, 8080}, {9000, 9010}}},
		{"1-5,3-9,10,12", []PortRange{{1, 10}, {12, 12}}},
		{"1-9,2-3", []PortRange{{1, 9}}},
		{"0-65535", []PortRange{{0, 65535}}},
		{"65535,0,65535,", []PortRange{{0, 0}, {65535, 65535}}},
	} {
		got, ok := parsePorts(test.text)
		qt.Check(t, qt.IsTrue(ok), qt.Commentf(test.text))
		qt.Check(t, qt.DeepEquals(got, test.want), qt.Commentf(test.text))
	}
	for _, text := range []string{"65536", "5-1", "1,,2", "1-", "-1", "1-2-3", "a", "1 ,2", "+1"} {
		_, ok := parsePorts(text)
		qt.Check(t, qt.IsFalse(ok), qt.Commentf(text))
	}
}

func TestEqual(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"1", "1", true}, {" 1\t", "1", true}, {"1", "2", false}, {"", "", true}, {"", "0", false},
		{"32768 60999", "32768\t60999", true}, {"32768 60999", "32768", false},
		{"0x10", "16", true}, {"0X1f", "31", true}, {"010", "8", true}, {"00", "0", true}, {"-0", "0", true}, {"-010", "-8", true},
		// The kernel takes none of these.
		{"+1", "1", false}, {"08", "8", false}, {"0x", "0", false}, {"1_0", "10", false}, {"0b1", "1", false}, {"1.0", "1", false},
		{"000000000000000000001", "1", false},
		{"8080,8081", "8080-8081", true}, {"9,8", "8-9", true}, {"9,7", "7-9", false}, {"9", "9-9", true},
		{"cubic", "cubic", true}, {"cubic", "reno", false},
	} {
		qt.Check(t, qt.Equals(Equal(test.a, test.b), test.want), qt.Commentf("%q %q", test.a, test.b))
		qt.Check(t, qt.Equals(Equal(test.b, test.a), test.want), qt.Commentf("%q %q", test.b, test.a))
	}
}

func TestNames(t *testing.T) {
	qt.Check(t, qt.IsTrue(slices.IsSorted(Names)))
	qt.Check(t, qt.HasLen(slices.Compact(slices.Clone(Names)), len(Names)))
	for _, name := range Names {
		key, err := canonical(name)
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(key, name))
		qt.Check(t, qt.IsTrue(strings.HasPrefix(name, "net.")))
	}
}
