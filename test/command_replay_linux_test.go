package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
)

// TestCommandReplay has finwait filter what happens, and what another finwait has
// recorded of the same. Both must tell the same.
func TestCommandReplay(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	filters := [][]string{
		{"--lport", "10000-65535"}, // which a client has only after its first transition
		{"--port", "7001,7003", "-4", "--transition", "CLOSE:SYN_SENT,FIN_WAIT2:TIME_WAIT"},
		{"--rport", "1-65535", "--addr", "::1", "--comm", filepath.Base(os.Args[0])[:min(15, len(filepath.Base(os.Args[0])))]},
		{"--uid", strconv.Itoa(actorsUID), "--state", "ESTABLISHED"},
	}
	all := traceIn(t, ns, "--format", "json")
	conns := follow(t, "conns", "--format", "json", "--buffer", "1", "--netns", inodeWord(ns), "--wait-timewait=false")
	ended := []string{"--reason", "rst_sent", "--slow", "LAST_ACK:1ns", "--rport", "10000-65535"}
	chosen := follow(t, "conns", append([]string{"--format", "json", "--buffer", "1", "--netns", inodeWord(ns), "--wait-timewait=false"}, ended...)...)
	live := make([]*process, len(filters))
	for i, args := range filters {
		live[i] = traceIn(t, ns, append([]string{"--format", "json"}, args...)...)
	}
	makeFilterTraffic(t, ns)

	all.awaitLines(filterTraffic)
	conns.awaitLines(filterConns)
	log := all.stop().stdout + conns.stop().stdout
	qt.Assert(t, qt.Equals(strings.Count(log, "\n"), filterTraffic+filterConns))
	qt.Check(t, qt.Equals(replayLog(t, log, "trace")+replayLog(t, log, "conns"), log))
	checkReport(t, log)
	for i, args := range filters {
		got := replayLog(t, log, "trace", args...)
		live[i].awaitLines(strings.Count(got, "\n"))
		want := live[i].stop().stdout
		lines := strings.Count(want, "\n")
		qt.Check(t, qt.IsTrue(lines > 0 && lines < filterTraffic), qt.Commentf("%v: %d lines are no test", args, lines))
		qt.Check(t, qt.DeepEquals(timeless(got), timeless(want)), qt.Commentf("%v", args))
	}
	got := replayLog(t, log, "conns", ended...)
	chosen.awaitLines(strings.Count(got, "\n"))
	want := chosen.stop().stdout
	lines := strings.Count(want, "\n")
	qt.Check(t, qt.IsTrue(lines >= connections && lines < filterConns), qt.Commentf("%v: %d lines are no test", ended, lines))
	qt.Check(t, qt.DeepEquals(timeless(got), timeless(want)))
}

// filterConns is how many connections makeFilterTraffic makes, each with two ends.
const filterConns = 2 * (4*connections + 1)

// checkReport holds what finwait report counts to what the records are.
func checkReport(t testing.TB, log string) {
	t.Helper()
	cmd := asNobody(exec.Command(binary(t), "report", "--format", "json", "-"))
	cmd.Stdin = strings.NewReader(log)
	res := runCommand(t, cmd)
	qt.Assert(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	var got struct {
		Transitions struct {
			Matrix []struct {
				Old   string `json:"old_state"`
				New   string `json:"new_state"`
				Count int    `json:"count"`
			} `json:"matrix"`
		} `json:"transitions"`
		Connections struct {
			Records int `json:"records"`
			Ends    []struct {
				Reason string `json:"reason"`
				Count  int    `json:"count"`
			} `json:"ends"`
		} `json:"connections"`
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(res.stdout), &got)))
	all := 0
	for _, cell := range got.Transitions.Matrix {
		all += cell.Count
		qt.Check(t, qt.Equals(strings.Count(log, `"old_state":"`+cell.Old+`","new_state":"`+cell.New+`"`), cell.Count))
	}
	qt.Check(t, qt.Equals(all, filterTraffic))
	qt.Check(t, qt.Equals(got.Connections.Records, filterConns))
	ended := 0
	for _, e := range got.Connections.Ends {
		ended += e.Count
		qt.Check(t, qt.Equals(e.Reason, "fin"))
	}
	qt.Check(t, qt.Equals(ended, filterConns))
}

// replayLog returns what a process without privileges reads of log.
func replayLog(t testing.TB, log, command string, args ...string) string {
	t.Helper()
	cmd := asNobody(exec.Command(binary(t), append([]string{command, "--replay", "-", "--format", "json"}, args...)...))
	cmd.Stdin = strings.NewReader(log)
	res := runCommand(t, cmd)
	qt.Assert(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	qt.Assert(t, qt.StringContains(res.stderr, " printed, 0 damaged\n"))
	return res.stdout
}

// measured matches what two tracers measure each for themselves, a few
// microseconds apart.
var measured = regexp.MustCompile(`"(time|start)":"[^"]+"|"(duration_ns|dwell_ns)":\d+`)

// cookieOf matches the socket of a line.
var cookieOf = regexp.MustCompile(`"cookie":"\d+"`)

// timeless returns the lines without what is measured, by socket, each in its
// order: two tracers may see two CPUs in another order.
func timeless(text string) []string {
	lines := slices.Collect(strings.Lines(measured.ReplaceAllString(text, `"$1$2"`)))
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(cookieOf.FindString(a), cookieOf.FindString(b)) })
	return lines
}
