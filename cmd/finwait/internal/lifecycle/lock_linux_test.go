package lifecycle

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// agentDir makes this binary one that is the agent, or asks who is, as the
// variables that follow say. It says what came of it and ends with its input.
const (
	agentDir  = "FINWAIT_TEST_AGENT_DIR"
	agentAsks = "FINWAIT_TEST_AGENT_ASKS"
	agentComm = "FINWAIT_TEST_AGENT_COMM"
)

func beAgent(dir string) error {
	if os.Getenv(agentAsks) != "" {
		holder, err := running(dir)
		if holder == nil {
			fmt.Println("none", err)
			return err
		}
		fmt.Println(holder, err)
		return err
	}
	if comm := os.Getenv(agentComm); comm != "" {
		if err := os.WriteFile("/proc/self/comm", []byte(comm), 0); err != nil {
			return err
		}
	}
	l, err := Acquire(dir, "1.2.0")
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, l.Release())
}

type agent struct {
	cmd *exec.Cmd
	in  io.Closer
}

// startAgent starts another process that is the agent, which it is on return.
func startAgent(t testing.TB, dir string, env ...string) *agent {
	t.Helper()
	cmd := exec.Command(executable(t))
	cmd.Env = append(append(os.Environ(), agentDir+"="+dir), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	qt.Assert(t, qt.IsNil(err))
	out, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(cmd.Start()))
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(line, "ready\n"))
	return &agent{cmd, in}
}

func (a *agent) kill(t testing.TB) {
	t.Helper()
	qt.Assert(t, qt.IsNil(a.cmd.Process.Kill()))
	qt.Assert(t, qt.ErrorMatches(a.cmd.Wait(), "signal: killed"))
}

func checkNobody(t testing.TB, dir string) {
	t.Helper()
	holder, err := running(dir)
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.IsNil(holder))
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "finwait")
	checkNobody(t, dir)
	began := time.Now().Truncate(time.Second)
	a := startAgent(t, dir, agentComm+"=f \x1b[31m)w")

	holder, err := running(dir)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNotNil(holder))
	qt.Check(t, qt.Equals(holder.PID, a.cmd.Process.Pid))
	qt.Check(t, qt.Equals(holder.Comm, "f [31m)w"))
	qt.Check(t, qt.Equals(holder.Version, "1.2.0"))
	qt.Check(t, qt.IsFalse(holder.Since.Before(began)))

	_, err = Acquire(dir, "1.3.0")
	var held *HeldError
	qt.Assert(t, qt.ErrorAs(err, &held))
	qt.Check(t, qt.Equals(err.Error(), fmt.Sprintf("another agent runs on this host: pid %d (f [31m)w 1.2.0) since %s holds %s (stop it first)",
		a.cmd.Process.Pid, holder.Since.Format(time.RFC3339), dir)))

	qt.Assert(t, qt.IsNil(a.in.Close()))
	qt.Assert(t, qt.IsNil(a.cmd.Wait()))
	checkNobody(t, dir)
	_, err = os.Stat(filepath.Join(dir, holderFile))
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
}

// TestLockKilled kills the agent ten times. The next starts at once, and those who
// ask see who it is.
func TestLockKilled(t *testing.T) {
	dir := t.TempDir()
	for range 10 {
		a := startAgent(t, dir)
		holder, err := running(dir)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(holder.PID, a.cmd.Process.Pid))
		a.kill(t)
		checkNobody(t, dir)
	}
}

// TestLockAtOnce has many want to be the agent at the same moment.
func TestLockAtOnce(t *testing.T) {
	dir := t.TempDir()
	results := make(chan error)
	locks := make(chan *Lock, 20)
	for range cap(locks) {
		go func() {
			l, err := Acquire(dir, "1.2.0")
			if err == nil {
				locks <- l
			}
			results <- err
		}()
	}
	refused := 0
	for range cap(locks) {
		if err := <-results; err != nil {
			var held *HeldError
			qt.Check(t, qt.ErrorAs(err, &held))
			refused++
		}
	}
	qt.Assert(t, qt.HasLen(locks, 1))
	qt.Check(t, qt.Equals(refused, cap(locks)-1))
	qt.Check(t, qt.IsNil((<-locks).Release()))
}

