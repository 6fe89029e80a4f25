package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// doctorWatches is how long finwait doctor watches in each turn.
const doctorWatches = time.Second

// doctorTool runs it. That it finds something is no failure.
var doctorTool = countTool{
	name: "finwait doctor",
	line: fmt.Sprintf(`"$0" doctor --for %v >/dev/null || test $? = 3`, doctorWatches),
}

// doctorReport is what -doctor writes as JSON.
type doctorReport struct {
	header
	WatchedSec float64      `json:"watched_seconds"`
	Crowds     []doctorTurn `json:"crowds"`
}

// doctorTurn is of one number of sockets in one state: the spreads over the rounds.
type doctorTurn struct {
	State   string  `json:"state"`
	Present *spread `json:"sockets"`
	// Beyond is what the command took longer than it watched.
	Beyond     *spread `json:"beyond_watching_seconds"`
	CPUSeconds *spread `json:"cpu_seconds"`
	PeakMemory *spread `json:"peak_memory_bytes"`
}

// runDoctor measures finwait doctor on crowds of each state and size.
func runDoctor(ctx context.Context, finwait, sizes string, rounds int, scratch string) (*doctorReport, error) {
	numbers, err := parseSizes(sizes)
	if err != nil {
		return nil, err
	}
	if err := becomeSubreaper(); err != nil {
		return nil, err
	}
	r := &doctorReport{header: newHeader(rounds), WatchedSec: doctorWatches.Seconds()}
	for _, state := range crowdStates {
		for _, size := range numbers {
			err := withCrowd(ctx, state, size, func(c *crowd) error {
				turn, err := c.measureDoctor(ctx, finwait, rounds, filepath.Join(scratch, "answer"))
				r.Crowds = append(r.Crowds, turn)
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("%d sockets in %s: %w", size, state.name, err)
			}
		}
	}
	return r, nil
}

func (c *crowd) measureDoctor(ctx context.Context, finwait string, rounds int, scratch string) (turn doctorTurn, err error) {
	var all []counting
	for round := range rounds {
		if ctx.Err() != nil {
			return turn, errors.New("interrupted")
		}
		var m counting
		if err := c.refresh(); err != nil {
			return turn, err
		}
		if m.before, err = c.state.count(); err != nil {
			return turn, err
		}
		if _, err := doctorTool.run(&m, finwait, scratch, ""); err != nil {
			return turn, err
		}
		fmt.Fprintf(os.Stderr, "%d in %s, round %d of %d: %v beyond %v\n",
			m.before, c.state.name, round+1, rounds, (m.wall - doctorWatches).Round(time.Millisecond), doctorWatches)
		all = append(all, m)
	}
	number := func(f func(*counting) float64) *spread {
		return over(all, func(_ int, m *counting) (float64, bool) { return f(m), true })
	}
	return doctorTurn{
		State:      c.state.name,
		Present:    number(func(m *counting) float64 { return float64(m.before) }),
		Beyond:     number(func(m *counting) float64 { return (m.wall - doctorWatches).Seconds() }),
		CPUSeconds: number(func(m *counting) float64 { return m.cpu.Seconds() }),
		PeakMemory: number(func(m *counting) float64 { return float64(m.memory) }),
	}, nil
}

func (r *doctorReport) headline() string {
	return fmt.Sprintf("%s; finwait doctor --for %v", r.header.headline(), doctorWatches)
}

func (r *doctorReport) sections() []section {
	rows := [][]string{{"sockets", "state", "ms beyond watching", "CPU ms", "peak MiB"}}
	for i := range r.Crowds {
		c := &r.Crowds[i]
		rows = append(rows, []string{
			c.Present.format("%.0f", 1), c.State, c.Beyond.format("%.0f", 1000),
			c.CPUSeconds.format("%.0f", 1000), c.PeakMemory.format("%.1f", 1.0/(1<<20)),
		})
	}
	return []section{{"finwait doctor", rows}}
}
