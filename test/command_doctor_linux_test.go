package test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// sickNetns has what the doctor finds without any help: nearly as much TIME_WAIT as
// there may be.
func sickNetns(t testing.TB) *netns.NS {
	t.Helper()
	ns := inhabited(t)
	ns.Sysctl("net.ipv4.tcp_max_tw_buckets", strconv.Itoa(connections+5))
	made := makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
	qt.Assert(t, qt.Equals(made.Cells()[tracer.Transition{Old: tracer.StateFinWait2, New: tracer.StateTimeWait}], connections))
	return ns
}

const sickID = "time-wait-limit"

// parseDiagnosis reads what doctor has printed as JSON.
func parseDiagnosis(t testing.TB, res result) *diagnosis {
	t.Helper()
	d := &diagnosis{code: res.code, stderr: res.stderr}
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(res.stdout), d)), qt.Commentf("%s%s", res.stdout, res.stderr))
	return d
}

// watching starts finwait doctor with a terminal for what it says, and returns when it
// watches.
func watching(t testing.TB, args ...string) *process {
	t.Helper()
	master, slave := openTerminal(t)
	cmd := exec.Command(binary(t), slices.Concat([]string{"doctor", "--format", "json"}, args)...)
	cmd.Stderr = slave
	p := spawn(t, cmd)
	qt.Assert(t, qt.IsNil(slave.Close()))
	go func() { _, _ = io.Copy(&p.stderr, master) }() // ends with an error, when the slave is closed
	p.await("watching", func() bool { return strings.Contains(p.stderr.String(), "finwait: watching ") || p.hasEnded() })
	if p.hasEnded() {
		t.Fatalf("ended: %s", p.stderr.String())
	}
	return p
}

// openTerminal returns both ends of a terminal.
func openTerminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)))
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	qt.Assert(t, qt.IsNil(err))
	return master, slave
}

// TestCommandDoctorExit expects the exit code to say what was found, whoever reads it.
func TestCommandDoctorExit(t *testing.T) {
	netns.RequireRoot(t)
	healthy, sick := inhabited(t), sickNetns(t)
	doctor := func(out *os.File, args ...string) result {
		cmd := exec.Command(binary(t), append([]string{"doctor", "--for", "1s"}, args...)...)
		if out != nil {
			cmd.Stdout = out
		}
		return runCommand(t, cmd)
	}
	res := doctor(nil, "--netns", healthy.Path())
	qt.Check(t, qt.Equals(res.code, 0))
	qt.Check(t, qt.Equals(res.stderr, ""))
	qt.Check(t, qt.Matches(res.stdout, `healthy: 1\.\d s watched, 1 network namespace, 0 sockets, 0\.0 sockets opened/s\n`))

	res = doctor(nil, "--netns", sick.Path())
	qt.Check(t, qt.Equals(res.code, 3))
	qt.Check(t, qt.Equals(res.stderr, ""))
	qt.Check(t, qt.StringContains(res.stdout, "\nwarning    "+sickID+": "))
	qt.Check(t, qt.StringContains(res.stdout, "netns "+inodeWord(sick)+": 23 sockets in TIME_WAIT, of 28 that there may be\n"))
	qt.Check(t, qt.Matches(res.stdout, `(?s).*\n  sysctl:  nsenter \S+ .*sysctl -w net\.ipv4\.tcp_max_tw_buckets=\d+\n  check: .*`))
	qt.Check(t, qt.StringContains(res.stdout, "finwait doctor --explain"))
	for line := range strings.Lines(res.stdout) {
		qt.Check(t, qt.IsTrue(len([]rune(line)) <= 80), qt.Commentf("%s", line))
	}

	for want, ns := range map[int]*netns.NS{0: healthy, 3: sick} {
		r, w, err := os.Pipe()
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(r.Close()))
		res = doctor(w, "--netns", ns.Path())
		qt.Assert(t, qt.IsNil(w.Close()))
		qt.Check(t, qt.Equals(res, result{want, "", ""}))
		res = doctor(devFull(t), "--netns", ns.Path())
		checkFailure(t, res, 1, "write findings", "no space left on device")
	}

	checkFailure(t, doctor(nil, "--source", "agent", "--pin-path", "/sys/fs/bpf/nosuch"), 1, "no tracer keeps its counters there")
	checkFailure(t, doctor(nil, "--source", "agent", "--netns", sick.Path()), 2, "--source agent and --netns contradict each other")
	checkFailure(t, doctor(nil, "--netns", "1"), 1, "network namespace", "1")
	res = doctor(nil, "--replay", "/nosuch")
	qt.Check(t, qt.Equals(res.code, 1))
	qt.Check(t, qt.Equals(res.stdout, ""))
	qt.Check(t, qt.StringContains(res.stderr, "/nosuch: no such file"))
	qt.Check(t, qt.StringContains(res.stderr, "finwait:   1 times that a file could not be opened"))
	qt.Check(t, qt.IsFalse(strings.Contains(res.stderr, "to its end")))
}

