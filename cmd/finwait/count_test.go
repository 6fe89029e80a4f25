package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

// runCount runs finwait count in the namespace of the test, where it listens on
// a port of its own, and returns what it printed.
func runCount(t *testing.T, args ...string) string {
	t.Helper()
	listenHere(t)
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), append([]string{"count", "--netns", "self"}, args...), &stdout, &stderr)
	qt.Assert(t, qt.Equals(code, exitDone), qt.Commentf("%s", stderr.String()))
	return stdout.String()
}

func listenHere(t *testing.T) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { l.Close() })
	return l.Addr()
}

func TestCountTable(t *testing.T) {
	out := runCount(t)
	qt.Assert(t, qt.IsTrue(strings.Contains(out, "LISTEN\t")), qt.Commentf("%s", out))
	last := uint64(1 << 63)
	for line := range strings.Lines(out) {
		var state string
		var n uint64
		_, err := fmt.Sscanf(line, "%s\t%d\n", &state, &n)
		qt.Assert(t, qt.IsNil(err))
		_, err = tracer.ParseState(state)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsTrue(n > 0 && n <= last))
		last = n
	}
}

func TestCountJSON(t *testing.T) {
	for _, by := range []string{"netns", "listener", "process", "remote"} {
		t.Run(by, func(t *testing.T) {
			var got struct {
				Time       time.Time         `json:"time"`
				NetnsCount int               `json:"netns_count"`
				States     map[string]uint64 `json:"states"`
				By         string            `json:"by"`
				Groups     []struct {
					States map[string]uint64 `json:"states"`
				} `json:"groups"`
			}
			qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(runCount(t, "--format", "json", "--by", by)), &got)))
			qt.Assert(t, qt.Equals(got.By, by))
			qt.Assert(t, qt.Equals(got.NetnsCount, 1))
			qt.Assert(t, qt.IsFalse(got.Time.IsZero()))
			qt.Assert(t, qt.HasLen(got.States, 11))
			sum := map[string]uint64{}
			for _, g := range got.Groups {
				for s, n := range g.States {
					sum[s] += n
				}
			}
			for s, n := range got.States {
				qt.Assert(t, qt.Equals(sum[s], n), qt.Commentf("%s", s))
			}
		})
	}
}

func TestCountByProcessNamesUs(t *testing.T) {
	want := fmt.Sprintf("\t%d/", os.Getpid())
	out := runCount(t, "--by", "process")
	qt.Assert(t, qt.IsTrue(strings.Contains(out, want)), qt.Commentf("%s", out))
}

func TestCountUsageErrors(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"format", []string{"--format", "csv"}, `unknown format "csv" (want table or json)`},
		{"netns", []string{"--netns", "blue"}, `unknown --netns "blue" (want all or self)`},
		{"by", []string{"--by", "state"}, `unknown --by "state" (want netns, listener, process or remote)`},
		{"empty by", []string{"--by", ""}, `unknown --by ""`},
		{"short watch", []string{"--watch", "99ms"}, "--watch 99ms is too short (want 100ms or more)"},
		{"negative watch", []string{"--watch", "-1s"}, "--watch -1s is too short"},
		{"zero watch", []string{"--watch", "0"}, "--watch 0s is too short"},
		{"not a duration", []string{"--watch", "soon"}, `invalid argument "soon"`},
		{"argument", []string{"TIME_WAIT"}, `count takes no arguments, got "TIME_WAIT"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), append([]string{"count"}, tt.args...), &stdout, &stderr)
			qt.Assert(t, qt.Equals(code, exitUsage))
			qt.Assert(t, qt.Equals(stdout.String(), ""))
			qt.Assert(t, qt.IsTrue(strings.Contains(stderr.String(), tt.want)), qt.Commentf("%s", stderr.String()))
		})
	}
}

// cancelAfter cancels a context once it has been written to n times.
type cancelAfter struct {
	mu     sync.Mutex
	n      int
	cancel context.CancelFunc
	bytes.Buffer
}

func (w *cancelAfter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n--; w.n == 0 {
		w.cancel()
	}
	return w.Buffer.Write(p)
}

func TestCountWatch(t *testing.T) {
	listenHere(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &cancelAfter{n: 3, cancel: cancel}
	var stderr bytes.Buffer
	code := run(ctx, []string{"count", "--netns", "self", "--watch", "100ms"}, out, &stderr)
	qt.Assert(t, qt.Equals(code, exitDone), qt.Commentf("%s", stderr.String()))

	parts := strings.Split(out.String(), "\n\n")
	qt.Assert(t, qt.HasLen(parts, 3), qt.Commentf("%s", out.String()))
	for _, part := range parts[1:] {
		first, _, _ := strings.Cut(part, "\n")
		_, err := time.Parse(time.RFC3339, first)
		qt.Assert(t, qt.IsNil(err))
	}
}

func TestCountWriteError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	var stderr bytes.Buffer
	listenHere(t)
	code := run(t.Context(), []string{"count", "--netns", "self"}, full, &stderr)
	qt.Assert(t, qt.Equals(code, exitFailed))
	qt.Assert(t, qt.IsTrue(strings.Contains(stderr.String(), "finwait: write counts: ")), qt.Commentf("%s", stderr.String()))
}

func TestCountWarnings(t *testing.T) {
	denied := fmt.Errorf("enter network namespace 7: %w", os.ErrPermission)
	tests := []struct {
		name      string
		missed    tracer.CensusMissed
		byProcess bool
		want      string
	}{
		{"nothing", tracer.CensusMissed{}, false, ""},
		{"vanished", tracer.CensusMissed{Vanished: []uint32{7}}, false, ""},
		{
			"denied",
			tracer.CensusMissed{Netns: []tracer.MissedNetns{{Netns: 7, Name: "a\x1b", Err: denied}, {Netns: 8, Err: errors.New("x")}}},
			false,
			`finwait: 2 of 5 network namespaces not counted: a\x1b: enter network namespace 7: permission denied (needs CAP_SYS_ADMIN)` + "\n",
		},
		{
			"hidden", tracer.CensusMissed{HiddenProcesses: 1}, false,
			"finwait: 1 process could not be looked into: network namespaces may be missing (needs CAP_SYS_PTRACE)\n",
		},
		{
			"hidden owners", tracer.CensusMissed{HiddenProcesses: 2}, true,
			"finwait: 2 processes could not be looked into: sockets are shown without an owner (needs CAP_SYS_PTRACE)\n",
		},
		{
			"inexact", tracer.CensusMissed{Inexact: []uint32{7}}, false,
			"finwait: the counts of 1 network namespace are not exact: sockets came and went faster than they could be listed\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &tracer.Census{Namespaces: 3, Missed: tt.missed}
			qt.Assert(t, qt.Equals(countWarnings(c, tt.byProcess), tt.want))
		})
	}
}
