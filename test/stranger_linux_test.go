package test

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// A stranger is this binary run once more as another process, of another name,
// user and cgroup. It makes one side of the connections, closes first, and ends.
//
// strangerCall says what it calls: connect, listen, or one of those that accept
// (acceptAndClose and others). It does so from a thread with a name of its own.
const (
	strangerCall = "FINWAIT_TEST_STRANGER_CALL"
	strangerAddr = "FINWAIT_TEST_STRANGER_ADDR"

	strangerUID  = 65534
	strangerComm = "finwait-strange" // what the kernel keeps of:
	strangerName = "finwait-stranger"
	threadComm   = "not-the-process"
)

// stranger is such a process while it runs.
type stranger struct {
	t     testing.TB
	cmd   *exec.Cmd
	lines *bufio.Scanner
	stdin io.WriteCloser
}

// newStranger starts a stranger in the namespace, and in the cgroup of that
// directory, with the files from descriptor 3 on. It waits to be told to go on.
func newStranger(l *loop, call, cgroup string, files ...*os.File) *stranger {
	l.t.Helper()
	exe, err := os.Executable()
	l.must("executable", err)
	name := filepath.Join(l.t.TempDir(), strangerName)
	l.must("symlink", os.Symlink(exe, name))
	dir, err := os.Open(cgroup)
	l.must("open cgroup", err)
	defer dir.Close()

	s := &stranger{t: l.t, cmd: l.ns.Command(name)}
	at := netip.AddrPortFrom(l.addr, listenPort)
	s.cmd.Env = append(os.Environ(), strangerCall+"="+call, strangerAddr+"="+at.String())
	s.cmd.Stderr = os.Stderr
	s.cmd.ExtraFiles = files
	s.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	s.stdin, err = s.cmd.StdinPipe()
	l.must("pipe", err)
	stdout, err := s.cmd.StdoutPipe()
	l.must("pipe", err)
	s.lines = bufio.NewScanner(stdout)
	l.must("start stranger", s.cmd.Start())
	l.t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	s.expect("ready")
	return s
}

func (s *stranger) expect(line string) {
	s.t.Helper()
	qt.Assert(s.t, qt.IsTrue(s.lines.Scan()), qt.Commentf("stranger has ended before it was %s", line))
	qt.Assert(s.t, qt.Equals(s.lines.Text(), line))
}

func (s *stranger) proceed() {
	s.t.Helper()
	_, err := fmt.Fprintln(s.stdin, "go on")
	qt.Assert(s.t, qt.IsNil(err))
}

func (s *stranger) wait() {
	s.t.Helper()
	qt.Assert(s.t, qt.IsNil(s.cmd.Wait()))
}

func (s *stranger) cgroup() string {
	s.t.Helper()
	return cgroupOf(s.t, s.cmd.Process.Pid)
}

// cgroupOf is the directory of the cgroup that the process says it is in.
func cgroupOf(t testing.TB, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	qt.Assert(t, qt.IsNil(err))
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(cgroupRoot(t), path)
		}
	}
	t.Fatal("no version 2 cgroup")
	return ""
}

// cgroupRoot is where the version 2 cgroups are mounted.
func cgroupRoot(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	qt.Assert(t, qt.IsNil(err))
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		if strings.HasPrefix(after, "cgroup2 ") {
			return strings.Fields(before)[4]
		}
	}
	t.Skip("version 2 cgroups are not mounted")
	return ""
}

// newCgroup makes a cgroup below the directory, and removes it in the end.
func newCgroup(t testing.TB, in string) string {
	t.Helper()
	dir, err := os.MkdirTemp(in, "finwait-test-")
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(os.Remove(dir))) })
	return dir
}

// cgroupID is the number by which the kernel knows the cgroup.
func cgroupID(t testing.TB, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	qt.Assert(t, qt.IsNil(unix.Stat(dir, &st)))
	return st.Ino
}

// beStranger is all that a stranger does, on a thread that is not its first
// and has another name.
func beStranger(call, addr string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	if err := unix.Setuid(strangerUID); err != nil {
		return fmt.Errorf("setuid: %w", err)
	}
	result := make(chan error)
	go onOtherThread(func() { result <- callOut(call, at) })
	return <-result
}

// onOtherThread runs f on a thread other than the first, which is held
// meanwhile if that is what the goroutine is on.
func onOtherThread(f func()) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan bool)
	go func() {
		defer close(done)
		onOtherThread(f)
	}()
	<-done
}

// awaitWord waits until the stranger is told to go on.
func awaitWord() error {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	return nil
}

func callOut(call string, at netip.AddrPort) error {
	if err := os.WriteFile("/proc/thread-self/comm", []byte(threadComm), 0); err != nil {
		return fmt.Errorf("name thread: %w", err)
	}
	fmt.Println("ready")
	if err := awaitWord(); err != nil {
		return err
	}
	switch call {
	case acceptAndClose, acceptAndShutdown, acceptAndExec:
		return acceptInherited(call)
	case closeInherited:
		return closeAllInherited()
	}
	domain := unix.AF_INET
	if at.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if call == "listen" {
		return acceptAll(domain, at)
	}
	for range connections {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		if err := unix.Connect(fd, sockaddrOf(at)); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		if err := closeAsFirst(fd); err != nil {
			return err
		}
	}
	return nil
}

func acceptAll(domain int, at netip.AddrPort) error {
	l, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(l, sockaddrOf(at)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(l, connections); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Println("listening")
	for range connections {
		fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := closeAsFirst(fd); err != nil {
			return err
		}
	}
	return unix.Close(l)
}

// closeAsFirst closes in the way of loop.closeInTurn.
func closeAsFirst(fd int) error {
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	if _, err := unix.Read(fd, make([]byte, 1)); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return unix.Close(fd)
}
