package test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
)

// patience is how long a process may take for what it does at once. A loaded
// machine with two CPUs needs seconds to verify the programs of many at a time.
const patience = 60 * time.Second

// binaryDir is where the command is built, open to every user.
var binaryDir = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "finwait-test")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		panic(err)
	}
	return dir
})

// builtBinary names the command where it is built already, for a machine that
// cannot.
const builtBinary = "FINWAIT_TEST_BINARY"

var buildBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(builtBinary); path != "" {
		return path, nil
	}
	path := filepath.Join(binaryDir(), "finwait")
	// As make build does.
	for _, args := range [][]string{{"-tags", "noserve", "-o", path}, {"-o", path + "-serve"}} {
		build := exec.Command("go", slices.Concat([]string{"build", "-buildvcs=false"}, args, []string{"../cmd/finwait"})...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", errors.New(string(out) + err.Error())
		}
	}
	return path, nil
})

// binary returns the path of the built command.
func binary(t testing.TB) string {
	t.Helper()
	path, err := buildBinary()
	qt.Assert(t, qt.IsNil(err))
	return path
}

// buffer is a bytes.Buffer that can be read while it is written.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// process is a finwait that runs.
type process struct {
	t              testing.TB
	cmd            *exec.Cmd
	stdout, stderr buffer
	ended          chan struct{}
	guards         *guards // of one that traces
}

// result is what is left of one that has ended.
type result struct {
	code           int
	stdout, stderr string
}

// spawn starts cmd. Where cmd has a place for its output, that stays.
func spawn(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	qt.Assert(t, qt.IsNil(cmd.Start()))
	go func() {
		_ = cmd.Wait() // the exit code is in ProcessState
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // most have ended long since
		<-p.ended
	})
	return p
}

// trace starts finwait trace and returns when it traces.
func trace(t testing.TB, args ...string) *process {
	t.Helper()
	return follow(t, "trace", args...)
}

// follow starts a command that traces and returns when it does.
func follow(t testing.TB, command string, args ...string) *process {
	t.Helper()
	guards := watchGuards(t)
	if word := os.Getenv(evidenceVar); word != "" {
		args = append([]string{"--evidence", word}, args...)
	}
	p := spawn(t, exec.Command(binary(t), append([]string{command}, args...)...))
	p.guards = guards
	p.awaitTracing()
	return p
}

// traceIn traces what happens in ns.
func traceIn(t testing.TB, ns *netns.NS, args ...string) *process {
	t.Helper()
	return trace(t, append([]string{"--buffer", "1", "--netns", inodeWord(ns)}, args...)...)
}

func inodeWord(ns *netns.NS) string { return strconv.FormatUint(uint64(ns.Inode()), 10) }

// await polls until done says so.
func (p *process) await(what string, done func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.guards.excuse(p.t)
			p.t.Fatalf("no %s after %v\nstdout:\n%s\nstderr:\n%s", what, patience, p.stdout.String(), p.stderr.String())
		}
	}
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (p *process) awaitTracing() {
	p.t.Helper()
	p.await("tracing", func() bool {
		return strings.HasPrefix(p.stderr.String(), "finwait: tracing; ") || p.hasEnded()
	})
	if p.hasEnded() && !strings.HasPrefix(p.stderr.String(), "finwait: tracing; ") {
		p.t.Fatalf("ended: %s", p.stderr.String())
	}
}

// awaitLines waits until n lines have been printed.
func (p *process) awaitLines(n int) {
	p.t.Helper()
	p.await(strconv.Itoa(n)+" lines", func() bool { return strings.Count(p.stdout.String(), "\n") >= n })
}

// wait waits for the end.
func (p *process) wait() result {
	p.t.Helper()
	p.await("end", p.hasEnded)
	return result{p.cmd.ProcessState.ExitCode(), p.stdout.String(), p.stderr.String()}
}

// stop interrupts, and expects an end as if all was done.
func (p *process) stop() result {
	p.t.Helper()
	qt.Assert(p.t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
	res := p.wait()
	p.checkLedger(res)
	return res
}

// checkLedger is checkLedger of a process that traces.
func (p *process) checkLedger(res result) {
	p.t.Helper()
	if p.guards != nil && !cleanRun.MatchString(res.stderr) {
		p.guards.excuse(p.t)
	}
	checkLedger(p.t, res)
}

// runCommand runs cmd to its end.
func runCommand(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	return spawn(t, cmd).wait()
}

// finwait runs the command to its end.
func finwait(t testing.TB, args ...string) result {
	t.Helper()
	return runCommand(t, exec.Command(binary(t), args...))
}

// tracingLine and ledgerLine are all that a run without mishap says.
const (
	tracingLine = `finwait: tracing; [^\n]+\n`
	ledgerLine  = `finwait: (\d+) (?:transitions|connections) seen, (\d+) matched, (\d+) printed, (\d+) lost\n`
)

var cleanRun = regexp.MustCompile(`^` + tracingLine + ledgerLine + `$`)

// checkLedger expects the end of a run without mishap: the ledger and no
// other word, and in it as many as were printed.
func checkLedger(t testing.TB, res result) {
	t.Helper()
	qt.Assert(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	m := cleanRun.FindStringSubmatch(res.stderr)
	qt.Assert(t, qt.IsNotNil(m), qt.Commentf("%s", res.stderr))
	qt.Check(t, qt.Equals(m[4], "0"), qt.Commentf("lost; %s", res.stderr))
}

// ledger returns seen, matched, printed and lost.
func ledger(t testing.TB, stderr string) (n [4]int) {
	t.Helper()
	m := regexp.MustCompile(ledgerLine).FindStringSubmatch(stderr)
	qt.Assert(t, qt.IsNotNil(m), qt.Commentf("%s", stderr))
	for i := range n {
		var err error
		n[i], err = strconv.Atoi(m[i+1])
		qt.Assert(t, qt.IsNil(err))
	}
	return n
}

// checkFailure expects nothing on stdout and one sentence, with what it says.
func checkFailure(t testing.TB, res result, code int, says ...string) {
	t.Helper()
	qt.Check(t, qt.Equals(res.code, code), qt.Commentf("%s", res.stderr))
	qt.Check(t, qt.Equals(res.stdout, ""))
	checkSentence(t, res.stderr)
	for _, part := range says {
		qt.Check(t, qt.StringContains(res.stderr, part))
	}
}

// checkSentence expects one line of ours, and at most the hint of bad usage
// after it.
func checkSentence(t testing.TB, stderr string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	qt.Check(t, qt.IsTrue(strings.HasPrefix(stderr, "finwait: ")), qt.Commentf("%s", stderr))
	if len(lines) > 1 {
		qt.Check(t, qt.Matches(lines[1], `Try 'finwait.* --help'\.`))
	}
	qt.Check(t, qt.IsTrue(len(lines) <= 2), qt.Commentf("%s", stderr))
	for _, word := range []string{"panic", "goroutine", "<nil>", "%!"} {
		qt.Check(t, qt.Not(qt.StringContains(stderr, word)))
	}
}

// asNobody makes cmd run without any privilege.
func asNobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	return cmd
}
