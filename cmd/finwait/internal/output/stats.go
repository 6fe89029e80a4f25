package output

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/measure"
	"github.com/finwait/finwait/tracer"
)

// Stats is what a run costs by itself. It is a plain value.
type Stats struct {
	// Wall is how long it has lasted, and Process what the process has cost
	// meanwhile.
	Wall    time.Duration
	Process measure.Process
	// Tracer is what the tracer has cost, nil if there is none, or if it could
	// not be read for the reason TracerErr.
	Tracer    *tracer.Stats
	TracerErr error
}

// AppendStats appends s in lines like those of the ledger. What is not known is
// left out.
func AppendStats(dst []byte, s *Stats) []byte {
	dst = append(dst, "finwait: own cost after "...)
	dst = AppendDuration(dst, s.Wall)
	dst = append(dst, '\n')
	dst = appendProcess(dst, &s.Process, s.Wall)
	if s.TracerErr != nil {
		dst = fmt.Appendf(dst, "finwait:   programs, maps and rings not known: %s\n", Quote(nil, []byte(errorText(s.TracerErr))))
	}
	if s.Tracer == nil {
		return dst
	}
	if memory, known := s.Tracer.MapMemory(); known {
		dst = fmt.Appendf(dst, "finwait:   maps: %s of kernel memory\n", size(memory))
	}
	for _, r := range s.Tracer.Rings {
		dst = fmt.Appendf(dst, "finwait:   ring %s: %d of %d bytes waited at the most (%s)\n", r.Name, r.HighWater, r.Size, percent(float64(r.HighWater), float64(r.Size)))
	}
	return appendPrograms(dst, s.Tracer.Programs)
}

// shareAfter is how long a run lasts before its share of a CPU says anything:
// the process is some milliseconds older than the run.
const shareAfter = 100 * time.Millisecond

func appendProcess(dst []byte, p *measure.Process, wall time.Duration) []byte {
	if p.CPUKnown {
		cpu := p.User + p.System
		share := ""
		if wall >= shareAfter {
			share = fmt.Sprintf(", %s of one", percent(float64(cpu), float64(wall)))
		}
		dst = fmt.Appendf(dst, "finwait:   CPU: %s%s (%s user, %s system)\n",
			AppendDuration(nil, cpu), share, AppendDuration(nil, p.User), AppendDuration(nil, p.System))
	}
	if p.MemoryKnown {
		dst = fmt.Appendf(dst, "finwait:   memory: %s resident (VmRSS), %s at the most (VmHWM)\n", size(p.Resident), size(p.Peak))
	}
	return dst
}

// appendPrograms appends what the kernel has measured of programs, the one that
// took most time first. It counts no runs while it does not measure, so there
// may be fewer than there were.
func appendPrograms(dst []byte, programs []tracer.ProgramStats) []byte {
	ran := slices.DeleteFunc(slices.Clone(programs), func(p tracer.ProgramStats) bool { return p.Runs == 0 })
	if len(ran) == 0 {
		return append(dst, "finwait:   programs: the kernel has measured no runs (sysctl kernel.bpf_stats_enabled=1 has it measure them)\n"...)
	}
	slices.SortFunc(ran, func(a, b tracer.ProgramStats) int {
		return cmp.Or(cmp.Compare(b.RunTime, a.RunTime), cmp.Compare(a.Name, b.Name))
	})
	all := tracer.ProgramStats{}
	for _, p := range ran {
		all.Runs += p.Runs
		all.RunTime += p.RunTime
	}
	dst = appendRuns(append(dst, "finwait:   programs, while the kernel measured them: "...), &all)
	for i := range ran {
		dst = fmt.Appendf(dst, "finwait:     %s (%s): ", ran[i].Name, ran[i].AttachedTo)
		dst = appendRuns(dst, &ran[i])
	}
	return dst
}

func appendRuns(dst []byte, p *tracer.ProgramStats) []byte {
	noun := "runs"
	if p.Runs == 1 {
		noun = "run"
	}
	return fmt.Appendf(dst, "%d %s, %s, %d ns each\n", p.Runs, noun, AppendDuration(nil, p.RunTime), uint64(p.RunTime)/p.Runs)
}

// percent returns the share that part is of the whole. What is there is not
// 0.0%.
func percent(part, whole float64) string {
	share := 100 * part / max(whole, 1)
	if part > 0 && share < 0.05 {
		return "<0.1%"
	}
	return fmt.Sprintf("%.1f%%", share)
}
