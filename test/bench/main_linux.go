// Command bench measures what tracers of TCP states cost: finwait's commands, the
// other tools that Debian has, and a program that does nothing, on the same load,
// in turn, several times over.
//
// Each tool has two spells of load: one that tells how many connections are made
// meanwhile, and one, with the kernel's statistics of programs on
// (kernel.bpf_stats_enabled), that tells what its programs take. Numbers are
// medians over the rounds, with the least and the greatest; a rate is given by
// what it is of the rate without a tool in the same round, since a machine's own
// varies. Run it by make bench-events, as root, and with nothing else going on.
//
// With -census it measures what counts sockets instead: finwait count, netstat and
// ss, on up to a million sockets in TIME_WAIT and in ESTABLISHED. All are there in
// each turn, though the former last a minute: see crowd.refresh. If they are not,
// the report says so. Run that by make bench-census.
//
// With -doctor it measures how long finwait doctor takes beyond the time that it
// watches, on as many sockets. Run that by make bench-doctor.
//
// With -records it measures what a record takes as a line of JSON, which
// docs/fleet.md reckons with. Run that by make bench-records.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var (
		finwait  = flag.String("finwait", "./finwait", "the `file` of the command to measure")
		rounds   = flag.Int("rounds", 5, "how often each tool has its turn")
		spell    = flag.Duration("spell", 2*time.Second, "how long a spell of load is")
		names    = flag.String("patterns", "close", "`patterns` of load, with commas between, or all: "+strings.Join(patternNames(), ", "))
		only     = flag.String("tools", "", "`tools` to measure, with commas between (default all)")
		jsonFile = flag.String("json", "", "also write the results to this `file`")
		from     = flag.String("from", "", "measure nothing, and write the results that an earlier run wrote to this `file` for a document")
		census   = flag.Bool("census", false, "measure the commands that count sockets")
		doctor   = flag.Bool("doctor", false, "measure finwait doctor")
		sizes    = flag.String("sizes", "1000,131072,1000000", "with -census or -doctor, `numbers` of sockets, with commas between")
		records  = flag.Bool("records", false, "measure what records take as JSON, for some minutes")
		mixed    = flag.Int("connections", 50_000, "with -records, how many `connections` to make")
		metrics  = flag.String("metrics", "cmd/finwait/internal/metrics/testdata", "with -records, the `folder` with what an agent tells Prometheus")
		onlyLoad = flag.Bool("load", false, "only make the load, for one spell of each pattern, and say how fast it was")
	)
	flag.Parse()
	switch {
	case *from != "" && *records:
		return republish(os.Stdout, &recordsReport{}, *from)
	case *from != "" && *census:
		return republish(os.Stdout, &censusReport{}, *from)
	case *from != "" && *doctor:
		return republish(os.Stdout, &doctorReport{}, *from)
	case *from != "":
		return republish(os.Stdout, &report{}, *from)
	}
	chosen, err := choosePatterns(*names)
	if err != nil {
		return err
	}
	if *onlyLoad {
		return loadOnly(chosen, *spell)
	}
	scratch, err := os.MkdirTemp("", "finwait-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	command, err := filepath.Abs(*finwait)
	if err != nil {
		return err
	}
	// The tools get the signal too, and end by it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if *census {
		report, err := runCensus(ctx, command, *sizes, *rounds, scratch)
		if err := publish(report, err, *jsonFile); err != nil {
			return err
		}
		return report.finwaitWrong()
	}
	if *doctor {
		report, err := runDoctor(ctx, command, *sizes, *rounds, scratch)
		return publish(report, err, *jsonFile)
	}
	if *records {
		report, err := runRecords(ctx, command, *mixed, *metrics, scratch)
		return publish(report, err, *jsonFile)
	}
	tools, err := chooseTools(allTools(command), *only)
	if err != nil {
		return err
	}
	report, err := runEvents(ctx, chosen, tools, *rounds, *spell, scratch)
	return publish(report, err, *jsonFile)
}

// runEvents measures the tools on each pattern of load.
func runEvents(ctx context.Context, patterns []pattern, tools []*tool, rounds int, spell time.Duration, scratch string) (*report, error) {
	r := &report{header: newHeader(rounds), SpellSec: spell.Seconds()}
	for _, p := range patterns {
		others, err := p.openBeside()
		if err != nil {
			return nil, fmt.Errorf("pattern %s: %w", p.name, err)
		}
		series, err := measurePattern(ctx, p, tools, rounds, spell, scratch)
		others.close()
		if err != nil {
			return nil, fmt.Errorf("pattern %s: %w", p.name, err)
		}
		r.Patterns = append(r.Patterns, summarize(p, series))
	}
	return r, nil
}

// loadOnly makes the load for someone else to measure.
func loadOnly(patterns []pattern, spell time.Duration) error {
	for _, p := range patterns {
		others, err := p.openBeside()
		if err != nil {
			return fmt.Errorf("pattern %s: %w", p.name, err)
		}
		connections, took, err := p.once(spell)
		others.close()
		if err != nil {
			return fmt.Errorf("pattern %s: %w", p.name, err)
		}
		fmt.Printf("%s: %d connections, %.0f connections/s\n", p.name, connections, float64(connections)/took.Seconds())
	}
	return nil
}

// series are a tool's measurements, one for each round.
type series struct {
	tool   *tool
	rounds []measurement
}

// measurePattern has every tool take its turn in each round, and another begin
// each.
func measurePattern(ctx context.Context, p pattern, tools []*tool, rounds int, spell time.Duration, scratch string) ([]series, error) {
	all := make([]series, len(tools))
	for i, tool := range tools {
		all[i].tool = tool
	}
	for round := range rounds {
		for i := range all {
			if ctx.Err() != nil {
				return nil, errors.New("interrupted")
			}
			s := &all[(i+round)%len(all)]
			m, err := s.tool.measure(p, spell, scratch)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.tool.name, err)
			}
			fmt.Fprintf(os.Stderr, "%s, round %d of %d: %s: %.0f connections/s\n", p.name, round+1, rounds, s.tool.name, m.rate)
			s.rounds = append(s.rounds, m)
		}
	}
	return all, nil
}

func choosePatterns(names string) ([]pattern, error) {
	if names == "all" {
		return patterns, nil
	}
	var chosen []pattern
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(patterns, func(p pattern) bool { return p.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no pattern %q: want some of %s, or all", name, strings.Join(patternNames(), ", "))
		}
		chosen = append(chosen, patterns[i])
	}
	return chosen, nil
}

// chooseTools returns the tools of these names, and always those that the others
// are held to.
func chooseTools(all []*tool, names string) ([]*tool, error) {
	if names == "" {
		return all, nil
	}
	wanted := strings.Split(names, ",")
	chosen := slices.DeleteFunc(all, func(t *tool) bool {
		i := slices.Index(wanted, t.name)
		if i >= 0 {
			wanted = slices.Delete(wanted, i, i+1)
		}
		return i < 0 && t.name != nothing && t.name != emptyProgram
	})
	if len(wanted) > 0 {
		return nil, fmt.Errorf("no tool %q", wanted[0])
	}
	return chosen, nil
}
