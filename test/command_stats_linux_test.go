package test

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// statsHead begins each report of --stats, and the others are the lines of it.
const (
	statsHead     = "finwait: own cost after "
	statsProcess  = statsHead + `\S+\n` + `finwait:   CPU: [^\n]+ \(\S+ user, \S+ system\)\n` + statsMemory
	statsMemory   = `finwait:   memory: [1-9]\d*\.\d MiB resident \(VmRSS\), [1-9]\d*\.\d MiB at the most \(VmHWM\)\n`
	statsRing     = `finwait:   ring (\w+): (\d+) of (\d+) bytes waited at the most \(<?\d+\.\d%\)\n`
	statsPrograms = `finwait:   programs[^\n]+\n(?:finwait:     [^\n]+\n)*`
)

// reports cuts what was written to standard error into what --stats has written,
// and the rest.
func reports(stderr string) (reports []string, rest string) {
	within := false
	for line := range strings.Lines(stderr) {
		switch {
		case strings.HasPrefix(line, statsHead):
			reports = append(reports, line)
			within = true
		case within && strings.HasPrefix(line, "finwait:   "):
			reports[len(reports)-1] += line
		default:
			rest += line
			within = false
		}
	}
	return reports, rest
}

// number returns what the group of the pattern says in text.
func number(t testing.TB, text, pattern string) uint64 {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	qt.Assert(t, qt.IsNotNil(m), qt.Commentf("%s in\n%s", pattern, text))
	n, err := strconv.ParseUint(m[1], 10, 64)
	qt.Assert(t, qt.IsNil(err))
	return n
}

// awaitReports waits for n whole reports, each of which is written at once.
func (p *process) awaitReports(n int) {
	p.t.Helper()
	p.await(strconv.Itoa(n)+" reports", func() bool { return strings.Count(p.stderr.String(), statsHead) >= n })
}

// TestCommandStats has the kernel measure, and asks for the cost by a signal
// when 23 connections have been printed. The tracepoint's programs run for ten
// transitions of each, whoever's they are.
func TestCommandStats(t *testing.T) {
	netns.RequireRoot(t)
	measuring, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	qt.Assert(t, qt.IsNil(err))
	defer measuring.Close()
	ns := netns.New(t)
	p := traceIn(t, ns, "--stats", "--lport", "8443", "--format", "json")
	connectIn(t, ns, 8443, connections, unix.AF_INET, clientFirst)
	p.awaitLines(connections*len(walkClientFirst) + len(walkListener))
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(unix.SIGUSR1)))
	p.awaitReports(1)
	qt.Check(t, qt.IsFalse(p.hasEnded()))
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
	res := p.wait()

	told, rest := reports(res.stderr)
	checkLedger(t, result{res.code, res.stdout, rest})
	qt.Assert(t, qt.HasLen(told, 2), qt.Commentf("%s", res.stderr))
	for _, r := range told {
		qt.Check(t, qt.Matches(r, statsProcess+`(?:finwait:   maps: \d+\.\d MiB of kernel memory\n)?`+statsRing+statsPrograms))
		checkProgramRuns(t, r)
		qt.Check(t, qt.Equals(number(t, r, `ring events: \d+ of (\d+) bytes`), 1<<20))
		waited := number(t, r, `ring events: (\d+) of`)
		qt.Check(t, qt.IsTrue(waited > 0 && waited < 1<<20), qt.Commentf("%d", waited))
	}
	const all = `programs, while the kernel measured them: (\d+) runs`
	qt.Check(t, qt.IsTrue(number(t, told[1], all) >= number(t, told[0], all)))
}

// checkProgramRuns expects the tracepoint's programs to have run for every
// transition that there was, and the sum to be right.
func checkProgramRuns(t testing.TB, report string) {
	t.Helper()
	program := regexp.MustCompile(`finwait:     (\w+) \((\S+)\): (\d+) runs?, \S+, \d+ ns each\n`)
	var sum uint64
	found := 0
	for _, m := range program.FindAllStringSubmatch(report, -1) {
		n, err := strconv.ParseUint(m[3], 10, 64)
		qt.Assert(t, qt.IsNil(err))
		sum += n
		if strings.HasPrefix(m[1], "set_state") {
			found++
			qt.Check(t, qt.Equals(m[2], "tp_btf/inet_sock_set_state"))
			qt.Check(t, qt.IsTrue(n >= 10*connections), qt.Commentf("%s: %d runs", m[1], n))
		}
	}
	qt.Check(t, qt.IsTrue(found > 0), qt.Commentf("%s", report))
	qt.Check(t, qt.Equals(sum, number(t, report, `programs, while the kernel measured them: (\d+) runs`)))
}

// TestCommandStatsRings expects the rings that a command has, and no others.
func TestCommandStatsRings(t *testing.T) {
	netns.RequireRoot(t)
	for _, tt := range []struct {
		line  string
		rings []string
	}{
		{"trace --duration 100ms --buffer 1", []string{"events"}},
		{"conns --duration 100ms --buffer 1", []string{"conns"}},
		{"profile --duration 100ms", nil},
		{"stuck", nil},
	} {
		t.Run(tt.line, func(t *testing.T) {
			res := finwait(t, append(strings.Fields(tt.line), "--stats")...)
			qt.Assert(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
			told, _ := reports(res.stderr)
			qt.Assert(t, qt.HasLen(told, 1))
			qt.Check(t, qt.IsTrue(strings.HasSuffix(res.stderr, told[0])), qt.Commentf("%s", res.stderr))
			var rings []string
			for _, m := range regexp.MustCompile(statsRing).FindAllStringSubmatch(told[0], -1) {
				rings = append(rings, m[1])
			}
			qt.Check(t, qt.DeepEquals(rings, tt.rings))
			qt.Check(t, qt.StringContains(told[0], "finwait:   programs"))
		})
	}
}

// TestCommandStatsProcess expects of commands that trace nothing, and of one
// that may not, what the process costs.
func TestCommandStatsProcess(t *testing.T) {
	for _, line := range []string{"count --netns self --stats", "--stats explain TIME_WAIT"} {
		res := finwait(t, strings.Fields(line)...)
		qt.Check(t, qt.Equals(res.code, 0))
		qt.Check(t, qt.Matches(res.stderr, statsProcess), qt.Commentf(line))
	}
	checkFailure(t, finwait(t, "count", "--stats", "--by", "foo"), 2, `"foo"`)

	netns.RequireRoot(t)
	res := runCommand(t, asNobody(exec.Command(binary(t), "trace", "--stats")))
	told, rest := reports(res.stderr)
	checkFailure(t, result{res.code, res.stdout, rest}, 1)
	qt.Assert(t, qt.HasLen(told, 1))
	qt.Check(t, qt.Matches(told[0], statsProcess))
}

// TestCommandStatsWatch asks a run that traces nothing, twice.
func TestCommandStatsWatch(t *testing.T) {
	p := spawn(t, exec.Command(binary(t), "count", "--netns", "self", "--watch", "1m", "--stats"))
	p.await("counts", func() bool { return p.stdout.String() != "" || p.hasEnded() })
	for n := 1; n <= 2; n++ {
		qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(unix.SIGUSR1)))
		p.awaitReports(n)
	}
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
	res := p.wait()
	qt.Check(t, qt.Equals(res.code, 0))
	qt.Check(t, qt.Matches(res.stderr, `(?:`+statsProcess+`){3}`), qt.Commentf("%s", res.stderr))
}
