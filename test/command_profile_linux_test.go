package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// profileLine is all that a profile without mishap says at its end.
const profileLine = `finwait: (\d+) transitions seen, (\d+) measured, (\d+) without a known time, 0 lost\n`

// profile starts finwait profile in ns and returns when it traces.
func profile(t testing.TB, ns *netns.NS, stdout *os.File, args ...string) *process {
	t.Helper()
	guards := watchGuards(t)
	if word := os.Getenv(evidenceVar); word != "" {
		args = append(args, "--evidence", word)
	}
	cmd := exec.Command(binary(t), append([]string{"profile", "--netns", inodeWord(ns)}, args...)...)
	if stdout != nil {
		cmd.Stdout = stdout
	}
	p := spawn(t, cmd)
	p.guards = guards
	p.awaitTracing()
	return p
}

// profileOutput is a line of finwait profile --format json.
type profileOutput struct {
	Since, Time time.Time
	By          string
	RowCount    int `json:"row_count"`
	Rows        []struct {
		State, Group string
		LocalPort    uint16 `json:"local_port"`
		PID          int
		Comm         string
		Count        uint64
		Unknown      uint64
		Max          time.Duration `json:"max_ns"`
		P50          time.Duration `json:"p50_ns"`
		Buckets      []struct {
			Le    time.Duration `json:"le_ns"`
			Count uint64
		}
	}
}

func parseProfile(t testing.TB, out string) (all []profileOutput) {
	t.Helper()
	for line := range strings.Lines(out) {
		var one profileOutput
		qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(line), &one)), qt.Commentf("%s", line))
		all = append(all, one)
	}
	return all
}

// leaving adds up how often each state but CLOSE was left.
func leaving(cells map[tracer.Transition]uint64) map[string]uint64 {
	states := map[string]uint64{}
	for tr, n := range cells {
		if tr.Old != tracer.StateClose {
			states[tr.Old.String()] += n
		}
	}
	return states
}

// TestCommandProfile interrupts a profile, which prints what there is.
func TestCommandProfile(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	p := profile(t, ns, nil, "--format", "json", "--by", "process")
	made := makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
	res := p.wait()
	qt.Check(t, qt.Equals(res.code, 0))
	qt.Check(t, qt.Matches(res.stderr, tracingLine+profileLine))
	all := parseProfile(t, res.stdout)
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Check(t, qt.Equals(all[0].By, "process"))
	qt.Check(t, qt.Equals(all[0].RowCount, len(all[0].Rows)))
	got := map[string]uint64{}
	for _, row := range all[0].Rows {
		got[row.State] += row.Count
		qt.Check(t, qt.Equals(row.Unknown, 0))
		qt.Check(t, qt.Equals(row.PID, os.Getpid()))
		qt.Check(t, qt.Equals(row.Buckets[len(row.Buckets)-1].Count, row.Count))
		qt.Check(t, qt.IsTrue(row.P50 <= row.Max && row.Max <= row.Buckets[len(row.Buckets)-1].Le))
	}
	qt.Check(t, qt.DeepEquals(got, leaving(made.Cells())))
}

// TestCommandProfileIntervals adds up what is printed after each interval.
func TestCommandProfileIntervals(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	const interval, duration = 300 * time.Millisecond, 2 * time.Second
	p := profile(t, ns, nil, "--format", "json", "--interval", interval.String(), "--duration", duration.String(), "--state", "CLOSE_WAIT")
	for range 2 {
		makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
		time.Sleep(interval)
	}
	res := p.wait()
	qt.Check(t, qt.Equals(res.code, 0))
	all := parseProfile(t, res.stdout)
	qt.Check(t, qt.IsTrue(len(all) >= 3), qt.Commentf("%d intervals", len(all)))
	total := uint64(0)
	for i, one := range all {
		if i > 0 {
			qt.Check(t, qt.Equals(one.Since, all[i-1].Time))
		}
		for _, row := range one.Rows {
			qt.Check(t, qt.Equals(row.State, "CLOSE_WAIT"))
			qt.Check(t, qt.Equals(row.Group, "one"))
			total += row.Count
		}
	}
	qt.Check(t, qt.Equals(total, 2*connections))
}

// TestCommandProfileTable has nothing to show but the headings, and then has.
func TestCommandProfileTable(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	p := profile(t, ns, nil, "--duration", "100ms")
	res := p.wait()
	qt.Check(t, qt.Equals(res.code, 0))
	qt.Check(t, qt.Equals(res.stdout, "STATE        SERVICE                COUNT UNKNOWN   P50   P90   P99 P99.9   MAX\n"))

	p = profile(t, ns, nil, "--top", "1", "--transition", "FIN_WAIT2:TIME_WAIT")
	makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
	res = p.wait()
	lines := strings.Split(res.stdout, "\n")
	qt.Check(t, qt.Matches(lines[1], `FIN_WAIT2    clients                   23       0( +\S+){5}`))
	qt.Check(t, qt.Matches(lines[2], ` +\S+ - +\S+ +\d+ #+`))
	for _, line := range lines {
		qt.Check(t, qt.IsTrue(len([]rune(line)) < 80), qt.Commentf("%s", line))
	}
}

// TestCommandProfileNobodyReads writes to a full disk, and to a pipe that
// nobody reads.
func TestCommandProfileNobodyReads(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	res := profile(t, ns, devFull(t), "--duration", "100ms").wait()
	qt.Check(t, qt.Equals(res.code, 1))
	qt.Check(t, qt.StringContains(res.stderr, "finwait: write profile: "))

	r, w, err := os.Pipe()
	qt.Assert(t, qt.IsNil(err))
	p := profile(t, ns, w, "--interval", "100ms", "--format", "json")
	qt.Assert(t, qt.IsNil(r.Close()))
	qt.Assert(t, qt.IsNil(w.Close()))
	res = p.wait()
	qt.Check(t, qt.Equals(res.code, 0))
	qt.Check(t, qt.Matches(res.stderr, tracingLine+profileLine))
}
