package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/gzip"
)

// The logs that package output is held to.
var (
	transitionLog = filepath.Join("internal", "output", "testdata", "json.golden")
	connectionLog = filepath.Join("internal", "output", "testdata", "conns-json.golden")
)

func readLines(t testing.TB, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	return strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
}

// writeLog writes a file and returns its path.
func writeLog(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log.json")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(text), 0o600)))
	return path
}

func runArgs(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// keep returns the lines that have a part.
func keep(lines []string, part string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !strings.Contains(l, part) }), "")
}

func TestReplay(t *testing.T) {
	events, conns := readLines(t, transitionLog), readLines(t, connectionLog)
	events[len(events)-1] += "\n"
	conns[len(conns)-1] += "\n"
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"trace"}, strings.Join(events, "")},
		{[]string{"trace", "--state", "time_wait"}, keep(events, "TIME_WAIT")},
		{[]string{"trace", "--transition", "CLOSE:LISTEN"}, keep(events, "LISTEN")},
		{[]string{"trace", "--port", "8080"}, keep(events, `_port":8080`)},
		{[]string{"trace", "--lport", "443"}, keep(events, `"local_port":443`)},
		{[]string{"trace", "--rport", "5000-5999"}, keep(events, `"remote_port":5432`)},
		{[]string{"trace", "--addr", "2001:db8::/32"}, keep(events, "2001:db8:")},
		{[]string{"trace", "--addr", "192.168.100.201"}, keep(events, "192.168.100.201")},
		{[]string{"trace", "--netns", "4026531840"}, keep(events, `"netns":4026531840`)},
		{[]string{"trace", "--pid", "4194304", "--comm", "nginx"}, keep(events, `"nginx"`)},
		{[]string{"trace", "--uid", "0"}, keep(events, `"uid":0`)},
		{[]string{"trace", "--cgroup", "9007199254740995"}, keep(events, `"cgroup_id":"9007199254740995"`)},
		{[]string{"trace", "-4"}, keep(events, `"ipv4"`)},
		{[]string{"trace", "-6"}, keep(events, `"ipv6"`)},
		{[]string{"trace", "--count", "2"}, strings.Join(events[:2], "")},
		{[]string{"conns"}, strings.Join(conns, "")},
		{[]string{"conns", "--slow", "NEW_SYN_RECV:1m"}, keep(conns, "NEW_SYN_RECV")},
		{[]string{"conns", "--reason", "timeout"}, keep(conns, "timeout_handshake")},
		{[]string{"conns", "--reason", "reused", "--addr", "::1"}, keep(conns, `"::1"`)},
		{[]string{"conns", "-6", "--lport", "443"}, keep(conns, `"local_port":443`)},
	} {
		args := append(slices.Clone(tt.args), "--format", "json", "--replay", transitionLog, "--replay", connectionLog)
		code, stdout, stderr := runArgs(t, args...)
		qt.Check(t, qt.Equals(stdout, tt.want), qt.Commentf("%q", tt.args))
		qt.Check(t, qt.Equals(code, exitDone), qt.Commentf("%q: %s", tt.args, stderr))
	}
}

// What --rport hangs on is there, but for the local port that decides too.
func TestReplayHolds(t *testing.T) {
	const head = `{"time":"2026-11-22T09:08:07.060500000Z","cookie":"5","netns":1,"family":"ipv4","local_addr":"10.0.0.1",`
	syn := head + `"remote_addr":"10.0.0.2","remote_port":80,"old_state":"CLOSE","new_state":"SYN_SENT","owner":"unknown","role":"client","evidence":"kernel"}` + "\n"
	open := head + `"local_port":40000,"remote_addr":"10.0.0.2","remote_port":80,"old_state":"SYN_SENT","new_state":"ESTABLISHED","dwell_ns":7,"owner":"unknown","role":"client","evidence":"kernel"}` + "\n"
	log := writeLog(t, syn+open)
	_, stdout, stderr := runArgs(t, "trace", "--replay", log, "--format", "json", "--lport", "40000")
	qt.Check(t, qt.Equals(stdout, strings.Replace(syn, `"remote_addr"`, `"local_port":40000,"remote_addr"`, 1)+open))
	qt.Check(t, qt.Equals(stderr, "finwait: 2 transitions read, 2 matched, 2 printed, 0 damaged\n"))
}

// A log does not tell which byte it was that is not UTF-8.
func TestReplayComm(t *testing.T) {
	log := writeLog(t, strings.Replace(readLines(t, transitionLog)[0], `"comm":"nginx"`, `"comm":"caf\ufffd"`, 1))
	for name, want := range map[string]string{"caf\xe9": "1", "caf\xff": "1", "caf\ufffd": "1", "cafe": "0", "caf": "0"} {
		_, _, stderr := runArgs(t, "trace", "--replay", log, "--comm", name)
		qt.Check(t, qt.StringContains(stderr, "1 transitions read, "+want+" matched"), qt.Commentf("%q: %s", name, stderr))
	}
}

// Every format and the table are those of a live run.
func TestReplayFormats(t *testing.T) {
	for _, tt := range []struct{ command, log, format, golden string }{
		{"trace", transitionLog, "logfmt", "logfmt.golden"},
		{"conns", connectionLog, "logfmt", "conns-logfmt.golden"},
	} {
		code, stdout, _ := runArgs(t, tt.command, "--replay", tt.log, "--format", tt.format)
		qt.Check(t, qt.Equals(code, exitDone))
		want, err := os.ReadFile(filepath.Join("internal", "output", "testdata", tt.golden))
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(stdout, string(want)))
	}
	for _, command := range []string{"trace", "conns"} {
		_, stdout, _ := runArgs(t, command, "--replay", transitionLog, connectionLog)
		qt.Check(t, qt.IsTrue(strings.HasPrefix(stdout, map[string]string{"trace": "TIME ", "conns": "ENDED "}[command])), qt.Commentf("%s", stdout))
		qt.Check(t, qt.StringContains(stdout, "nginx"))
		_, stdout, _ = runArgs(t, command, "--replay", transitionLog, connectionLog, "--format", "csv", "--no-header")
		qt.Check(t, qt.IsTrue(strings.HasPrefix(stdout, "2026-")), qt.Commentf("%s", stdout))
	}
}

