package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/floor"
	"github.com/finwait/finwait/tracer"
)

// tool is something that watches the load.
type tool struct {
	name string
	// args is its command; nil for what is in this process.
	args []string
	// attach is what it does in this process instead.
	attach func() (io.Closer, error)
	// account returns how many events it has printed, and how many it says that
	// it has lost; nil if it prints none.
	account func(stdout, stderr string) (printed, lost uint64, err error)
}

// What the others are held to.
const (
	nothing      = "nothing"
	emptyProgram = "empty program"
)

// tracefs is how to start a tool that looks for tracepoints there: on a machine
// where it is not mounted it is, for the tool alone.
func tracefs(command string) []string {
	return []string{"unshare", "--mount", "sh", "-c", "mount -t tracefs nodev /sys/kernel/tracing && exec " + command}
}

const bpftraceProgram = `tracepoint:sock:inet_sock_set_state { printf("%llu %d %s %s %d %d %d %d\n", ` +
	`nsecs, pid, comm, ntop(args->family, args->saddr_v6), args->sport, args->dport, args->oldstate, args->newstate); }`

func allTools(finwait string) []*tool {
	return []*tool{
		{name: nothing},
		{name: emptyProgram, attach: func() (io.Closer, error) { return floor.Attach() }},
		{name: "finwait counters only", attach: func() (io.Closer, error) {
			return tracer.New(&tracer.Options{CountersOnly: true})
		}},
		{name: "finwait trace", args: []string{finwait, "trace", "--format", "json"}, account: ledger},
		{name: "finwait trace of another port", args: []string{finwait, "trace", "--format", "json", "--port", "1"}, account: ledger},
		{name: "finwait conns", args: []string{finwait, "conns", "--format", "json"}, account: ledger},
		{name: "finwait profile", args: []string{finwait, "profile"}},
		{name: "tcpstates", args: tracefs("tcpstates"), account: linesAndLosses("lost ", 1)},
		{name: "bpftrace", args: tracefs("bpftrace -e '" + bpftraceProgram + "'"), account: linesAndLosses("Lost ", 1)},
		// It prints where the addresses are in memory, and not the addresses.
		{name: "perf trace", args: tracefs("perf trace -e sock:inet_sock_set_state 2>&1"), account: linesAndLosses("LOST ", 0)},
	}
}

// ledger reads what finwait says at its end.
func ledger(_, stderr string) (printed, lost uint64, err error) {
	for line := range strings.Lines(stderr) {
		var seen, matched uint64
		var noun string
		n, _ := fmt.Sscanf(line, "finwait: %d %s seen, %d matched, %d printed, %d lost", &seen, &noun, &matched, &printed, &lost)
		if n == 5 {
			return printed, lost, nil
		}
	}
	return 0, 0, fmt.Errorf("no ledger in %q", stderr)
}

// linesAndLosses counts the lines that are printed, but for those of a header, and adds
// up the numbers that follow a word.
func linesAndLosses(word string, header uint64) func(stdout, stderr string) (printed, lost uint64, err error) {
	return func(stdout, stderr string) (printed, lost uint64, err error) {
		file, err := os.Open(stdout)
		if err != nil {
			return 0, 0, err
		}
		defer file.Close()
		count := func(line []byte) {
			if text := string(line); strings.HasPrefix(text, word) {
				lost += leadingNumber(text[len(word):])
			} else {
				printed++
			}
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			count(lines.Bytes())
		}
		for line := range strings.Lines(stderr) {
			if rest, ok := strings.CutPrefix(line, word); ok {
				lost += leadingNumber(rest)
			}
		}
		return printed - min(printed, header), lost, lines.Err()
	}
}

func leadingNumber(s string) uint64 {
	word, _, _ := strings.Cut(s, " ")
	n, _ := strconv.ParseUint(word, 10, 64)
	return n
}

// running is a tool at work.
type running struct {
	cmd            *exec.Cmd
	stdout         string
	stderr         bytes.Buffer
	attached       io.Closer
	startedWithout map[uint32]bool // programs that are not the tool's
}

// start starts a tool, and returns when its programs are at work.
func (t *tool) start(scratch string) (*running, error) {
	r := &running{startedWithout: programIDs()}
	switch {
	case t.attach != nil:
		var err error
		r.attached, err = t.attach()
		return r, err
	case t.args == nil:
		return r, nil
	}
	r.stdout = filepath.Join(scratch, "stdout")
	out, err := os.Create(r.stdout)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	r.cmd = exec.Command(t.args[0], t.args[1:]...)
	r.cmd.Stdout, r.cmd.Stderr = out, &r.stderr
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	if err := r.awaitWatching(); err != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		return nil, fmt.Errorf("%w: %s", err, r.stderr.String())
	}
	return r, nil
}

// awaitWatching waits until the tool has loaded programs, or opened events of perf,
// and goes on to no more.
func (r *running) awaitWatching() error {
	const settled, patience = time.Second, 30 * time.Second
	last, since := 0, time.Now()
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		own := r.perfEvents()
		for id := range programIDs() {
			if !r.startedWithout[id] {
				own++
			}
		}
		if own != last {
			last, since = own, time.Now()
		}
		if own > 0 && time.Since(since) > settled {
			return nil
		}
		if time.Since(begun) > patience {
			return fmt.Errorf("has loaded no programs for good after %v", patience)
		}
	}
}

// perfEvents returns how many events of perf the tool has open.
func (r *running) perfEvents() (n int) {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", r.cmd.Process.Pid))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == "anon_inode:[perf_event]" {
			n++
		}
	}
	return n
}

// drain waits until the tool has printed what it has.
func (r *running) drain() {
	if r.cmd == nil {
		return
	}
	var last int64 = -1
	for {
		st, err := os.Stat(r.stdout)
		if err != nil || st.Size() == last {
			return
		}
		last = st.Size()
		time.Sleep(300 * time.Millisecond)
	}
}

// end stops the tool.
func (r *running) end() error {
	if r.attached != nil {
		return r.attached.Close()
	}
	if r.cmd == nil {
		return nil
	}
	_ = r.cmd.Process.Signal(unix.SIGINT)
	const patience = 30 * time.Second
	defer time.AfterFunc(patience, func() { _ = r.cmd.Process.Kill() }).Stop()
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil // some tools end so when they are asked to
	}
	return err
}
