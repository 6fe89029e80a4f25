package main

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

var update = flag.Bool("update", false, "write finwait.json")

// TestDashboard holds the committed file to what is generated.
func TestDashboard(t *testing.T) {
	const file = "finwait.json"
	want, err := render()
	qt.Assert(t, qt.IsNil(err))
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(file, want, 0o644)))
		return
	}
	got, err := os.ReadFile(file)
	qt.Assert(t, qt.IsNil(err))
	if string(got) != string(want) {
		t.Error("finwait.json is not what is generated: go test ./deploy/grafana -update writes it")
	}
}

// TestLayout sees that no panel lies on another, or beyond the grid, and that
// each has a text.
func TestLayout(t *testing.T) {
	text, err := render()
	qt.Assert(t, qt.IsNil(err))
	var d struct {
		Panels []struct {
			ID          int
			Type, Title string
			Description string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr string }
		}
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal(text, &d)))
	taken := map[[2]int]string{}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		qt.Check(t, qt.IsFalse(ids[p.ID]), qt.Commentf("id %d twice", p.ID))
		ids[p.ID] = true
		if p.Type != "row" {
			qt.Check(t, qt.Not(qt.Equals(p.Description, "")), qt.Commentf("%s says nothing", p.Title))
			qt.Check(t, qt.Not(qt.HasLen(p.Targets, 0)), qt.Commentf("%s asks nothing", p.Title))
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			qt.Check(t, qt.IsTrue(x < gridWidth), qt.Commentf("%s is too wide", p.Title))
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				at := [2]int{x, y}
				if taken[at] != "" {
					t.Fatalf("%s lies on %s", p.Title, taken[at])
				}
				taken[at] = p.Title
			}
		}
		for _, target := range p.Targets {
			qt.Check(t, qt.IsFalse(strings.Contains(target.Expr, "$S") || strings.Contains(target.Expr, "$R]")), qt.Commentf("%s", target.Expr))
			qt.Check(t, qt.StringContains(target.Expr, selector), qt.Commentf("%s asks for all hosts", p.Title))
		}
	}
}

// families are the metrics of the agent, and whether a panel has to show them.
var families = map[string]bool{
	"finwait_sockets": true, "finwait_half_open_sockets": true, "finwait_transitions_total": true,
	"finwait_dwell_seconds": true, "finwait_dwell_unknown_total": true, "finwait_endings_total": true,
	"finwait_half_open_dropped_total": true, "finwait_ledger_total": true, "finwait_drift_sockets": true,
	"finwait_audit_timestamp_seconds": true, "finwait_sink_records_total": true, "finwait_sink_queue_records": true,
	"finwait_bpf_program_runs_total": true, "finwait_bpf_program_run_seconds_total": true,
	"finwait_bpf_program_recursion_misses_total": true, "finwait_bpf_map_memory_bytes": true,
	"finwait_ring_size_bytes": true, "finwait_ring_high_water_bytes": true, "finwait_sampling_ratio": true,
	"finwait_evidence_info": true, "finwait_build_info": true, "finwait_service_sockets": true,
	"finwait_service_dwell_seconds": true, "finwait_cgroup_sockets": true,
	"process_cpu_seconds_total": true, "process_resident_memory_bytes": true,
}

// TestFamilies sees that what the agent tells is shown, and that nothing is
// asked for that it does not tell.
func TestFamilies(t *testing.T) {
	shown := map[string]bool{}
	for _, r := range rows {
		for _, p := range r.panels {
			for _, q := range p.queries {
				for _, name := range namesIn(q.expr) {
					shown[name] = true
					qt.Check(t, qt.IsTrue(families[name]), qt.Commentf("%s: there is no %s", p.title, name))
				}
			}
		}
	}
	for name := range families {
		qt.Check(t, qt.IsTrue(shown[name]), qt.Commentf("no panel shows %s", name))
	}
}

// namesIn returns the metrics that an expression asks for: what stands before {.
func namesIn(expr string) (names []string) {
	before := strings.Split(expr, "{$S")
	for _, part := range before[:len(before)-1] {
		start := strings.LastIndexFunc(part, func(r rune) bool {
			return r != '_' && (r < 'a' || r > 'z')
		})
		names = append(names, strings.TrimSuffix(part[start+1:], "_bucket"))
	}
	return names
}
