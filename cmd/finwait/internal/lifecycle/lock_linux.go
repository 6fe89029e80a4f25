package lifecycle

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile is held by the agent for as long as it lives, in whatever way it ends.
// Only its owner may open it: a lock can be taken by whoever can read the file.
// holderFile says to everybody who the agent is; it may be older than the lock.
const (
	lockFile   = "agent.lock"
	holderFile = "agent.json"
)

// Lock is that of the agent of a host.
type Lock struct {
	dir  string
	file *os.File
}

// Acquire makes the process the agent of this host, as far as those know that
// have the same directory. The error is a [*HeldError] if another is.
func Acquire(stateDir, version string) (*Lock, error) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the state directory: %w (--state-dir names another)", err)
	}
	file, err := lock(filepath.Join(stateDir, lockFile))
	if errors.Is(err, unix.EAGAIN) {
		holder, _ := readHolder(stateDir)
		return nil, &HeldError{stateDir, holder}
	}
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w (--state-dir names another)", err)
	}
	l := &Lock{stateDir, file}
	if err := l.sign(version); err != nil {
		return nil, errors.Join(fmt.Errorf("write who the agent is: %w", err), l.Release())
	}
	return l, nil
}

// lock opens and locks the file. Who removes it while another takes the lock has
// it taken again: a file without a name keeps nobody out.
func lock(path string) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := setLock(file); err != nil {
			file.Close()
			return nil, err
		}
		named, err := hasName(file, path)
		if named && err == nil {
			return file, nil
		}
		file.Close()
		if err != nil {
			return nil, err
		}
	}
}

// setLock takes an open file description lock: unlike those of flock it can be
// asked for without being taken, unlike those of POSIX it stays when the process
// closes another descriptor of the file.
func setLock(file *os.File) error {
	err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	return os.NewSyscallError("fcntl", err)
}

func hasName(file *os.File, path string) (bool, error) {
	open, err := file.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(open, named), err
}

// sign writes who holds the lock.
func (l *Lock) sign(version string) error {
	pid := os.Getpid()
	start, err := startOf(pid)
	if err != nil {
		return err
	}
	holder := Holder{PID: pid, Since: time.Now(), Version: version, start: start}
	text, err := holder.encode()
	if err != nil {
		return err
	}
	return writeWhole(filepath.Join(l.dir, holderFile), text)
}

// writeWhole puts a file there that holds all of text from the first moment. The
// caller holds the lock: nobody else does the same.
func writeWhole(path string, text []byte) error {
	half := path + ".new"
	if err := os.Remove(half); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(half, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err := errors.Join(err, file.Chmod(0o644), file.Close()); err != nil {
		return errors.Join(err, os.Remove(half))
	}
	return os.Rename(half, path)
}

// Release lets another process be the agent. The lock's file stays, for those who
// wait for it.
func (l *Lock) Release() error {
	err := os.Remove(filepath.Join(l.dir, holderFile))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, l.file.Close())
}

// readHolder returns who the agent says to be, and the zero Holder if there is no
// such process: it was the agent before, or cannot be seen from here.
func readHolder(stateDir string) (h Holder, alive bool) {
	text, err := readSmall(filepath.Join(stateDir, holderFile))
	if err != nil {
		return Holder{}, false
	}
	h, err = parseHolder(text)
	if err != nil {
		return Holder{}, false
	}
	if start, err := startOf(h.PID); err != nil || start != h.start {
		return Holder{}, false
	}
	comm, err := os.ReadFile(procFile(h.PID, "comm"))
	if err != nil {
		return Holder{}, false
	}
	h.Comm = clean(string(comm))
	return h, true
}

// readSmall reads no more of the file than a holder takes.
func readSmall(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, 4096))
}

func startOf(pid int) (uint64, error) {
	stat, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return 0, err
	}
	start, err := parseStart(strings.TrimSpace(string(stat)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", procFile(pid, "stat"), err)
	}
	return start, nil
}

func procFile(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }
