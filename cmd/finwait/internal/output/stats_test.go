package output

import (
	"errors"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/measure"
	"github.com/finwait/finwait/tracer"
)

// exampleProcess is one of which all is known.
var exampleProcess = measure.Process{
	User: 180 * time.Millisecond, System: 30 * time.Millisecond, CPUKnown: true,
	Resident: 58 << 20, Peak: 61<<20 + 1<<19, MemoryKnown: true,
}

func TestAppendStats(t *testing.T) {
	rings := []tracer.RingStats{
		{Name: "events", Size: 16 << 20, HighWater: 1 << 20},
		{Name: "conns", Size: 4 << 20, HighWater: 72},
	}
	for _, tt := range []struct {
		name  string
		stats Stats
		want  string
	}{
		{"process alone", Stats{Wall: 2 * time.Second, Process: exampleProcess}, `
finwait: own cost after 2.0s
finwait:   CPU: 210ms, 10.5% of one (180ms user, 30ms system)
finwait:   memory: 58.0 MiB resident (VmRSS), 61.5 MiB at the most (VmHWM)
`},
		{"too short for a share", Stats{Wall: 2 * time.Millisecond, Process: exampleProcess}, `
finwait: own cost after 2.0ms
finwait:   CPU: 210ms (180ms user, 30ms system)
finwait:   memory: 58.0 MiB resident (VmRSS), 61.5 MiB at the most (VmHWM)
`},
		{"nothing known", Stats{Wall: time.Minute}, `
finwait: own cost after 60.0s
`},
		{"not measured", Stats{Wall: 2 * time.Second, Process: exampleProcess, Tracer: &tracer.Stats{
			Programs: []tracer.ProgramStats{{Name: "set_state", AttachedTo: "tp_btf/inet_sock_set_state", RecursionMisses: 1}},
			Maps:     []tracer.MapStats{{Name: "events", Memory: 70 << 20, MemoryKnown: true}, {Name: "minis", Memory: 3 << 20, MemoryKnown: true}},
			Rings:    rings,
		}}, `
finwait: own cost after 2.0s
finwait:   CPU: 210ms, 10.5% of one (180ms user, 30ms system)
finwait:   memory: 58.0 MiB resident (VmRSS), 61.5 MiB at the most (VmHWM)
finwait:   maps: 73.0 MiB of kernel memory
finwait:   ring events: 1048576 of 16777216 bytes waited at the most (6.2%)
finwait:   ring conns: 72 of 4194304 bytes waited at the most (<0.1%)
finwait:   programs: the kernel has measured no runs (sysctl kernel.bpf_stats_enabled=1 has it measure them)
`},
		{"measured, memory of a map not known", Stats{Wall: 2 * time.Second, Tracer: &tracer.Stats{
			Programs: []tracer.ProgramStats{
				{Name: "claim", AttachedTo: "iter/task_file", Runs: 1, RunTime: 900},
				{Name: "idle", AttachedTo: "iter/tcp"},
				{Name: "set_state", AttachedTo: "tp_btf/inet_sock_set_state", Runs: 230, RunTime: 123 * time.Microsecond},
			},
			Maps:  []tracer.MapStats{{Name: "events", Memory: 70 << 20, MemoryKnown: true}, {Name: "minis"}},
			Rings: []tracer.RingStats{{Name: "events", Size: 4096}},
		}}, `
finwait: own cost after 2.0s
finwait:   ring events: 0 of 4096 bytes waited at the most (0.0%)
finwait:   programs, while the kernel measured them: 231 runs, 123µs, 536 ns each
finwait:     set_state (tp_btf/inet_sock_set_state): 230 runs, 123µs, 534 ns each
finwait:     claim (iter/task_file): 1 run, 900ns, 900 ns each
`},
		{"not to be read", Stats{Wall: 2 * time.Second, TracerErr: errors.New("read statistics of set_state: no\n\x1b[31m")}, `
finwait: own cost after 2.0s
finwait:   programs, maps and rings not known: read statistics of set_state: no; \x1b[31m
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			qt.Check(t, qt.Equals("\n"+string(AppendStats(nil, &tt.stats)), tt.want))
		})
	}
}