// TestCommandDoctorExplain expects each id of the list to be explained, in both formats.
func TestCommandDoctorExplain(t *testing.T) {
	list := finwait(t, "doctor", "--list")
	qt.Check(t, qt.Equals(list.code, 0))
	all := finwait(t, "doctor", "--list", "--format", "json")
	qt.Check(t, qt.Equals(all.code, 0))
	entries := strings.Count(list.stdout, "\n") - strings.Count(list.stdout, "\n ") // but for lines that go on
	qt.Check(t, qt.Equals(entries, strings.Count(all.stdout, "\n")+1))              // and the header
	completed := finwait(t, "__complete", "doctor", "--explain", "").stdout
	for line := range strings.Lines(all.stdout) {
		var rule struct{ ID, Severity, Title, When, Why, Check string }
		qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(line), &rule)))
		for _, text := range []string{rule.ID, rule.Severity, rule.Title, rule.When, rule.Why, rule.Check} {
			qt.Check(t, qt.IsTrue(text != "" && !strings.ContainsAny(text, "\n\t")), qt.Commentf("%s: %q", rule.ID, text))
		}
		qt.Check(t, qt.StringContains(list.stdout, rule.ID+" "))
		qt.Check(t, qt.StringContains(completed, rule.ID+"\n"))
		res := finwait(t, "doctor", "--explain", rule.ID, "--format", "json")
		qt.Check(t, qt.Equals(res, result{0, line, ""}))
		res = finwait(t, "doctor", "--explain", strings.ToUpper(rule.ID))
		qt.Check(t, qt.Equals(res.code, 0))
		qt.Check(t, qt.IsTrue(strings.HasPrefix(res.stdout, rule.ID+": ")), qt.Commentf("%s", res.stdout))
	}
}

// Several are explained one after the other.
func TestCommandDoctorExplainSeveral(t *testing.T) {
	explain := func(args ...string) string {
		res := finwait(t, append([]string{"doctor"}, args...)...)
		qt.Check(t, qt.Equals(res.code, 0))
		qt.Check(t, qt.Equals(res.stderr, ""))
		return res.stdout
	}
	one, other := explain("--explain", "syn-flood"), explain("--explain", "slow-accept")
	qt.Check(t, qt.Equals(explain("--explain", "syn-flood,slow-accept"), one+"\n"+other))
	qt.Check(t, qt.Equals(explain("--explain", "slow-accept", "--explain", "syn-flood"), other+"\n"+one))
	lines := explain("--format", "json", "--explain", "syn-flood,slow-accept")
	qt.Check(t, qt.Equals(lines, explain("--format", "json", "--explain", "syn-flood")+explain("--format", "json", "--explain", "slow-accept")))
}

func TestCommandDoctorStats(t *testing.T) {
	netns.RequireRoot(t)
	for _, tt := range []struct {
		args []string
		code int
	}{
		{[]string{"--netns", sickNetns(t).Path(), "--for", "1s"}, 3},
		{[]string{"--netns", inhabited(t).Path(), "--for", "1s"}, 0},
	} {
		res := finwait(t, append([]string{"doctor", "--stats"}, tt.args...)...)
		qt.Check(t, qt.Equals(res.code, tt.code))
		told, rest := reports(res.stderr)
		qt.Assert(t, qt.HasLen(told, 1), qt.Commentf("%s", res.stderr))
		qt.Check(t, qt.Equals(rest, ""))
		qt.Check(t, qt.StringContains(told[0], "finwait:   ring events: "))
		qt.Check(t, qt.StringContains(told[0], "finwait:   programs"))
	}
}

