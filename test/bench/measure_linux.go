package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// measurement is what one turn of a tool has told.
type measurement struct {
	rate float64 // connections per second

	// Of the spell with the kernel's statistics on.
	connections uint64
	runs        uint64        // of the program of the tool that ran most often
	runTime     time.Duration // of all its programs

	// Of both spells together.
	printed, lost uint64
	cpu           time.Duration // of its process
	memory        uint64        // most of its process at a time, in bytes
}

// measure has a tool take its turn.
func (t *tool) measure(p pattern, spell time.Duration, scratch string) (m measurement, err error) {
	l, err := p.open()
	if err != nil {
		return m, err
	}
	r, err := t.start(scratch)
	if err != nil {
		return m, errors.Join(err, l.close())
	}
	err = r.measure(&m, l, spell)
	if endErr := r.end(); err == nil {
		err = endErr
	}
	err = errors.Join(err, l.close())
	if err == nil && t.account != nil {
		m.printed, m.lost, err = t.account(r.stdout, r.stderr.String())
	}
	return m, err
}

func (r *running) measure(m *measurement, l *load, spell time.Duration) error {
	before := r.cpu()
	connections, took, err := l.run(spell)
	if err != nil {
		return err
	}
	m.rate = float64(connections) / took.Seconds()

	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return fmt.Errorf("turn on the kernel's statistics of programs: %w", err)
	}
	defer stats.Close()
	runsBefore := r.programs()
	if m.connections, _, err = l.run(spell); err != nil {
		return err
	}
	for id, after := range r.programs() {
		m.runTime += after.Runtime - runsBefore[id].Runtime
		m.runs = max(m.runs, after.RunCount-runsBefore[id].RunCount)
	}
	r.drain()
	m.cpu = r.cpu() - before
	m.memory = r.memory()
	return nil
}

// cpu returns the CPU time that the tool's process has used.
func (r *running) cpu() time.Duration {
	if r.cmd == nil {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	const ticks = 100 // a second: USER_HZ of every architecture that finwait runs on
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	return time.Duration(leadingNumber(fields[11])+leadingNumber(fields[12])) * time.Second / ticks
}

// memory returns the most memory that the tool's process had at a time.
func (r *running) memory() uint64 {
	if r.cmd == nil {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), "VmHWM:")
	return leadingNumber(strings.TrimSpace(after)) << 10
}

// programIDs returns the ids of all programs that are loaded.
func programIDs() map[uint32]bool {
	ids := map[uint32]bool{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return ids
		}
		id = next
		ids[uint32(id)] = true
	}
}

// programs returns the statistics of the tool's programs.
func (r *running) programs() map[uint32]ebpf.ProgramStats {
	all := map[uint32]ebpf.ProgramStats{}
	if r.cmd == nil && r.attached == nil {
		return all // others may load some meanwhile
	}
	for id := range programIDs() {
		if r.startedWithout[id] {
			continue
		}
		prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			continue // gone since
		}
		if stats, err := prog.Stats(); err == nil {
			all[id] = *stats
		}
		prog.Close()
	}
	return all
}
