package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// agent is a finwait serve that runs.
type agent struct {
	*process
	addr string // where it answers HTTP
	log  string // its log of records
}

// agentDir is a folder for what an agent writes.
func agentDir(t testing.TB) string {
	t.Helper()
	netns.RequireRoot(t)
	return t.TempDir()
}

// serve starts an agent whose files are in dir, and returns when it is ready.
func serve(t testing.TB, dir string, args ...string) *agent {
	t.Helper()
	guards := watchGuards(t)
	if word := os.Getenv(evidenceVar); word != "" {
		args = append([]string{"--evidence", word}, args...)
	}
	a := &agent{log: filepath.Join(dir, "records.log")}
	args = append([]string{"serve", "--state-dir", filepath.Join(dir, "run"), "--log", a.log, "--listen", "127.0.0.1:0"}, args...)
	a.process = spawn(t, exec.Command(binary(t), args...))
	a.guards = guards
	a.await("agent", func() bool { return a.says(tracingAgent) || a.hasEnded() })
	if a.hasEnded() {
		t.Fatalf("ended: %s", a.stderr.String())
	}
	a.addr = regexp.MustCompile(`msg=listening address=(\S+)`).FindStringSubmatch(a.stderr.String())[1]
	return a
}

const tracingAgent = "level=INFO msg=tracing "

func (a *agent) says(what string) bool { return strings.Contains(a.stderr.String(), what) }

// get returns what the agent answers.
func (a *agent) get(path string) (status int, body string) {
	a.t.Helper()
	res, err := http.Get("http://" + a.addr + path)
	qt.Assert(a.t, qt.IsNil(err))
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	qt.Assert(a.t, qt.IsNil(err))
	return res.StatusCode, string(text)
}

// metrics returns the values of all series, by their names and labels.
func (a *agent) metrics() map[string]float64 {
	a.t.Helper()
	status, body := a.get("/metrics")
	qt.Assert(a.t, qt.Equals(status, 200))
	series := map[string]float64{}
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		name, value, found := strings.Cut(lines.Text(), "} ")
		if found {
			name += "}"
		} else if name, value, found = strings.Cut(lines.Text(), " "); !found || strings.HasPrefix(name, "#") {
			continue
		}
		if n, err := strconv.ParseFloat(value, 64); err == nil && !strings.HasPrefix(name, "#") {
			series[name] = n
		}
	}
	return series
}

// terminate ends the agent in an orderly way, and returns what it has said.
func (a *agent) terminate() string {
	a.t.Helper()
	qt.Assert(a.t, qt.IsNil(a.cmd.Process.Signal(unix.SIGTERM)))
	res := a.wait()
	qt.Assert(a.t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	return res.stderr
}

// logged is a line of the agent's log: a transition, or a connection, which has a
// walk.
type logged struct {
	Netns     uint32
	Cookie    string
	LocalPort int    `json:"local_port"`
	NewState  string `json:"new_state"`
	Walk      []any
}

// records returns those of the agent's log that are of the namespace. Every line is
// whole, but for one that is just being written.
func (a *agent) records(ns *netns.NS) []logged {
	a.t.Helper()
	text := readFile(a.t, a.log)
	text = text[:strings.LastIndexByte(text, '\n')+1]
	qt.Assert(a.t, qt.IsTrue(!a.hasEnded() || text == readFile(a.t, a.log)))
	var kept []logged
	for line := range strings.Lines(text) {
		var r logged
		qt.Assert(a.t, qt.IsNil(json.Unmarshal([]byte(line), &r)), qt.Commentf("%s", line))
		if r.Netns == ns.Inode() {
			kept = append(kept, r)
		}
	}
	return kept
}

// sinkLedger is what the agent says of a sink when it ends.
var sinkLedger = regexp.MustCompile(`msg=records sink=(\w+) put=(\d+) kept=(\d+) queue_full=(\d+) failed=(\d+)`)

// checkKept expects that each record was kept, and returns how many.
func checkKept(t testing.TB, stderr, sink string) (kept int) {
	t.Helper()
	for _, m := range sinkLedger.FindAllStringSubmatch(stderr, -1) {
		if m[1] != sink {
			continue
		}
		qt.Check(t, qt.Equals(m[2], m[3]), qt.Commentf("%s", m[0]))
		kept, _ = strconv.Atoi(m[3])
		return kept
	}
	t.Fatalf("nothing of the sink %s: %s", sink, stderr)
	return 0
}

// TestServe has an agent log and count 23 connections, answer for its health, and
// keep no privilege that it does not say it keeps. A second agent is refused.
func TestServe(t *testing.T) {
	dir := agentDir(t)
	ns := netns.New(t)
	a := serve(t, dir, "--netns", inodeWord(ns), "--records", "transitions,conns", "--wait-timewait=false")
	before := a.metrics()
	connectIn(t, ns, 8443, connections, unix.AF_INET, clientFirst)
	// Of a client there are five transitions up to TIME_WAIT, and each end is a
	// connection.
	lines := connections*(len(walkClientFirst)+5+2) + len(walkListener)
	a.await("records", func() bool { return len(a.records(ns)) >= lines })

	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok"} {
		status, body := a.get(path)
		qt.Check(t, qt.Equals(status, 200))
		qt.Check(t, qt.StringContains(body, want))
	}
	after := a.metrics()
	timeWaits := `finwait_transitions_total{new_state="time_wait",old_state="fin_wait2"}`
	qt.Check(t, qt.IsTrue(after[timeWaits]-before[timeWaits] >= connections), qt.Commentf("%v after %v", after[timeWaits], before[timeWaits]))
	qt.Check(t, qt.Equals(after[`finwait_sink_records_total{outcome="failed",record="transition",sink="log"}`], 0))
	checkCapabilities(t, a)

	second := finwait(t, "serve", "--state-dir", filepath.Join(dir, "run"), "--listen", "127.0.0.1:0")
	checkFailure(t, second, 1, fmt.Sprintf("pid %d", a.cmd.Process.Pid))

	said := a.terminate()
	qt.Check(t, qt.Equals(checkKept(t, said, "log"), strings.Count(readFile(t, a.log), "\n")))
	_, err := http.Get("http://" + a.addr + "/metrics")
	qt.Check(t, qt.IsNotNil(err))
	serve(t, dir).terminate() // nothing is in its way
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	return string(text)
}