// TestCommandDoctorInterrupt ends the watching: what there is to say is said.
func TestCommandDoctorInterrupt(t *testing.T) {
	netns.RequireRoot(t)
	for want, ns := range map[int]*netns.NS{0: inhabited(t), 3: sickNetns(t)} {
		p := watching(t, "--for", "1h", "--netns", ns.Path())
		qt.Check(t, qt.StringContains(p.stderr.String(), "finwait: watching for 1h"))
		qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
		d := parseDiagnosis(t, p.wait())
		qt.Check(t, qt.Equals(d.code, want))
		qt.Check(t, qt.IsTrue(d.WatchedSeconds > 0 && d.WatchedSeconds < patience.Seconds()))
		qt.Check(t, qt.Equals(d.Traffic.Source, "kernel"))
		if want == 3 {
			d.find(t, sickID)
		}
	}
}

// TestCommandDoctorNotRoot has a user look who may do nothing: the own namespace is
// judged, and what could not be seen is named.
func TestCommandDoctorNotRoot(t *testing.T) {
	netns.RequireRoot(t)
	sick, other := sickNetns(t), inhabited(t)
	listenIn(t, sick) // of root, so that its owner is hidden
	listenIn(t, other)
	doctor := func(args ...string) *diagnosis {
		cmd := exec.Command("nsenter", slices.Concat([]string{"--net=" + sick.Path(), "--setuid", "65534", "--setgid", "65534", "--",
			binary(t), "doctor", "--for", "1s", "--format", "json"}, args)...)
		return parseDiagnosis(t, runCommand(t, cmd))
	}
	for _, args := range [][]string{nil, {"--netns", "self"}} {
		d := doctor(args...)
		qt.Check(t, qt.Equals(d.code, 3))
		qt.Check(t, qt.Equals(d.stderr, ""))
		f := d.find(t, sickID)
		qt.Check(t, qt.Equals(f.Netns, sick.Inode()))
		qt.Check(t, qt.Equals(f.Facts["time_wait_sockets"], any(float64(connections))))
		qt.Check(t, qt.Equals(d.Sockets["LISTEN"], 1))
		qt.Check(t, qt.IsNil(d.Traffic))
		var unseen strings.Builder
		for _, u := range d.Unseen {
			unseen.WriteString(u.What + ": " + u.Why + "\n")
		}
		for _, says := range []string{"what happened to connections", "needs root, or CAP_BPF", "may not be looked into, which takes root"} {
			qt.Check(t, qt.StringContains(unseen.String(), says))
		}
		if args == nil {
			qt.Check(t, qt.StringContains(unseen.String(), "network namespaces"))
		}
	}

	// What cannot be looked at is called as the user does.
	res := runCommand(t, asNobody(exec.Command(binary(t), "doctor", "--for", "1s", "--netns", other.Path())))
	checkFailure(t, res, 2, `network namespace "`+other.Path()+`": `, "takes root, or CAP_SYS_PTRACE")
	res = runCommand(t, asNobody(exec.Command(binary(t), "doctor", "--for", "1s", "--netns", inodeWord(other))))
	checkFailure(t, res, 1, "network namespace "+inodeWord(other)+": ", "takes root, or CAP_SYS_PTRACE and CAP_SYS_ADMIN")

	res = runCommand(t, asNobody(exec.Command(binary(t), "doctor", "--source", "kernel", "--for", "1s")))
	checkFailure(t, res, 1, "needs root, or CAP_BPF, CAP_PERFMON")
}

