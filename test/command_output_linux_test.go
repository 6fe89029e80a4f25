package test

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// traceTo starts finwait trace with its output somewhere else.
func traceTo(t testing.TB, ns *netns.NS, stdout *os.File, format string) *process {
	t.Helper()
	cmd := exec.Command(binary(t), "trace", "--buffer", "1", "--netns", inodeWord(ns), "--format", format)
	cmd.Stdout = stdout
	p := spawn(t, cmd)
	p.awaitTracing()
	return p
}

// TestCommandReaderGone closes the pipe that finwait writes to.
func TestCommandReaderGone(t *testing.T) {
	netns.RequireRoot(t)
	for _, format := range []string{"json", "table", "csv", "logfmt"} {
		t.Run(format, func(t *testing.T) {
			ns := netns.New(t)
			p := endByEPIPE(t, ns, format)
			res := p.wait()
			qt.Check(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
			qt.Check(t, qt.Matches(res.stderr, tracingLine+ledgerLine+`(finwait:   [^\n]+\n)*`))
		})
	}
}

// endByEPIPE reads one line of a finwait and closes the pipe, while
// connections are made until it has ended.
func endByEPIPE(t testing.TB, ns *netns.NS, format string) *process {
	t.Helper()
	r, w, err := os.Pipe()
	qt.Assert(t, qt.IsNil(err))
	p := traceTo(t, ns, w, format)
	qt.Assert(t, qt.IsNil(w.Close()))
	makeTraffic(t, ns, traffic.ActiveClose, 1, tracer.FamilyIPv4)
	_, err = bufio.NewReader(r).ReadString('\n')
	qt.Check(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(r.Close()))
	p.await("end", func() bool {
		makeTraffic(t, ns, traffic.ActiveClose, 1, tracer.FamilyIPv4)
		return p.hasEnded()
	})
	return p
}

func devFull(t testing.TB) *os.File {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { full.Close() })
	return full
}

// TestCommandDiskFull writes to a full disk: what could not be written is in
// the ledger as lost.
func TestCommandDiskFull(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	p := traceTo(t, ns, devFull(t), "json")
	makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
	res := p.wait()
	qt.Check(t, qt.Equals(res.code, 1))
	n := ledger(t, res.stderr)
	qt.Check(t, qt.Equals(n[2], 0), qt.Commentf("printed; %s", res.stderr))
	qt.Check(t, qt.IsTrue(n[3] > 0), qt.Commentf("lost; %s", res.stderr))
	qt.Check(t, qt.Matches(res.stderr, `(?s).*\nfinwait:   \d+ lost: could not be written\n.*`))
	lines := strings.Split(strings.TrimSpace(res.stderr), "\n")
	qt.Check(t, qt.Matches(lines[len(lines)-1], `finwait: write .*no space left on device`))
	checkAccounts(t, res.stderr, n)
}

// checkAccounts expects every transition that matched to be printed, lost or
// left unread.
func checkAccounts(t testing.TB, stderr string, n [4]int) {
	t.Helper()
	unread := 0
	if m := regexp.MustCompile(`finwait:   (\d+) left unread`).FindStringSubmatch(stderr); m != nil {
		for _, digit := range m[1] {
			unread = 10*unread + int(digit-'0')
		}
	}
	qt.Check(t, qt.Equals(n[2]+n[3]+unread, n[1]), qt.Commentf("%s", stderr))
}

// TestCommandHeaderDiskFull fails at the first thing that is written.
func TestCommandHeaderDiskFull(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	res := traceTo(t, ns, devFull(t), "csv").wait()
	qt.Check(t, qt.Equals(res.code, 1))
	qt.Check(t, qt.Matches(res.stderr, tracingLine+ledgerLine+`finwait: write [^\n]*no space left on device\n`))
}

// TestCommandOthersDiskFull is the same for the commands that print once.
func TestCommandOthersDiskFull(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	listenIn(t, ns)
	commands := [][]string{{"count"}, {"count", "--format", "json"}, {"explain"}, {"explain", "TIME_WAIT"}, {"explain", "--format", "json"}}
	for _, args := range commands {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			cmd := ns.Command(binary(t), args...)
			cmd.Stdout = devFull(t)
			checkFailure(t, runCommand(t, cmd), 1, "no space left on device")
		})
	}
}

// hostileName is what a process may call itself, and what is made of it.
type hostileName struct {
	what, name string
	json       string // in the value of json and logfmt
	csv        string // in the cell
	table      string // how the cell begins
}

// TestCommandHostileName has a process call itself what would do harm where it
// is printed.
func TestCommandHostileName(t *testing.T) {
	netns.RequireRoot(t)
	tests := []hostileName{
		{"escape sequence", "\x1b[31mx,\"=1\n", "\x1b[31mx,\"=1\n", `\x1b[31mx,"=1\x0a`, `\x1b[31`},
		{"formula", "=1+1|'<b>\\\t", "=1+1|'<b>\\\t", `'=1+1|'<b>\\\x09`, `=1+1|'<`},
		{"writing direction", "+\u202e\u009b\xff &", "+\u202e\u009b\ufffd &", `'+\u{202e}\u{9b}\xff &`, `+\u{202`},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			ns := netns.New(t)
			formats := map[string]*process{}
			for _, format := range []string{"json", "csv", "logfmt", "table"} {
				formats[format] = traceIn(t, ns, "--format", format)
			}
			runActor(t, ns, tt.name, "")
			const lines = 2 + 11 // of the listener and of a connection
			for format, p := range formats {
				p.awaitLines(lines + len(header(format)))
				out := p.stop().stdout
				checkPrintable(t, out)
				qt.Check(t, qt.Equals(strings.Count(out, "\n"), lines+len(header(format))), qt.Commentf("%s", format))
				tt.check(t, format, out)
			}
		})
	}
}

// checkPrintable expects nothing that a terminal obeys, but newlines.
func checkPrintable(t testing.TB, out string) {
	t.Helper()
	qt.Check(t, qt.IsTrue(utf8.ValidString(out)), qt.Commentf("%q", out))
	for _, r := range out {
		control := r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e
		qt.Assert(t, qt.IsFalse(control), qt.Commentf("%q in %q", r, out))
	}
}

// check expects each record to have the name in the format's own way.
func (n *hostileName) check(t testing.TB, format, out string) {
	t.Helper()
	switch format {
	case "json":
		for _, r := range parseJSON(t, out) {
			qt.Check(t, qt.Equals(r.Comm, n.json))
		}
	case "csv":
		rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
		qt.Assert(t, qt.IsNil(err))
		column := slices.Index(rows[0], "comm")
		for _, row := range rows[1:] {
			qt.Check(t, qt.Equals(row[column], n.csv))
		}
	case "logfmt":
		for line := range strings.Lines(out) {
			m := logfmtComm.FindStringSubmatch(line)
			qt.Assert(t, qt.IsNotNil(m), qt.Commentf("%s", line))
			var name string
			qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(m[1]), &name)))
			qt.Check(t, qt.Equals(name, n.json))
		}
	case "table":
		for line := range strings.Lines(out) {
			qt.Check(t, qt.IsTrue(utf8.RuneCountInString(line) <= 80), qt.Commentf("%q", line))
			qt.Check(t, qt.IsTrue(strings.Contains(line, " "+n.table) || strings.HasPrefix(line, "TIME ")), qt.Commentf("%q", line))
		}
	}
}

var logfmtComm = regexp.MustCompile(` comm=("(?:[^"\\]|\\.)*") uid=`)