func TestReplayLedger(t *testing.T) {
	_, _, stderr := runArgs(t, "trace", "--replay", transitionLog, connectionLog, "--lport", "443")
	qt.Check(t, qt.Equals(stderr, `finwait: 9 transitions read, 1 matched, 1 printed, 0 damaged
finwait:   11 connections skipped, which finwait conns --replay prints
`))
	_, _, stderr = runArgs(t, "conns", "--replay", transitionLog, connectionLog, "--count", "3")
	qt.Check(t, qt.Equals(stderr, `finwait: 3 connections read, 3 matched, 3 printed, 0 damaged
finwait:   9 transitions skipped, which finwait trace --replay prints
`))
}

// Damaged lines are named, the first of them, and nothing in them reaches the
// terminal as it is.
func TestReplayDamage(t *testing.T) {
	good := readLines(t, transitionLog)[0]
	path := writeLog(t, good+"\x1b[2Jbad\n"+strings.Repeat("x", 300)+"\n"+strings.Repeat("\n{}\n", 10)+good+good[:50])
	code, stdout, stderr := runArgs(t, "trace", "--format", "json", "--replay", path)
	qt.Check(t, qt.Equals(code, exitDone))
	qt.Check(t, qt.Equals(stdout, good+good))
	lines := strings.Split(stderr, "\n")
	qt.Assert(t, qt.HasLen(lines, 8))
	qt.Check(t, qt.Equals(lines[0], "finwait: "+path+`:2: damaged: byte 1 is no {: \x1b[2Jbad`))
	qt.Check(t, qt.Equals(lines[1], "finwait: "+path+`:3: damaged: byte 1 is no {: `+strings.Repeat("x", 200)+"..."))
	qt.Check(t, qt.Equals(lines[2], "finwait: "+path+`:5: damaged: there is no time in it: {}`))
	qt.Check(t, qt.Equals(lines[5], "finwait: more lines are damaged; they are skipped and counted"))
	qt.Check(t, qt.Equals(lines[6], "finwait: 2 transitions read, 2 matched, 2 printed, 13 damaged"))
}

func TestReplayFailures(t *testing.T) {
	good := readLines(t, transitionLog)[0]
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := z.Write([]byte(good))
	qt.Assert(t, qt.IsNil(errors.Join(err, z.Flush()))) // and no end
	for _, tt := range []struct {
		path   string
		code   int
		stderr string
	}{
		{writeLog(t, ""), exitDone, "finwait: 0 transitions read, 0 matched, 0 printed, 0 damaged\n"},
		{writeLog(t, "x\n"), exitFailed, "(?s).*finwait: 0 transitions read, .* 1 damaged\nfinwait: nothing that was read is a record of finwait .*"},
		{"no\nsuch", exitFailed, `(?s)finwait: no\\x0asuch: no such file or directory\nfinwait: 0 transitions read, .*\nfinwait:   1 times that a file could not be opened, or the system did not let it be read on\nfinwait: not every file could be read\n`},
		{writeLog(t, zipped.String()), exitDone, `(?s)finwait: .*: after line 1: the compressed data is cut off\nfinwait: 1 transitions read, .*\nfinwait:   1 times that a file could not be read to its end\n`},
	} {
		code, _, stderr := runArgs(t, "trace", "--replay", tt.path)
		qt.Check(t, qt.Equals(code, tt.code), qt.Commentf("%s", stderr))
		qt.Check(t, qt.Matches(stderr, tt.stderr))
	}
}

func TestReplayMistakes(t *testing.T) {
	for message, args := range map[string][]string{
		"--replay and --demo contradict each other":          {"trace", "--demo"},
		"--replay and --duration contradict each other":      {"trace", "--duration", "1s"},
		"--replay and --evidence contradict each other":      {"conns", "--evidence", "timer"},
		"--replay and --buffer contradict each other":        {"conns", "--buffer", "1"},
		"--replay and --wait-timewait contradict each other": {"conns", "--wait-timewait=false"},
		"filter lets nothing through":                        {"trace", "--state", "LISTEN", "--transition", "SYN_SENT:CLOSE"},
		"no connection is in LISTEN":                         {"conns", "--slow", "LISTEN:1s"},
		`--format: unknown format "xml"`:                     {"trace", "--format", "xml"},
	} {
		code, stdout, stderr := runArgs(t, append(args, "--replay", transitionLog)...)
		qt.Check(t, qt.Equals(code, exitUsage))
		qt.Check(t, qt.Equals(stdout, ""))
		qt.Check(t, qt.StringContains(stderr, message))
	}
	code, _, stderr := runArgs(t, "trace", transitionLog)
	qt.Check(t, qt.Equals(code, exitUsage))
	qt.Check(t, qt.StringContains(stderr, `unknown command`))
}

// A pipe that nobody reads ends the run quietly, long before the log does.
func TestReplayBrokenPipe(t *testing.T) {
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"trace", "--replay", transitionLog}, brokenPipe{}, &stderr)
	qt.Check(t, qt.Equals(code, exitDone), qt.Commentf("%s", &stderr))
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }
