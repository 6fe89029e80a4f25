package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// threadsDir makes this binary one of many threads that drops its privileges,
// tells what each thread has then, and does with the files in that directory what
// the agent does with those of its log.
const threadsDir = "FINWAIT_TEST_THREADS_DIR"

// dropped is what it tells.
type dropped struct {
	Threads map[string]int    // how many threads have these privileges
	Failed  map[string]string // errors by what was done
	ExecCap string            // of a program that it has run
}

const manyThreads = 40

func beThreads(dir string) error {
	pins, err := pinMap(dir)
	if err != nil {
		return err
	}
	// Threads that wait for each other, in the kernel, and in the poller.
	stay, started := make(chan struct{}), sync.WaitGroup{}
	start := func(wait func()) {
		for range manyThreads {
			started.Add(1)
			go func() {
				runtime.LockOSThread()
				started.Done()
				wait()
			}()
		}
		started.Wait()
	}
	var blocked [2]int
	if err := unix.Pipe2(blocked[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		return err
	}
	go func() { _, _ = l.Accept() }()
	start(func() { <-stay })
	start(func() {
		for {
			if _, err := unix.Read(blocked[0], make([]byte, 1)); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if _, err := Drop(); err != nil {
		return err
	}
	start(func() { <-stay }) // younger ones
	d := dropped{Threads: map[string]int{}, Failed: map[string]string{}}
	if err := d.countThreads(); err != nil {
		return err
	}
	d.useFiles(dir)
	d.try("remove the pins", errors.Join(os.Remove(filepath.Join(pins, "map")), os.Remove(pins)))
	out, err := exec.Command("grep", "CapEff", "/proc/self/status").Output()
	d.try("run a program", err)
	d.ExecCap = strings.TrimSpace(string(out))
	return json.NewEncoder(os.Stdout).Encode(&d)
}

func (d *dropped) try(what string, err error) {
	if err != nil {
		d.Failed[what] = err.Error()
	}
}

// countThreads reads what each thread may.
func (d *dropped) countThreads() error {
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return err
		}
		var privileges []string
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") || strings.HasPrefix(line, "Uid") {
				privileges = append(privileges, strings.Join(strings.Fields(line), " "))
			}
		}
		d.Threads[strings.Join(privileges, "\n")]++
	}
	return nil
}

// useFiles writes, rotates, opens again and removes a log in the directory, and
// reads and writes files of others.
func (d *dropped) useFiles(dir string) {
	log := filepath.Join(dir, "own", "log")
	d.try("write", os.WriteFile(log, []byte("line\n"), 0o640))
	d.try("rotate", os.Rename(log, log+".1"))
	d.try("reopen", os.WriteFile(log, []byte("line\n"), 0o640))
	d.try("remove", os.Remove(log+".1"))
	_, err := os.ReadFile(filepath.Join(dir, "others", "secret"))
	d.try("read of another user", err)
	d.try("write of another user", os.WriteFile(filepath.Join(dir, "others", "secret"), nil, 0o600))
	d.try("create for another user", os.WriteFile(filepath.Join(dir, "others", "new"), nil, 0o600))
}

// pinMap pins a map in a file system that nobody else sees, and returns the
// directory in which it is.
func pinMap(dir string) (string, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("keep mounts private: %w", err)
	}
	mount := filepath.Join(dir, "bpf")
	if err := errors.Join(os.Mkdir(mount, 0o755), unix.Mount("bpf", mount, "bpf", 0, "")); err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return "", err
	}
	defer m.Close()
	pins := filepath.Join(mount, "finwait")
	return pins, errors.Join(os.Mkdir(pins, 0o700), m.Pin(filepath.Join(pins, "map")))
}

func TestDropInAllThreads(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	for name, uid := range map[string]int{"own": 0, "others": 65534} {
		path := filepath.Join(dir, name)
		qt.Assert(t, qt.IsNil(os.Mkdir(path, 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(path, "secret"), nil, 0o600)))
		qt.Assert(t, qt.IsNil(os.Chown(filepath.Join(path, "secret"), uid, uid)))
		qt.Assert(t, qt.IsNil(os.Chown(path, uid, uid)))
	}
	cmd := exec.Command(executable(t))
	cmd.Env = append(os.Environ(), threadsDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	qt.Assert(t, qt.IsNil(err))
	var d dropped
	qt.Assert(t, qt.IsNil(json.Unmarshal(out, &d)))

	qt.Assert(t, qt.HasLen(d.Threads, 1), qt.Commentf("%v", d.Threads))
	for privileges, threads := range d.Threads {
		const none = "0000000000000000"
		mask := fmt.Sprintf("%016x", uint64(1)<<unix.CAP_BPF|1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_SYS_PTRACE|1<<unix.CAP_DAC_READ_SEARCH|1<<unix.CAP_NET_ADMIN)
		qt.Check(t, qt.Equals(privileges, strings.Join([]string{
			"Uid: 0 0 0 0", "CapInh: " + none, "CapPrm: " + mask, "CapEff: " + mask, "CapBnd: " + none, "CapAmb: " + none, "NoNewPrivs: 1",
		}, "\n")))
		qt.Check(t, qt.IsTrue(threads > 3*manyThreads), qt.Commentf("%d threads", threads))
	}
	qt.Check(t, qt.Equals(d.ExecCap, "CapEff:\t0000000000000000"))
	const denied = "permission denied"
	for what, err := range d.Failed {
		qt.Check(t, qt.IsTrue(strings.HasSuffix(err, denied)), qt.Commentf("%s: %s", what, err))
		d.Failed[what] = denied
	}
	// Files of others may be read, for CAP_DAC_READ_SEARCH, and not written.
	qt.Check(t, qt.DeepEquals(d.Failed, map[string]string{"write of another user": denied, "create for another user": denied}))
}
