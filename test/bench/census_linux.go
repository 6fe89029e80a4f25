package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// countTool is a command that counts sockets by state.
type countTool struct {
	name string
	// line is for the shell, with the file of finwait in $0, and the folder in which
	// an agent keeps its counters in $1.
	line string
	// agent says that there is one.
	agent bool
	// answer matches the number of sockets in a state, once it has the word that
	// the tool has for the state.
	answer string
	word   func(*crowdState) string
	// everywhere says that it counts in all network namespaces.
	everywhere bool
}

func asKernel(s *crowdState) string { return s.name }
func asSS(s *crowdState) string     { return s.ssName }
func asSums(s *crowdState) string   { return s.ssSums }

// The forms of an answer.
const (
	nameThenNumber = `(?m)^%s\s+(\d+)$`
	numberThenName = `(?m)^\s*(\d+)\s+%s$`
	withinLine     = `\b%s (\d+)`
)

// countTools begin with the one that the others are held to. ss -s is quick
// because it lists nothing: it prints the kernel's own sums, and has none of most
// states.
var countTools = []countTool{
	{name: "finwait count", line: `"$0" count`, answer: nameThenNumber, word: asKernel, everywhere: true},
	{name: "finwait count, by an agent", line: `"$0" count --source agent --pin-path "$1"`, agent: true, answer: nameThenNumber, word: asKernel, everywhere: true},
	{name: "finwait count --netns self", line: `"$0" count --netns self`, answer: nameThenNumber, word: asKernel},
	{name: "netstat | awk", line: `netstat -n | awk '/^tcp/ {++s[$NF]} END {for (k in s) print k, s[k]}'`, answer: nameThenNumber, word: asKernel},
	{name: "ss | awk", line: `ss -tan | awk 'NR > 1 {++s[$1]} END {for (k in s) print k, s[k]}'`, answer: nameThenNumber, word: asSS},
	{name: "ss | sort | uniq", line: `ss -tan | awk '{print $1}' | sort | uniq -c`, answer: numberThenName, word: asSS},
	{name: "ss -s", line: `ss -s`, answer: withinLine, word: asSums},
}

// counting is what one turn of a tool has told.
type counting struct {
	wall, cpu     time.Duration
	memory        uint64 // of its largest process, in bytes
	before, after int    // the sockets that there were, as the kernel has it
	counted       int    // what the tool says
}

// right reports whether the answer can be true. What sockets others have
// in their namespaces is not known.
func (t *countTool) right(c *counting) bool {
	least, most := min(c.before, c.after), max(c.before, c.after)
	return c.counted >= least && (t.everywhere || c.counted <= most)
}

// runCensus measures the tools on crowds of each state and size.
func runCensus(ctx context.Context, finwait, sizes string, rounds int, scratch string) (*censusReport, error) {
	numbers, err := parseSizes(sizes)
	if err != nil {
		return nil, err
	}
	if err := becomeSubreaper(); err != nil {
		return nil, err
	}
	r := &censusReport{header: newHeader(rounds)}
	for _, state := range crowdStates {
		for _, size := range numbers {
			err := withCrowd(ctx, state, size, func(c *crowd) error {
				all, err := c.measure(ctx, finwait, rounds, filepath.Join(scratch, "answer"))
				if err == nil {
					r.Crowds = append(r.Crowds, summarizeCrowd(c, size, all))
				}
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("%d sockets in %s: %w", size, state.name, err)
			}
		}
	}
	return r, nil
}

// becomeSubreaper has the tools be ours to wait for: see countTool.run.
func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	return nil
}

func parseSizes(list string) (sizes []int, err error) {
	for word := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 2 || n%2 != 0 {
			return nil, fmt.Errorf("size %q: want an even number of sockets", word)
		}
		sizes = append(sizes, n)
	}
	return sizes, nil
}

// measure has every tool take its turn in each round, and another begin each.
// It returns the rounds of each tool.
func (c *crowd) measure(ctx context.Context, finwait string, rounds int, scratch string) ([][]counting, error) {
	all := make([][]counting, len(countTools))
	for round := range rounds {
		for i := range all {
			if ctx.Err() != nil {
				return nil, errors.New("interrupted")
			}
			i = (i + round) % len(all)
			t := &countTools[i]
			m, err := c.turn(t, finwait, scratch)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
			fmt.Fprintf(os.Stderr, "%d in %s, round %d of %d: %s: %d in %v\n",
				m.before, c.state.name, round+1, rounds, t.name, m.counted, m.wall.Round(100*time.Microsecond))
			all[i] = append(all[i], m)
		}
	}
	return all, nil
}

func (c *crowd) turn(t *countTool, finwait, scratch string) (m counting, err error) {
	if err := c.refresh(); err != nil {
		return m, err
	}
	if m.before, err = c.state.count(); err != nil {
		return m, err
	}
	text, err := t.runBeside(&m, finwait, scratch)
	if err != nil {
		return m, err
	}
	if m.after, err = c.state.count(); err != nil {
		return m, err
	}
	match := regexp.MustCompile(fmt.Sprintf(t.answer, t.word(c.state))).FindStringSubmatch(text)
	if match == nil {
		return m, fmt.Errorf("no %s in %q", c.state.name, text)
	}
	m.counted, err = strconv.Atoi(match[1])
	return m, err
}

// runBeside runs the command, beside an agent if there is to be one.
func (t *countTool) runBeside(m *counting, finwait, scratch string) (printed string, err error) {
	if !t.agent {
		return t.run(m, finwait, scratch, "")
	}
	a, err := startAgent(finwait, scratch+"-agent")
	if err != nil {
		return "", err
	}
	text, err := t.run(m, finwait, scratch, a.pins)
	return text, errors.Join(err, a.stop())
}

// run has a shell run the command, in the namespace of the calling thread, and
// returns what it printed.
//
// The shell starts it in the background and ends, so that it becomes this
// process's child. What the kernel says of the memory of a child that this
// process starts itself is that of this process at the least, whose it was
// until it became another program.
func (t *countTool) run(m *counting, finwait, scratch, pins string) (printed string, err error) {
	out, err := os.Create(scratch)
	if err != nil {
		return "", err
	}
	defer out.Close()
	cmd := exec.Command("sh", "-c", "( "+t.line+" ) &", finwait, pins)
	cmd.Stdout = out
	begun := time.Now()
	if err := cmd.Run(); err != nil {
		return "", err
	}
	var status unix.WaitStatus
	var usage unix.Rusage
	if err := wait(&status, &usage, t.agent); err != nil {
		return "", fmt.Errorf("wait: %w", err)
	}
	m.wall = time.Since(begun)
	m.cpu = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	m.memory = uint64(usage.Maxrss) << 10
	if !status.Exited() || status.ExitStatus() != 0 {
		return "", fmt.Errorf("ended with status %#x", uint32(status))
	}
	text, err := os.ReadFile(scratch)
	return string(text), err
}

// wait waits for the one child that there is, but for an agent, which is in a group
// of processes of its own.
func wait(status *unix.WaitStatus, usage *unix.Rusage, agent bool) error {
	whom := -1
	if agent {
		whom = 0
	}
	for {
		_, err := unix.Wait4(whom, status, 0, usage)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
