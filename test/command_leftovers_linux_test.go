package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// TestCommandLeavesNothing ends finwait in every way there is, and looks for
// programs, maps and links that have stayed in the kernel.
func TestCommandLeavesNothing(t *testing.T) {
	netns.RequireRoot(t)
	json := []string{"--format", "json"}
	tests := []struct {
		name string
		run  func(*testing.T, *netns.NS)
	}{
		{"done", func(t *testing.T, ns *netns.NS) {
			p := traceIn(t, ns, append(json, "--duration", "300ms")...)
			checkLedger(t, p.wait())
		}},
		{"count reached", func(t *testing.T, ns *netns.NS) {
			p := traceIn(t, ns, append(json, "--count", "1")...)
			makeTraffic(t, ns, traffic.ActiveClose, 1, tracer.FamilyIPv4)
			qt.Check(t, qt.Equals(p.wait().code, 0))
		}},
		{"interrupted", func(t *testing.T, ns *netns.NS) { traceIn(t, ns, json...).stop() }},
		{"killed", func(t *testing.T, ns *netns.NS) {
			p := traceIn(t, ns, json...)
			makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
			qt.Assert(t, qt.IsNil(p.cmd.Process.Kill()))
			qt.Check(t, qt.Equals(p.wait().code, -1))
		}},
		{"killed while it starts", killWhileStarting},
		{"reader gone", func(t *testing.T, ns *netns.NS) {
			qt.Check(t, qt.Equals(endByEPIPE(t, ns, "json").wait().code, 0))
		}},
		{"disk full", func(t *testing.T, ns *netns.NS) {
			qt.Check(t, qt.Equals(traceTo(t, ns, devFull(t), "csv").wait().code, 1))
		}},
		{"bad usage", func(t *testing.T, _ *netns.NS) {
			checkFailure(t, finwait(t, "trace", "--transition", "LISTEN:ESTABLISHED"), 2)
		}},
		{"stuck", func(t *testing.T, _ *netns.NS) {
			qt.Check(t, qt.Equals(finwait(t, "stuck").code, 0))
		}},
		{"count", func(t *testing.T, _ *netns.NS) {
			qt.Check(t, qt.Equals(finwait(t, "count").code, 0))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before, err := oracle.Leftovers()
			qt.Assert(t, qt.IsNil(err))
			tt.run(t, netns.New(t))
			awaitNothingLeft(t, before)
		})
	}
}

func killWhileStarting(t *testing.T, _ *netns.NS) {
	for _, after := range []time.Duration{0, 50, 100, 150, 200, 250} {
		p := spawn(t, exec.Command(binary(t), "trace", "--format", "json", "--state", "CLOSING"))
		time.Sleep(after * time.Millisecond) // anywhere in its start is right
		qt.Assert(t, qt.IsNil(p.cmd.Process.Kill()))
		p.wait()
	}
}

// awaitNothingLeft waits until the kernel has freed all that came since before,
// which it does some time after the last reference is gone. What others on the
// host make meanwhile is held open by them: it is none of finwait's.
func awaitNothingLeft(t testing.TB, before []string) {
	t.Helper()
	after, err := oracle.Leftovers()
	qt.Assert(t, qt.IsNil(err))
	left := oracle.Since(before, after)
	for deadline := time.Now().Add(20 * time.Second); len(left) > 0; time.Sleep(20 * time.Millisecond) {
		now, err := oracle.Leftovers()
		qt.Assert(t, qt.IsNil(err))
		held := heldByProcesses()
		left = slices.DeleteFunc(left, func(object string) bool {
			kindAndID := strings.Join(strings.Fields(object)[:2], " ")
			return !slices.Contains(now, object) || held[kindAndID]
		})
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %v", left)
		}
	}
}

// heldByProcesses returns the BPF objects that processes have descriptors of,
// such as "map 12".
func heldByProcesses() map[string]bool {
	held := map[string]bool{}
	files, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*") // the pattern is right
	for _, file := range files {
		for _, object := range objectsIn(file) {
			held[object] = true
		}
	}
	return held
}

// objectsIn returns what a file of /proc/PID/fdinfo says that the descriptor is.
func objectsIn(file string) (objects []string) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil // closed since
	}
	kinds := map[string]string{"prog_id:": "program", "map_id:": "map", "link_id:": "link"}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 2 && kinds[words[0]] != "" {
			objects = append(objects, kinds[words[0]]+" "+words[1])
		}
	}
	return objects
}

// TestCommandHoldsWhatItMakes checks the test above: a running finwait has
// programs, maps and links, and they are gone when it is.
func TestCommandHoldsWhatItMakes(t *testing.T) {
	netns.RequireRoot(t)
	p := traceIn(t, netns.New(t), "--format", "json")
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", p.cmd.Process.Pid))
	qt.Assert(t, qt.IsNil(err))
	var mine []string
	for _, file := range files {
		mine = append(mine, objectsIn(file)...)
	}
	for _, kind := range []string{"program ", "map ", "link "} {
		qt.Check(t, qt.IsTrue(slices.ContainsFunc(mine, func(o string) bool { return strings.HasPrefix(o, kind) })), qt.Commentf("no %sin %v", kind, mine))
	}
	p.stop()
	p.await("freeing", func() bool {
		now, err := oracle.Leftovers()
		qt.Assert(t, qt.IsNil(err))
		return !slices.ContainsFunc(now, func(object string) bool {
			return slices.Contains(mine, strings.Join(strings.Fields(object)[:2], " "))
		})
	})
}