// checkCapabilities expects that no thread has more than the agent says, and no
// program that it might run would have any.
func checkCapabilities(t testing.TB, a *agent) {
	t.Helper()
	qt.Assert(t, qt.IsTrue(a.says("privileges are dropped but for these")))
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", a.cmd.Process.Pid))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsTrue(len(threads) > 1))
	const kept = 1<<unix.CAP_BPF | 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_NET_ADMIN
	for _, path := range threads {
		status := readFile(t, path)
		for field, most := range map[string]uint64{"CapEff": kept, "CapPrm": kept, "CapInh": 0, "CapAmb": 0, "CapBnd": 0} {
			has, err := strconv.ParseUint(regexp.MustCompile(field + `:\s+([0-9a-f]+)`).FindStringSubmatch(status)[1], 16, 64)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(has&^most, 0), qt.Commentf("%s of %s", field, path))
		}
		qt.Check(t, qt.StringContains(status, "NoNewPrivs:\t1"))
	}
}

// TestServeReload changes the filter by SIGHUP: what is logged follows, what is
// counted does not change. A mistake, and a setting that cannot change, leave all as
// it was, and are said.
func TestServeReload(t *testing.T) {
	dir := agentDir(t)
	ns := netns.New(t)
	file := filepath.Join(dir, "finwait.yaml")
	write := func(text string) { qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(text), 0o600))) }
	write("lport: [8443]\n")
	a := serve(t, dir, "--config", file, "--netns", inodeWord(ns))
	before := a.metrics()

	reload := func(text, says string) {
		t.Helper()
		write(text)
		n := strings.Count(a.stderr.String(), says)
		qt.Assert(t, qt.IsNil(a.cmd.Process.Signal(unix.SIGHUP)))
		a.await(says, func() bool { return strings.Count(a.stderr.String(), says) > n })
	}
	server := connections*len(walkClientFirst) + len(walkListener)
	connectIn(t, ns, 8443, connections, unix.AF_INET, clientFirst)
	a.await("records", func() bool { return len(a.records(ns)) == server })
	reload("lport: [8444]\n", "the settings are read again")
	connectIn(t, ns, 8443, connections, unix.AF_INET, clientFirst)
	connectIn(t, ns, 8444, connections, unix.AF_INET, clientFirst)
	a.await("records", func() bool { return len(a.records(ns)) == 2*server })
	reload("lport: [8443]\nport-of-call: 1\n", "finwait.yaml:2: ")
	reload("lport: [8443]\nbuffer: 8\n", "buffer cannot change while the agent runs")
	connectIn(t, ns, 8443, connections, unix.AF_INET, clientFirst)
	connectIn(t, ns, 8444, connections, unix.AF_INET, clientFirst)
	a.await("records", func() bool { return len(a.records(ns)) == 3*server })

	after := a.metrics()
	for _, series := range []string{
		`finwait_transitions_total{new_state="time_wait",old_state="fin_wait2"}`,
		`finwait_dwell_seconds_count{state="fin_wait2"}`,
	} {
		qt.Check(t, qt.IsTrue(after[series]-before[series] >= 5*connections), qt.Commentf("%s: %v after %v", series, after[series], before[series]))
	}
	a.terminate()
	for _, r := range a.records(ns) {
		qt.Check(t, qt.IsTrue(r.LocalPort == 8443 || r.LocalPort == 8444))
	}
	qt.Check(t, qt.HasLen(a.records(ns), 3*server))
}

// TestServeCheck says whether the settings are right, and leaves nothing.
func TestServeCheck(t *testing.T) {
	dir := agentDir(t)
	file := filepath.Join(dir, "finwait.yaml")
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte("listen: 127.0.0.1:0\nlog: "+filepath.Join(dir, "records.log")+"\n"), 0o600)))
	check := func() result {
		return finwait(t, "serve", "--config", file, "--state-dir", filepath.Join(dir, "run"), "--check")
	}
	running := serve(t, dir)
	res := check() // of what that agent holds it takes nothing
	qt.Check(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	qt.Check(t, qt.StringContains(res.stdout, "the settings are right, and the agent works here"))
	running.terminate()
	for text, says := range map[string]string{
		"lisen: 127.0.0.1:0\n":            "finwait.yaml:1: ",
		"sample: 2\n":                     "finwait.yaml:1: --sample 2 is not a share",
		"log: /x\nlport: [0]\n":           "finwait.yaml:2: --lport: ",
		"records: everything\n":           "everything",
		"slow: [CLOSE_WAIT:1m]\n":         "--records conns",
		"listen: ''\n":                    "nothing to do",
		"listen: nowhere\n":               "--listen",
		"log: /x\nlog-max-size: 10\n":     "too small",
		"otlp: traces\n":                  "traces",
		"service-ports: 1-65535\n":        "at most",
		"pin: true\npin-path: /dev/shm\n": "not on a BPF file system",
	} {
		qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(text), 0o600)))
		res := check()
		qt.Check(t, qt.Equals(res.code, 2), qt.Commentf("%s: %s", text, res.stderr))
		qt.Check(t, qt.StringContains(res.stderr, says), qt.Commentf("%s", text))
	}
}