// TestLockAsks asks as another user, who may neither open the lock nor keep the
// agent from starting, while the agent runs and when it has been killed.
func TestLockAsks(t *testing.T) {
	requireRoot(t)
	dir, binary := openDir(t), openCopy(t)
	ask := func() string {
		cmd := exec.Command(binary)
		cmd.Env = append(os.Environ(), agentDir+"="+dir, agentAsks+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
		return string(out)
	}
	qt.Check(t, qt.Equals(ask(), "none <nil>\n"))
	a := startAgent(t, dir)
	qt.Check(t, qt.IsTrue(strings.HasPrefix(ask(), "pid "+strconv.Itoa(a.cmd.Process.Pid)+" (")), qt.Commentf("%s", ask()))
	info, err := os.Stat(filepath.Join(dir, lockFile))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.Mode(), 0o600))
	a.kill(t)
	qt.Check(t, qt.Equals(ask(), "none <nil>\n"))
}

// TestLockDamaged has something else where the agent says who it is.
func TestLockDamaged(t *testing.T) {
	self, err := startOf(os.Getpid())
	qt.Assert(t, qt.IsNil(err))
	for name, text := range map[string]string{
		"empty":   "",
		"torn":    `{"pid": 12`,
		"nothing": "{}",
		"another": fmt.Sprintf(`{"pid": %d, "start_ticks": %d, "since": "2026-11-25T10:00:00Z", "version": "1.2.0"}`, os.Getpid(), self+1),
		"long":    strings.Repeat(" ", 1<<20) + "{}",
		"nobody":  `{"pid": 4194999, "start_ticks": 5, "since": "2026-11-25T10:00:00Z"}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			startAgent(t, dir)
			qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, holderFile), []byte(text), 0o644)))
			holder, err := running(dir)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(*holder, Holder{}))
			_, err = Acquire(dir, "1.2.0")
			qt.Check(t, qt.ErrorMatches(err, "another agent runs on this host: a process that does not say who it is holds .*"))
		})
	}
}

// TestLockRemoved removes the lock of an agent: the next is another's.
func TestLockRemoved(t *testing.T) {
	dir := t.TempDir()
	first, err := Acquire(dir, "1.2.0")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(os.Remove(filepath.Join(dir, lockFile))))
	second, err := Acquire(dir, "1.2.0")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsNil(first.Release()))
	qt.Check(t, qt.IsNil(second.Release()))
}

func TestLockRefused(t *testing.T) {
	dir := t.TempDir()
	qt.Assert(t, qt.IsNil(os.Symlink("/etc/passwd", filepath.Join(dir, lockFile))))
	_, err := Acquire(dir, "1.2.0")
	qt.Check(t, qt.ErrorIs(err, error(unix.ELOOP)))
	_, err = running(dir)
	qt.Check(t, qt.ErrorIs(err, error(unix.ELOOP)))
	_, err = Acquire("/proc/finwait", "1.2.0")
	qt.Check(t, qt.ErrorMatches(err, "make the state directory: mkdir /proc/finwait: .*"))
	file := filepath.Join(dir, "file")
	qt.Assert(t, qt.IsNil(os.WriteFile(file, nil, 0o600)))
	_, err = Acquire(file, "1.2.0")
	qt.Check(t, qt.ErrorMatches(err, "make the state directory: mkdir .*: not a directory .*"))
}

// running returns the agent of this host, nil if none runs. Who may not open the lock must see the agent in /proc.
func running(stateDir string) (*Holder, error) {
	file, err := os.OpenFile(filepath.Join(stateDir, lockFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case errors.Is(err, os.ErrPermission):
		holder, alive := readHolder(stateDir)
		if !alive {
			return nil, nil
		}
		return &holder, nil
	case err != nil:
		return nil, fmt.Errorf("look for the agent: %w", err)
	}
	defer file.Close()
	locked, err := isLocked(file)
	if err != nil {
		return nil, fmt.Errorf("look for the agent: %w", err)
	}
	if !locked {
		return nil, nil
	}
	holder, _ := readHolder(stateDir)
	return &holder, nil
}

// isLocked asks whether setLock would fail.
func isLocked(file *os.File) (bool, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock)
	return lock.Type != unix.F_UNLCK, os.NewSyscallError("fcntl", err)
}
