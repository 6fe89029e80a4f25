package main

import (
	"fmt"
	"slices"
	"strings"
)

// report is what is written as JSON. A number that was not measured is null.
type report struct {
	header
	SpellSec float64         `json:"spell_seconds"`
	Patterns []patternReport `json:"patterns"`
}

type patternReport struct {
	Pattern string `json:"pattern"`
	// EventsPerConnection is how often the tracepoint is passed for each, both
	// ends together.
	EventsPerConnection float64      `json:"events_per_connection"`
	Tools               []toolReport `json:"tools"`
}

// toolReport has a spread of each number over the rounds.
type toolReport struct {
	Tool                 string  `json:"tool"`
	ConnectionsPerSecond *spread `json:"connections_per_second"`
	// RateRatio is the rate by that without a tool in the same round.
	RateRatio *spread `json:"rate_ratio"`
	// BPFNanoseconds is the run time of the tool's programs for each event.
	BPFNanoseconds *spread `json:"bpf_ns_per_event"`
	Printed        *spread `json:"events_printed"`
	// Lost is what part of the events the tool says that it has lost.
	Lost *spread `json:"lost_ratio"`
	// CPUMicroseconds is the CPU time of the tool's process for each event printed.
	CPUMicroseconds *spread `json:"cpu_us_per_event_printed"`
	PeakMemory      *spread `json:"peak_memory_bytes"`
}

// spread is what a number was over the rounds.
type spread struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

// over returns the spread of f over the rounds, nil if f has no number for one.
func over[M any](rounds []M, f func(round int, m *M) (float64, bool)) *spread {
	var values []float64
	for i := range rounds {
		value, ok := f(i, &rounds[i])
		if !ok {
			return nil
		}
		values = append(values, value)
	}
	slices.Sort(values)
	mid := len(values) / 2
	median := values[mid]
	if len(values)%2 == 0 {
		median = (values[mid-1] + values[mid]) / 2
	}
	return &spread{median, values[0], values[len(values)-1]}
}

func summarize(p pattern, all []series) patternReport {
	named := func(name string) []measurement {
		i := slices.IndexFunc(all, func(s series) bool { return s.tool.name == name })
		return all[i].rounds
	}
	without := named(nothing)
	each := over(named(emptyProgram), func(_ int, m *measurement) (float64, bool) {
		return float64(m.runs) / float64(m.connections), m.connections > 0
	})
	r := patternReport{Pattern: p.name, EventsPerConnection: each.Median}
	for i := range all {
		r.Tools = append(r.Tools, all[i].summarize(without, each.Median))
	}
	return r
}

func (s *series) summarize(without []measurement, eventsPerConnection float64) toolReport {
	prints := s.tool.account != nil
	return toolReport{
		Tool:                 s.tool.name,
		ConnectionsPerSecond: over(s.rounds, func(_ int, m *measurement) (float64, bool) { return m.rate, true }),
		RateRatio: over(s.rounds, func(i int, m *measurement) (float64, bool) {
			return m.rate / without[i].rate, true
		}),
		BPFNanoseconds: over(s.rounds, func(_ int, m *measurement) (float64, bool) {
			return float64(m.runTime.Nanoseconds()) / (float64(m.connections) * eventsPerConnection), m.runs > 0
		}),
		Printed: over(s.rounds, func(_ int, m *measurement) (float64, bool) { return float64(m.printed), prints }),
		Lost: over(s.rounds, func(_ int, m *measurement) (float64, bool) {
			return float64(m.lost) / float64(m.lost+m.printed), m.lost+m.printed > 0
		}),
		CPUMicroseconds: over(s.rounds, func(_ int, m *measurement) (float64, bool) {
			return float64(m.cpu.Microseconds()) / float64(m.printed), m.printed > 0
		}),
		PeakMemory: over(s.rounds, func(_ int, m *measurement) (float64, bool) { return float64(m.memory), m.memory > 0 }),
	}
}

func (r *report) sections() (sections []section) {
	for i := range r.Patterns {
		p := &r.Patterns[i]
		sections = append(sections, section{p.title(), p.rows()})
	}
	return sections
}

func (p *patternReport) title() string {
	return fmt.Sprintf("%s: %.1f events a connection", p.Pattern, p.EventsPerConnection)
}

// summary is the report of the first pattern without the spreads.
type summary struct{ *report }

func (s summary) headline() string {
	return fmt.Sprintf("Linux %s, %d CPUs, both busy; medians of %d rounds", s.Kernel, s.CPUs, s.Rounds)
}

func (s summary) sections() []section {
	p := &s.Patterns[0]
	rows := [][]string{{"", "connections/s, of those without", "BPF ns/event", "events lost", "CPU µs/event printed", "memory, MiB"}}
	for _, t := range p.Tools {
		rows = append(rows, []string{
			t.Tool,
			t.RateRatio.median("%.0f %%", 100),
			t.BPFNanoseconds.median("%.0f", 1),
			t.Lost.median("%.1f %%", 100),
			t.CPUMicroseconds.median("%.2f", 1),
			t.PeakMemory.median("%.0f", 1.0/(1<<20)),
		})
	}
	return []section{{p.title(), rows}}
}

// rows returns the table of the pattern, with its head.
func (p *patternReport) rows() [][]string {
	rows := [][]string{{"tool", "connections/s", "of nothing's", "BPF ns/event", "printed", "lost", "CPU µs/printed", "peak MiB"}}
	for _, t := range p.Tools {
		rows = append(rows, []string{
			t.Tool,
			t.ConnectionsPerSecond.format("%.0f", 1),
			t.RateRatio.format("%.1f %%", 100),
			t.BPFNanoseconds.format("%.0f", 1),
			t.Printed.format("%.0f", 1),
			t.Lost.format("%.1f %%", 100),
			t.CPUMicroseconds.format("%.2f", 1),
			t.PeakMemory.format("%.0f", 1.0/(1<<20)),
		})
	}
	return rows
}

// format writes the numbers in a unit of which one is 1/scale; - for none.
func (s *spread) format(verb string, scale float64) string {
	if s == nil {
		return "-"
	}
	median := fmt.Sprintf(verb, s.Median*scale)
	least, most := fmt.Sprintf(verb, s.Least*scale), fmt.Sprintf(verb, s.Most*scale)
	if least == most {
		return median
	}
	return fmt.Sprintf("%s (%s to %s)", median, strings.TrimSuffix(least, " %"), strings.TrimSuffix(most, " %"))
}

// median is format without the spread.
func (s *spread) median(verb string, scale float64) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf(verb, s.Median*scale)
}
