package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// TestCommandMatrix reads the counters of a running finwait with bpftool, which
// knows nothing of them but what the map's BTF says.
func TestCommandMatrix(t *testing.T) {
	netns.RequireRoot(t)
	if _, err := exec.LookPath("bpftool"); err != nil {
		if os.Getenv("CI_PRIVILEGED") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	ns := netns.New(t)
	p := trace(t, "--format", "json") // of the whole host, as the counters
	id := mapOf(t, p, "matrix")
	before := dumpMatrix(t, id)
	qt.Check(t, qt.HasLen(before, 13*13))

	made := makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
	var here, elsewhere, cells map[tracer.Transition]uint64
	p.await("match of counters and transitions", func() bool {
		cells = inWords(t, dumpMatrix(t, id))
		here, elsewhere = tallyOutput(t, p.stdout.String(), ns.Inode())
		return sum(here) >= sum(made.Cells()) && maps.Equal(cells, added(here, elsewhere))
	})
	checkLedger(t, p.stop())
	qt.Check(t, qt.DeepEquals(here, made.Cells()))
	moved := func(from, to tracer.State) uint64 {
		tr := tracer.Transition{Old: from, New: to}
		return cells[tr] - elsewhere[tr]
	}
	qt.Check(t, qt.Equals(moved(tracer.StateFinWait2, tracer.StateTimeWait), connections))
	qt.Check(t, qt.Equals(moved(tracer.StateSynSent, tracer.StateEstablished), connections))
	qt.Check(t, qt.Equals(moved(tracer.StateLastAck, tracer.StateClose), connections))
	qt.Check(t, qt.Equals(moved(tracer.StateFinWait2, tracer.StateClose), 0))
}

// mapOf returns the id of p's map of that name.
func mapOf(t testing.TB, p *process, name string) string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", p.cmd.Process.Pid))
	qt.Assert(t, qt.IsNil(err))
	for _, file := range files {
		for _, object := range objectsIn(file) {
			id, isMap := strings.CutPrefix(object, "map ")
			if isMap && strings.Contains(bpftool(t, "map", "show", "id", id), fmt.Sprintf(`"name":%q`, name)) {
				return id
			}
		}
	}
	t.Fatalf("finwait has no map %s", name)
	return ""
}

func bpftool(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("bpftool", append([]string{"-j"}, args...)...).Output()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("bpftool %v: %s", args, out))
	return string(out)
}

// dumpMatrix returns the fields of the map's value, such as
// from_FIN_WAIT2.to_TIME_WAIT, summed over the CPUs.
func dumpMatrix(t testing.TB, id string) map[string]uint64 {
	t.Helper()
	var entries []struct {
		Formatted struct {
			Values []struct {
				Value map[string]map[string]uint64
			}
		}
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(bpftool(t, "map", "dump", "id", id)), &entries)))
	qt.Assert(t, qt.HasLen(entries, 1))
	sums := map[string]uint64{}
	for _, cpu := range entries[0].Formatted.Values {
		for from, row := range cpu.Value {
			for to, n := range row {
				sums[from+"."+to] += n
			}
		}
	}
	return sums
}

// inWords returns the cells that are not 0. None may have a field that is no
// state.
func inWords(t testing.TB, sums map[string]uint64) map[tracer.Transition]uint64 {
	t.Helper()
	cells := map[tracer.Transition]uint64{}
	for name, n := range sums {
		if n == 0 {
			continue
		}
		tr, err := tracer.ParseTransition(strings.NewReplacer("from_", "", ".to_", ":").Replace(name))
		qt.Assert(t, qt.IsNil(err))
		cells[tr] = n
	}
	return cells
}

// tallyOutput counts the transitions in whole lines of JSON, in the namespace
// and in others.
func tallyOutput(t testing.TB, out string, inode uint32) (here, elsewhere map[tracer.Transition]uint64) {
	t.Helper()
	here, elsewhere = map[tracer.Transition]uint64{}, map[tracer.Transition]uint64{}
	for _, r := range parseJSON(t, out[:strings.LastIndexByte(out, '\n')+1]) {
		if r.Netns == inode {
			here[r.transition(t)]++
		} else {
			elsewhere[r.transition(t)]++
		}
	}
	return here, elsewhere
}

func added(a, b map[tracer.Transition]uint64) map[tracer.Transition]uint64 {
	both := maps.Clone(a)
	for tr, n := range b {
		both[tr] += n
	}
	return both
}
