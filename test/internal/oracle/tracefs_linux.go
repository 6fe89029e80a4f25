package oracle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// bufferKB is the size of the trace buffer of each CPU. A record takes about
// 80 bytes.
const bufferKB = 16 << 10

// Trace is tracefs' own stream of sock:inet_sock_set_state, from every network
// namespace, and of the timers that end what has no such transition.
type Trace struct {
	t   testing.TB
	dir string // of the trace instance
	// expiries says that it holds those of mini-sockets and half-open connections.
	expiries bool
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
		tr.chooseExpiries(),
		tr.enable("1"),
	)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// chooseExpiries has the trace hold what ends mini-sockets and half-open
// connections apart from packets: their timers. A kernel that hides its symbols
// does not let them be told from others, and then there are none.
func (tr *Trace) chooseExpiries() error {
	filter, err := expiryFilter()
	tr.expiries = filter != ""
	if err != nil || !tr.expiries {
		return err
	}
	return tr.write(expiryEvent+"/filter", filter)
}

// expiryFilter returns the filter that lets those timers through, or "". The
// kernel's symbols are many: they are read once.
var expiryFilter = sync.OnceValues(func() (string, error) {
	symbols, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		return "", fmt.Errorf("read symbols: %w", err)
	}
	var functions []string
	for line := range strings.Lines(string(symbols)) {
		address, rest, _ := strings.Cut(line, " ")
		_, name, _ := strings.Cut(strings.TrimSuffix(rest, "\n"), " ")
		if (name == "tw_timer_handler" || name == "reqsk_timer_handler") && strings.Trim(address, "0") != "" {
			functions = append(functions, "function==0x"+address)
		}
	}
	return strings.Join(functions, "||"), nil
})

// Stop ends the recording and returns all lines in the order of their time. It
// fails the test if the kernel lost one.
func (tr *Trace) Stop() []Line {
	tr.t.Helper()
	lines, err := parseTrace(tr.end())
	if err != nil {
		tr.t.Fatal(err)
	}
	return lines
}

// StopExpiries does the same, and returns also who was interrupted when a timer
// ended a mini-socket, or told a half-open connection to go on: a line for each
// that has no more than CPU, PID and Time.
func (tr *Trace) StopExpiries() (lines, expiries []Line) {
	tr.t.Helper()
	text := tr.end()
	lines, err := parseTrace(text)
	if err != nil {
		tr.t.Fatal(err)
	}
	expiries, err = parseExpiries(text)
	if err != nil {
		tr.t.Fatal(err)
	}
	return lines, expiries
}

// end ends the recording and returns its text.
func (tr *Trace) end() string {
	tr.t.Helper()
	if err := errors.Join(tr.enable("0"), tr.checkLoss()); err != nil {
		tr.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(tr.dir, "trace"))
	if err != nil {
		tr.t.Fatal(fmt.Errorf("read trace: %w", err))
	}
	return string(text)
}

const expiryEvent = "events/timer/timer_expire_entry"

func (tr *Trace) enable(value string) error {
	err := tr.write("events/sock/inet_sock_set_state/enable", value)
	if tr.expiries {
		err = errors.Join(err, tr.write(expiryEvent+"/enable", value))
	}
	return err
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
