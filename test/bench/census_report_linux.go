package main

import (
	"fmt"
	"strings"
)

// censusReport is what -census writes as JSON.
type censusReport struct {
	header
	Crowds []crowdReport `json:"crowds"`
}

// crowdReport is of one number of sockets in one state.
type crowdReport struct {
	State string `json:"state"`
	Asked int    `json:"sockets_asked"`
	// Present is how many there were before each turn, as the kernel has it.
	Present *spread `json:"sockets"`
	// Short says why there were fewer than asked for.
	Short string        `json:"short,omitempty"`
	Tools []countReport `json:"tools"`
}

// countReport has a spread of each number over the rounds. The ratios are by
// finwait count's in the same round.
type countReport struct {
	Tool    string  `json:"tool"`
	Seconds *spread `json:"wall_seconds"`
	Ratio   *spread `json:"wall_ratio"`
	// CPUSeconds is of all processes of the command, PeakMemory of the largest.
	CPUSeconds  *spread `json:"cpu_seconds"`
	CPURatio    *spread `json:"cpu_ratio"`
	PeakMemory  *spread `json:"peak_memory_bytes"`
	MemoryRatio *spread `json:"peak_memory_ratio"`
	Counted     *spread `json:"sockets_counted"`
	// Wrong is in how many rounds the answer was not the number of sockets.
	Wrong int `json:"rounds_wrong"`
}

func summarizeCrowd(c *crowd, asked int, all [][]counting) crowdReport {
	r := crowdReport{State: c.state.name, Asked: asked}
	var turns []counting
	for i := range all {
		turns = append(turns, all[i]...)
		r.Tools = append(r.Tools, countTools[i].summarize(all[i], all[0]))
	}
	r.Present = over(turns, func(_ int, m *counting) (float64, bool) { return float64(m.before), true })
	r.Short = c.shortage(r.Present)
	return r
}

// shortage says why there were not as many sockets as asked for, if so.
func (c *crowd) shortage(present *spread) string {
	asked := float64(c.connections * c.state.sockets)
	switch {
	case c.short != nil:
		return c.short.Error()
	case present.Least < asked && c.state.decays:
		return fmt.Sprintf("they last %v, and this machine does not make or refresh them all in that time", timeWaitLen)
	case present.Least < asked:
		return "the kernel has ended some"
	}
	return ""
}

func (t *countTool) summarize(rounds, finwait []counting) countReport {
	r := countReport{Tool: t.name}
	r.Seconds, r.Ratio = withRatio(rounds, finwait, func(m *counting) float64 { return m.wall.Seconds() })
	r.CPUSeconds, r.CPURatio = withRatio(rounds, finwait, func(m *counting) float64 { return m.cpu.Seconds() })
	r.PeakMemory, r.MemoryRatio = withRatio(rounds, finwait, func(m *counting) float64 { return float64(m.memory) })
	r.Counted = over(rounds, func(_ int, m *counting) (float64, bool) { return float64(m.counted), true })
	for i := range rounds {
		if !t.right(&rounds[i]) {
			r.Wrong++
		}
	}
	return r
}

// withRatio returns the spread of a number, and of its ratio to finwait's in the
// same round.
func withRatio(rounds, finwait []counting, f func(*counting) float64) (number, ratio *spread) {
	number = over(rounds, func(_ int, m *counting) (float64, bool) { return f(m), true })
	ratio = over(rounds, func(i int, m *counting) (float64, bool) {
		base := f(&finwait[i])
		return f(m) / base, base > 0
	})
	return number, ratio
}

func (r *censusReport) headline() string {
	return fmt.Sprintf("%s; x is by %s in the same round; peak MiB is of the largest process", r.header.headline(), countTools[0].name)
}

func (r *censusReport) sections() (sections []section) {
	for i := range r.Crowds {
		c := &r.Crowds[i]
		title := fmt.Sprintf("%s sockets in %s", c.Present.format("%.0f", 1), c.State)
		if c.Short != "" {
			title += fmt.Sprintf(" (%d were asked for: %s)", c.Asked, c.Short)
		}
		rows := [][]string{{"tool", "ms", "x", "CPU ms", "x", "peak MiB", "x", "counted"}}
		for i := range c.Tools {
			rows = append(rows, c.Tools[i].columns(r.Rounds))
		}
		sections = append(sections, section{title, rows})
	}
	return sections
}

// finwaitWrong returns an error if finwait has counted wrong, which no benchmark
// may pass over. What others do is in the table.
func (r *censusReport) finwaitWrong() error {
	for i := range r.Crowds {
		for _, t := range r.Crowds[i].Tools {
			if t.Wrong > 0 && strings.HasPrefix(t.Tool, "finwait") {
				return fmt.Errorf("%s counted %s of %s sockets in %s", t.Tool,
					t.Counted.format("%.0f", 1), r.Crowds[i].Present.format("%.0f", 1), r.Crowds[i].State)
			}
		}
	}
	return nil
}

func (t *countReport) columns(rounds int) []string {
	counted := t.Counted.format("%.0f", 1)
	if t.Wrong > 0 {
		counted += fmt.Sprintf(", wrong in %d of %d rounds", t.Wrong, rounds)
	}
	return []string{
		t.Tool,
		t.Seconds.format("%.1f", 1000), t.Ratio.format("%.3g", 1),
		t.CPUSeconds.format("%.1f", 1000), t.CPURatio.format("%.3g", 1),
		t.PeakMemory.format("%.1f", 1.0/(1<<20)), t.MemoryRatio.format("%.3g", 1),
		counted,
	}
}
