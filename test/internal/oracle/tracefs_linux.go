package oracle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// bufferKB is the size of the trace buffer of each CPU. A record takes about
// 80 bytes.
const bufferKB = 16 << 10

// Trace is tracefs' own stream of sock:inet_sock_set_state, from every network
// namespace.
type Trace struct {
	t   testing.TB
	dir string // of the trace instance
}

// Start begins to record, in a trace instance of its own that the end of the
// test removes. It needs no mounted tracefs and leaves none behind. It fails
// the test if the kernel refuses.
func Start(t testing.TB) *Trace {
	t.Helper()
	root, err := tracefs(t)
	if err != nil {
		t.Fatal(err)
	}
	removeStale(root)
	tr := &Trace{t: t}
	tr.dir, err = os.MkdirTemp(filepath.Join(root, "instances"), fmt.Sprintf("%s%d-", instancePrefix, os.Getpid()))
	if err != nil {
		t.Fatal(fmt.Errorf("make trace instance: %w", err))
	}
	t.Cleanup(func() {
		if err := unix.Rmdir(tr.dir); err != nil {
			t.Errorf("remove trace instance: %v", err)
		}
	})
	t.Cleanup(func() { _ = tr.enable("0") })

	err = errors.Join(
		tr.write("trace_clock", "mono"),
		tr.write("buffer_size_kb", strconv.Itoa(bufferKB)),
		tr.enable("1"),
	)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// Stop ends the recording and returns all lines in the order of their time. It
// fails the test if the kernel lost one.
func (tr *Trace) Stop() []Line {
	tr.t.Helper()
	if err := errors.Join(tr.enable("0"), tr.checkLoss()); err != nil {
		tr.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(tr.dir, "trace"))
	if err != nil {
		tr.t.Fatal(fmt.Errorf("read trace: %w", err))
	}
	lines, err := parseTrace(string(text))
	if err != nil {
		tr.t.Fatal(err)
	}
	return lines
}

func (tr *Trace) enable(value string) error {
	return tr.write("events/sock/inet_sock_set_state/enable", value)
}

func (tr *Trace) write(file, value string) error {
	if err := os.WriteFile(filepath.Join(tr.dir, file), []byte(value), 0); err != nil {
		return fmt.Errorf("trace instance: %w", err)
	}
	return nil
}

// checkLoss returns an error if a CPU's buffer has overwritten or dropped a
// record.
func (tr *Trace) checkLoss() error {
	stats, err := filepath.Glob(filepath.Join(tr.dir, "per_cpu/cpu*/stats"))
	if err != nil || len(stats) == 0 {
		return fmt.Errorf("trace instance has no statistics: %w", err)
	}
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("trace instance: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if lossCounter(key) && value != "0" {
				return fmt.Errorf("trace lost records: %s: %s", file, line)
			}
		}
	}
	return nil
}

func lossCounter(key string) bool {
	return key == "overrun" || key == "commit overrun" || key == "dropped events"
}

// tracefs returns a path of a tracefs: a mount that only this process can
// see, through a descriptor, which goes away with the test or the process.
func tracefs(t testing.TB) (string, error) {
	ctx, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open tracefs: %w", err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigCreate(ctx); err != nil {
		return "", fmt.Errorf("make tracefs: %w", err)
	}
	mount, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("mount tracefs: %w", err)
	}
	t.Cleanup(func() { unix.Close(mount) })
	return fmt.Sprintf("/proc/self/fd/%d", mount), nil
}

const instancePrefix = "finwait-test-"

// removeStale removes the instances of test processes that were killed.
func removeStale(root string) {
	dirs, _ := filepath.Glob(filepath.Join(root, "instances", instancePrefix+"*"))
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), instancePrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && unix.Kill(n, 0) == unix.ESRCH {
			_ = os.WriteFile(filepath.Join(dir, "events/enable"), []byte("0"), 0)
			_ = unix.Rmdir(dir)
		}
	}
}
