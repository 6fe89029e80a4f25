package sysctl

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestParseLine(t *testing.T) {
	for _, test := range []struct {
		text string
		want Line
		err  error
	}{
		{text: "net.ipv4.tcp_tw_reuse = 1", want: Line{Key: "net.ipv4.tcp_tw_reuse", Value: "1"}},
		{text: "\t net/ipv4/tcp_tw_reuse=1 \r\n", want: Line{Key: "net.ipv4.tcp_tw_reuse", Value: "1"}},
		{text: "net.ipv4.tcp_mem =\t1  2\t3 ", want: Line{Key: "net.ipv4.tcp_mem", Value: "1  2\t3"}},
		{text: "kernel.core_pattern=|/bin/a %p = #;", want: Line{Key: "kernel.core_pattern", Value: "|/bin/a %p = #;"}},
		{text: "kernel.domainname=", want: Line{Key: "kernel.domainname"}},
		{text: "- net.ipv4.tcp_tw_reuse = 1", want: Line{Key: "net.ipv4.tcp_tw_reuse", Value: "1", IgnoreFailure: true}},
		{text: "-net.ipv4.conf.all.rp_filter", want: Line{Key: "net.ipv4.conf.all.rp_filter", Exclude: true}},
		{text: "net.ipv4.conf.*.rp_filter = 2", want: Line{Key: "net.ipv4.conf.*.rp_filter", Value: "2"}},
		{text: "net.ipv4.conf.[!a]?.rp_filter = 2", want: Line{Key: "net.ipv4.conf.[!a]?.rp_filter", Value: "2"}},
		// The dot of a VLAN, in both ways.
		{text: "net.ipv4.conf.enp3s0/200.forwarding=1", want: Line{Key: "net.ipv4.conf.enp3s0/200.forwarding", Value: "1"}},
		{text: "net/ipv4/conf/enp3s0.200/forwarding=1", want: Line{Key: "net.ipv4.conf.enp3s0/200.forwarding", Value: "1"}},
		// The first separator decides, so this is no VLAN.
		{text: "net/ipv4/conf.all/x=1", want: Line{Key: "net.ipv4.conf/all.x", Value: "1"}},
		{text: "/net//ipv4/./tcp_rfc1337/ = 1", want: Line{Key: "net.ipv4.tcp_rfc1337", Value: "1"}},
		{text: "net..ipv4.tcp_rfc1337. = 1", want: Line{Key: "net.ipv4.tcp_rfc1337", Value: "1"}},
		{text: "foo=1", want: Line{Key: "foo", Value: "1"}},
		{text: ""}, {text: " \t\r\n"}, {text: "#net.a=1"}, {text: "  ; a=1"},
		{text: "net.ipv4.tcp_tw_reuse", err: errNotAssignment},
		{text: "net.ipv4.tcp_tw_reuse: 1", err: errNotAssignment},
		{text: "=1", err: errKey}, {text: "-", err: errKey}, {text: "-=1", err: errKey}, {text: "...=1", err: errKey}, {text: "--a=1", err: errKey},
		{text: "net.ipv4.tcp tw_reuse=1", err: errKey},
		{text: "sysctl -w net.ipv4.tcp_tw_reuse=1", err: errKey},
		{text: "net.ipv4.tcp_tw_reuse\x1b[1m=1", err: errKey},
		{text: "/a.b/c=1", err: errKey},
		{text: "net/../kernel/x=1", err: errKey},
		{text: "net.ipv4.conf.[a.rp_filter=1", err: errGlob},
		{text: "net.ipv4.conf.[[:alpha:]].rp_filter=1", err: errGlob},
		{text: "net.a=1\rnet.b=2", err: errLineEnd}, {text: "# net.a=1\rnet.b=2", err: errLineEnd}, {text: "net.a=\x001", err: errLineEnd},
	} {
		got, ok, err := parseLine(test.text)
		qt.Check(t, qt.DeepEquals(got, test.want), qt.Commentf("%q", test.text))
		qt.Check(t, qt.Equals(ok, test.want.Key != ""), qt.Commentf("%q", test.text))
		qt.Check(t, qt.Equals(err, test.err), qt.Commentf("%q", test.text))
	}
}