// TestCommandDoctorTraffic has connections counted by everybody who can: while they are
// made by a tracer and by an agent, and afterwards from logs of them.
func TestCommandDoctorTraffic(t *testing.T) {
	dir, pins := agentDir(t), bpffs(t)
	ns := inhabited(t)
	serve(t, dir, "--pin", "--pin-path", pins)
	events := traceIn(t, ns, "--format", "json")
	conns := follow(t, "conns", "--format", "json", "--buffer", "1", "--netns", inodeWord(ns), "--wait-timewait=false")

	first, err := tracer.PinnedCounts(pins)
	qt.Assert(t, qt.IsNil(err))
	byKernel := watching(t, "--for", "1h", "--netns", ns.Path(), "--pin-path", pins)
	byAgent := watching(t, "--for", "1h", "--source", "agent", "--pin-path", pins)
	byEither := watching(t, "--for", "1h", "--pin-path", pins)
	made := makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
	events.awaitLines(sum(made.Cells()))
	conns.awaitLines(2 * connections)
	live := map[string]*diagnosis{}
	for name, p := range map[string]*process{"kernel": byKernel, "agent": byAgent, "either": byEither} {
		qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
		live[name] = parseDiagnosis(t, p.wait())
	}
	last, err := tracer.PinnedCounts(pins)
	qt.Assert(t, qt.IsNil(err))

	qt.Check(t, qt.Equals(live["kernel"].Traffic.Source, "kernel"))
	qt.Check(t, qt.Equals(live["kernel"].Traffic.Opened, 2*connections))
	qt.Check(t, qt.Equals(live["agent"].Traffic.Source, "agent"))
	qt.Check(t, qt.Equals(live["either"].Traffic.Source, "kernel"))
	// Those of the whole host have also what others do.
	var opened uint64
	counted := last.Counters.Sub(&first.Counters)
	for tr, n := range counted.All() {
		if tr.New == tracer.StateEstablished {
			opened += n
		}
	}
	for _, name := range []string{"agent", "either"} {
		got := live[name].Traffic.Opened
		qt.Check(t, qt.IsTrue(got >= 2*connections && got <= opened), qt.Commentf("%s: %d of %d", name, got, opened))
	}

	logs := map[string]string{"events.json": events.stop().stdout, "conns.json": conns.stop().stdout}
	for name, text := range logs {
		path := filepath.Join(t.TempDir(), name)
		qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(text), 0o644)))
		none := runCommand(t, asNobody(exec.Command(binary(t), "doctor", "--format", "json", "--log-only", "--replay", "-")))
		checkFailure(t, none, 1, "the log has no record to go by")
		cmd := asNobody(exec.Command(binary(t), "doctor", "--format", "json", "--log-only", "--replay", "-"))
		cmd.Stdin = bytes.NewBufferString(text)
		res := runCommand(t, cmd)
		d := parseDiagnosis(t, res)
		qt.Check(t, qt.Equals(d.stderr, ""))
		qt.Check(t, qt.Equals(d.Traffic.Source, "log"))
		qt.Check(t, qt.Equals(d.Traffic.Opened, 2*connections), qt.Commentf("%s", name))
		qt.Check(t, qt.HasLen(d.Unseen, 0))
		qt.Check(t, qt.IsFalse(strings.Contains(res.stdout, `"sockets"`)), qt.Commentf("it looks at this host"))
		qt.Check(t, qt.IsFalse(strings.Contains(res.stdout, `"time"`)))

		d = runDoctor(t, "--for", "1s", "--netns", ns.Path(), "--replay", path)
		qt.Check(t, qt.Equals(d.Traffic.Opened, 2*connections))
		qt.Check(t, qt.Equals(d.Sockets["TIME_WAIT"], connections))
		d = runDoctor(t, "--for", "1s", "--netns", inhabited(t).Path(), "--replay", path)
		qt.Check(t, qt.Equals(d.Traffic.Opened, 0)) // all is another namespace's
	}
	both := exec.Command(binary(t), "doctor", "--format", "json", "--log-only", "--replay", "-")
	both.Stdin = bytes.NewBufferString(logs["conns.json"] + logs["events.json"])
	res := runCommand(t, both)
	qt.Check(t, qt.Equals(parseDiagnosis(t, res).Traffic.Opened, 2*connections))
	qt.Check(t, qt.Equals(res.stderr, "finwait:   46 connections skipped, since there are transitions\n"))
}

// TestCommandDoctorNetnsChange makes and ends namespaces meanwhile: they are not judged,
// and nothing fails.
func TestCommandDoctorNetnsChange(t *testing.T) {
	netns.RequireRoot(t)
	stays := sickNetns(t)
	var p *process
	var inode uint32
	t.Run("ends", func(inner *testing.T) {
		inode = sickNetns(inner).Inode()
		p = watching(t, "--for", "1h")
	})
	comes := sickNetns(t)
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
	d := parseDiagnosis(t, p.wait())
	qt.Check(t, qt.Equals(d.code, 3))
	var found []uint32
	for _, f := range d.Findings {
		if f.ID == sickID {
			found = append(found, f.Netns)
		}
	}
	qt.Check(t, qt.IsTrue(slices.Contains(found, stays.Inode())))
	qt.Check(t, qt.IsFalse(slices.Contains(found, comes.Inode())))
	qt.Check(t, qt.IsFalse(slices.Contains(found, inode)))
	qt.Check(t, qt.IsTrue(time.Duration(d.WatchedSeconds*float64(time.Second)) < patience))
}
