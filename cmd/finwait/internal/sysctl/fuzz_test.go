package sysctl

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzLines reads anything. Each line is blank, a comment, a line that means the same
// when it is written down again, or a problem.
func FuzzLines(f *testing.F) {
	f.Add([]byte("net.ipv4.tcp_tw_reuse = 1\n# text\n-net/ipv4/conf/eth0.1/x=2\r\n-a.b\njunk\n\n\x00=\xff"))
	f.Add([]byte("net.ipv4.conf.[!a]*.x = 1\nnet.[[:alpha:]]=1\n..=1\n/a.b/=\n-=1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		lines, problems := parse("file", text)
		found := map[int]bool{}
		for _, l := range lines {
			found[l.Number] = true
			checkLine(t, l)
		}
		for _, p := range problems {
			if p.Number > 0 && found[p.Number] {
				t.Fatalf("line %d is a problem too: %v", p.Number, p)
			}
			if len(p.Text) > MaxText || p.Err == nil {
				t.Fatalf("%+v", p)
			}
			found[p.Number] = true
		}
		for i, raw := range bytes.Split(text, []byte("\n")) {
			trimmed := strings.Trim(string(raw), whitespace)
			nothing := trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';'
			if !nothing && !found[i+1] && len(problems) <= maxProblems {
				t.Fatalf("line %d is lost: %q", i+1, raw)
			}
		}
		files := &Files{Lines: lines}
		for key := range files.Keys() {
			all := files.All(key)
			if len(all) == 0 {
				t.Fatalf("no lines of %q", key)
			}
			if last, ok := files.Last(key); ok != !all[len(all)-1].Exclude || ok && last != all[len(all)-1] {
				t.Fatalf("of %+v the last is %+v", all, last)
			}
			procPath(key)
			Equal(key, last(all).Value)
		}
	})
}

func last(lines []Line) Line { return lines[len(lines)-1] }

// checkLine writes a line down and reads it.
func checkLine(t *testing.T, l Line) {
	t.Helper()
	text := l.Key + " = " + l.Value
	switch {
	case l.Exclude:
		text = "-" + l.Key
	case l.IgnoreFailure:
		text = "-" + text
	}
	again, ok, err := parseLine(text)
	again.File, again.Number = l.File, l.Number
	if !ok || err != nil || again != l {
		t.Fatalf("%q is %+v, %v, and was %+v", text, again, err, l)
	}
}

// FuzzCmdline reads anything as the kernel's command line.
func FuzzCmdline(f *testing.F) {
	f.Add(`quiet "sysctl.a.b=1 2" sysctl/a/b="1 2" sysctl. sysctl.a= -- sysctl.a=1`)
	f.Fuzz(func(t *testing.T, text string) {
		lines, problems := parseCmdline(text)
		for _, l := range lines {
			if key, err := canonical(l.Key); key != l.Key || err != nil || l.File != Cmdline || isGlob(l.Key) {
				t.Fatalf("%+v, %q, %v", l, key, err)
			}
		}
		if n := strings.Count(text, "sysctl"); len(lines)+len(problems) > n {
			t.Fatalf("%d lines, %d problems of %d", len(lines), len(problems), n)
		}
	})
}

// FuzzEqual compares anything. Equal is symmetric, and all is equal to itself.
func FuzzEqual(f *testing.F) {
	f.Add("0x10", "16")
	f.Add("8080,9000-9010", "9000-9010,8080")
	f.Fuzz(func(t *testing.T, a, b string) {
		if Equal(a, b) != Equal(b, a) || !Equal(a, a) {
			t.Fatalf("%q %q", a, b)
		}
	})
}