// TestLookup has the lines of one file, of which the numbers are told.
func TestLookup(t *testing.T) {
	for _, test := range []struct {
		name  string
		lines []string
		key   string
		all   []int
		last  int // 0 if nothing sets the key
	}{
		{name: "nothing", key: "a.x", lines: []string{"a.y=1"}},
		{name: "the last wins", key: "a.x", lines: []string{"a.x=1", "a/x=2", "a.y=3", "a.x=1"}, all: []int{1, 2, 4}, last: 4},
		{name: "an exact key wins over a later glob", key: "a.x", lines: []string{"a.x=1", "a.*=2"}, all: []int{2, 1}, last: 1},
		{name: "an exclude keeps globs away", key: "a.x", lines: []string{"-a.x", "a.*=2"}, all: []int{2, 1}},
		{name: "an exclude voids an earlier line", key: "a.x", lines: []string{"a.x=1", "-a.x"}, all: []int{1, 2}},
		{name: "a line after an exclude", key: "a.x", lines: []string{"-a.x", "a.x=1"}, all: []int{1, 2}, last: 2},
		{name: "the later glob wins", key: "a.xy", lines: []string{"a.*=1", "a.x*=2"}, all: []int{1, 2}, last: 2},
		{name: "a glob with another value is a later one", key: "a.xy", lines: []string{"a.*=1", "a.x*=2", "a.*=3"}, all: []int{1, 2, 3}, last: 3},
		{name: "a glob with the same value is where it was", key: "a.xy", lines: []string{"a.*=1", "a.x*=2", "a.*=1"}, all: []int{1, 3, 2}, last: 2},
		{name: "an exclude of the glob", key: "a.xy", lines: []string{"a.*=1", "-a.*"}, all: []int{1, 2}},
		{name: "an exclude of one of two globs", key: "a.xy", lines: []string{"a.*=1", "a.x*=2", "-a.x*"}, all: []int{2, 3, 1}, last: 1},
		{name: "an exclude with a glob excludes no key", key: "a.xy", lines: []string{"a.xy=1", "-a.*"}, all: []int{2, 1}, last: 1},
		{name: "no wildcard is a separator", key: "a.x.y", lines: []string{"a.*=1", "a.x.?=2", "a*y=3"}, all: []int{2}, last: 2},
		{name: "a VLAN", key: "a.e/1.x", lines: []string{"a.e*.x=1", "a.e.*.x=2"}, all: []int{1}, last: 1},
		{name: "not these characters", key: "a.b.x", lines: []string{"a.[!a].x=1", "a.[^b].x=2", "a.[!b].x=3"}, all: []int{1}, last: 1},
		{name: "of a glob its own lines alone", key: "a.*", lines: []string{"a.*=1", "*.*=2", "a.x=3"}, all: []int{1}, last: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := readPlanted(t, map[string]string{"/etc/sysctl.d/a.conf": strings.Join(test.lines, "\n")})
			qt.Assert(t, qt.HasLen(f.Problems, 0))
			var all []int
			for _, l := range f.All(test.key) {
				all = append(all, l.Number)
			}
			qt.Check(t, qt.DeepEquals(all, test.all))
			last, ok := f.Last(test.key)
			qt.Check(t, qt.Equals(last.Number, test.last))
			qt.Check(t, qt.Equals(ok, test.last != 0))
		})
	}
}

// TestLookupCmdline has lines that the kernel itself sets, before all files.
func TestLookupCmdline(t *testing.T) {
	kernel := Line{Key: "a.x", Value: "1", File: Cmdline}
	glob := Line{Key: "a.*", Value: "2", File: "f", Number: 1}
	exclude := Line{Key: "a.x", Exclude: true, File: "f", Number: 2}
	exact := Line{Key: "a.x", Value: "3", File: "f", Number: 3}
	for _, test := range []struct{ files, all, last []Line }{
		{files: []Line{}, all: []Line{kernel}, last: []Line{kernel}},
		{files: []Line{glob}, all: []Line{kernel, glob}, last: []Line{glob}},
		{files: []Line{glob, exclude}, all: []Line{kernel, glob, exclude}, last: []Line{kernel}},
		{files: []Line{exclude, exact}, all: []Line{kernel, exclude, exact}, last: []Line{exact}},
	} {
		f := &Files{Lines: append([]Line{kernel}, test.files...)}
		qt.Check(t, qt.DeepEquals(f.All("a.x"), test.all))
		last, ok := f.Last("a.x")
		qt.Check(t, qt.IsTrue(ok))
		qt.Check(t, qt.Equals(last, test.last[0]))
	}
}

func TestKeys(t *testing.T) {
	f := readPlanted(t, map[string]string{"/etc/sysctl.d/a.conf": "b.x=1\na.*=1\n-a.x\nb/x=2\na.y=1\n"})
	qt.Check(t, qt.DeepEquals(slices.Collect(f.Keys()), []string{"b.x", "a.*", "a.x", "a.y"}))
	for key := range f.Keys() {
		qt.Check(t, qt.Equals(key, "b.x"))
		break
	}
}
