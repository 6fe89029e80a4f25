//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// Counters returns what has been counted so far. Each number is exact; they
// are not read at one instant, so sockets that move meanwhile may be in one
// number and not yet in another.
func (t *Tracer) Counters() (Counters, error) { return readCounters(t.coll.Maps["matrix"]) }

func readCounters(matrix *ebpf.Map) (Counters, error) {
	var perCPU [][numStates][numStates]uint64
	if err := matrix.Lookup(uint32(0), &perCPU); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	var sum Counters
	for _, cpu := range perCPU {
		for from := range cpu {
			for to := range cpu[from] {
				sum.cells[from][to] += cpu[from][to]
			}
		}
	}
	return sum, nil
}

// Endings returns how the sockets have ended that were counted so far; see
// [Tracer.Counters]. It returns an error with Options.CountersOnly.
func (t *Tracer) Endings() (Endings, error) {
	if t.countersOnly {
		return Endings{}, fmt.Errorf("read endings: %w", errCountersOnly)
	}
	return readEndings(t.coll.Maps["endings"])
}

func readEndings(m *ebpf.Map) (Endings, error) {
	var perCPU []bpfFinwaitEndings
	if err := m.Lookup(uint32(0), &perCPU); err != nil {
		return Endings{}, fmt.Errorf("read endings: %w", err)
	}
	var sum Endings
	for _, cpu := range perCPU {
		for old := range cpu.N {
			for reason := range cpu.N[old] {
				for side, n := range cpu.N[old][reason] {
					sum.cells[old][reason][side] += n
				}
			}
		}
	}
	return sum, nil
}

// Ledger returns what became of the transitions so far. After Detach, and once
// Events has ended, its numbers add up.
func (t *Tracer) Ledger() (Ledger, error) {
	counters, err := t.Counters()
	if err != nil {
		return Ledger{}, err
	}
	var perCPU []bpfFinwaitLedger
	if err := t.coll.Maps["ledger"].Lookup(uint32(0), &perCPU); err != nil {
		return Ledger{}, fmt.Errorf("read ledger: %w", err)
	}
	l := Ledger{Seen: counters.Total() - t.pins.inheritedTotal(), Decode: t.decode.Load(), SweepFailed: t.failed.Load(), Corrected: t.auditor.corrected.Load()}
	for _, cpu := range perCPU {
		l.Emitted += cpu.Emitted
		l.RingFull += cpu.RingFull
		l.StorageFailed += cpu.StorageFailed
		l.NotHeld += cpu.NotHeld
		l.Unfollowed += cpu.Unfollowed
		l.TakenOver += cpu.TakenOver
		l.Recursion += cpu.Missed
		l.HandoffFull += cpu.HandoffFull
		l.WatchFull += cpu.WatchFull
		l.UnknownState += cpu.UnknownState
		l.RequestsFull += cpu.RequestsFull
		l.CompletedFull += cpu.CompletedFull
		l.NetnsFull += cpu.NetnsFull
		l.StackFailed += cpu.StackFailed
		l.Stale += cpu.Stale
		l.SYNCookies += cpu.SynCookies
		l.ConnsSeen += cpu.RecordsMade
		l.ConnsEmitted += cpu.RecordsTold
		l.ConnsLost += cpu.RecordsLost
		l.ConnsPartial += cpu.RecordsFull
		l.ProfileFull += cpu.ProfileFull
	}
	skipped, err := t.skipped()
	l.Recursion += skipped
	return l, err
}

// skipped returns how often the kernel skipped a program of the tier that no
// other stands in for.
func (t *Tracer) skipped() (uint64, error) {
	var skipped uint64
	for _, name := range append([]string{countProgram}, t.tier.programs...) {
		program := t.coll.Programs[name]
		if program == nil || slices.Contains(t.tier.programs, name+again) || strings.HasSuffix(name, again) {
			continue
		}
		stats, err := program.Stats()
		if err != nil {
			return 0, fmt.Errorf("read statistics of %s: %w", name, err)
		}
		skipped += stats.RecursionMisses
	}
	return skipped, nil
}

// again is how the name of a program ends that stands in for another.
const again = "_again"
