package procnet

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
)

// FileLimit returns how many descriptors a process has open, sockets among them,
// and how many it may have: its soft RLIMIT_NOFILE, math.MaxUint64 for any number.
// accept and socket fail with EMFILE at that. It is not ok if the process has
// ended, or before Linux 6.2 if it is another user's and the caller has no
// CAP_SYS_PTRACE.
func FileLimit(pid uint32) (open int, soft uint64, ok bool) {
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0, 0, false
	}
	soft, ok = softFileLimit(string(limits))
	if !ok {
		return 0, 0, false
	}
	open, err = openFiles(pid)
	return open, soft, err == nil
}

// softFileLimit finds it in the text of /proc/PID/limits, in the line
// "Max open files  1024  1048576  files".
func softFileLimit(limits string) (soft uint64, ok bool) {
	for line := range strings.Lines(limits) {
		rest, found := strings.CutPrefix(line, "Max open files ")
		if !found {
			continue
		}
		text, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if text == "unlimited" {
			return math.MaxUint64, true
		}
		soft, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return 0, false
		}
		return soft, true
	}
	return 0, false
}

// openFiles is the size of /proc/PID/fd since Linux 6.2 (proc_fd_getattr), which
// was 0 before.
func openFiles(pid uint32) (int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	info, err := os.Stat(dir)
	if err != nil {
		return 0, err
	}
	if info.Size() > 0 {
		return int(info.Size()), nil
	}
	return countFiles(dir, pid)
}

// countFiles counts what is in /proc/PID/fd, without the descriptor that reads it.
func countFiles(dir string, pid uint32) (int, error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	if pid == uint32(os.Getpid()) {
		return len(names) - 1, nil
	}
	return len(names), nil
}
