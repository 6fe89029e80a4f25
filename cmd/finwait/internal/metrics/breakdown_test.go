package metrics

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func newLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// TestServices has what belongs to no service that was asked for together, so that
// the sum is that of all.
func TestServices(t *testing.T) {
	c := newTestCollector(fullSource(), Options{ServicePorts: []uint16{443, 5432}})
	families := gather(t, c)
	sockets := families["finwait_service_sockets"]
	qt.Check(t, qt.Equals(find(t, sockets, "443", "established").GetGauge().GetValue(), 11))
	qt.Check(t, qt.Equals(find(t, sockets, "5432", "established").GetGauge().GetValue(), 0))
	qt.Check(t, qt.Equals(find(t, sockets, "other", "listen").GetGauge().GetValue(), 1))
	qt.Check(t, qt.Equals(find(t, sockets, "other", "time_wait").GetGauge().GetValue(), 2))
	qt.Check(t, qt.Equals(find(t, families["finwait_census_missed_namespaces"], "listener").GetGauge().GetValue(), 1))

	var sum uint64
	for port, want := range map[string]uint64{"443": 2, "5432": 0, "other": 2} {
		n := find(t, families["finwait_service_dwell_seconds"], port, "established").GetHistogram().GetSampleCount()
		qt.Check(t, qt.Equals(n, want), qt.Commentf("port %s", port))
		sum += n
	}
	qt.Check(t, qt.Equals(sum, find(t, families["finwait_dwell_seconds"], "established").GetHistogram().GetSampleCount()))
}

// TestServicesOfOtherProfile has no times by service where the tracer does not keep
// them so.
func TestServicesOfOtherProfile(t *testing.T) {
	source := fullSource()
	source.profile.By = tracer.ProfileByState
	families := gather(t, newTestCollector(source, Options{ServicePorts: []uint16{443}}))
	qt.Check(t, qt.IsNil(families["finwait_service_dwell_seconds"]))
	qt.Check(t, qt.IsNotNil(families["finwait_dwell_seconds"]))
}

func TestCgroups(t *testing.T) {
	families := gather(t, newTestCollector(fullSource(), Options{ByCgroup: true}))
	sockets := families["finwait_cgroup_sockets"]
	qt.Check(t, qt.Equals(find(t, sockets, "/system.slice/nginx.service", "established").GetGauge().GetValue(), 8))
	qt.Check(t, qt.Equals(find(t, sockets, "/evil\uFFFD\uFFFD[31m\"\\", "listen").GetGauge().GetValue(), 3))
	qt.Check(t, qt.Equals(find(t, sockets, "unknown", "time_wait").GetGauge().GetValue(), 9))
	qt.Check(t, qt.Equals(find(t, sockets, "unknown", "listen").GetGauge().GetValue(), 1))
	qt.Check(t, qt.Equals(find(t, sockets, "other", "listen").GetGauge().GetValue(), 0))
	qt.Assert(t, qt.HasLen(families["finwait_cgroup_info"].GetMetric(), 1))
	find(t, families["finwait_cgroup_info"], testCgroups[3], containerID, "11111111-2222-3333-4444-555555555555")
}

// TestManyCgroups has no more series than there may be, and none of the sockets
// missing.
func TestManyCgroups(t *testing.T) {
	c := newCgroups()
	c.pathOf = func(pid uint32) string { return fmt.Sprintf("/%d", pid) }
	census := &tracer.Census{}
	var want tracer.StateCounts
	for pid := range uint32(500) {
		group := tracer.CensusGroup{PID: pid, States: counts(tracer.StateEstablished, uint64(pid))}
		census.Groups = append(census.Groups, group)
		addCounts(&want, &group.States)
	}
	sums := c.sum(census)
	qt.Check(t, qt.HasLen(sums, maxCgroups+2))
	qt.Check(t, qt.IsNotNil(sums["/499"]))
	qt.Check(t, qt.IsNil(sums["/449"]))
	var got tracer.StateCounts
	for _, counts := range sums {
		addCounts(&got, counts)
	}
	qt.Check(t, qt.Equals(got, want))
}

func TestMembers(t *testing.T) {
	m := members{limit: 2, in: map[string]bool{}}
	for _, step := range []struct {
		what  string
		sizes map[string]uint64
		want  []string
	}{
		{"the largest", map[string]uint64{"a": 1, "b": 3, "c": 2}, []string{"b", "c"}},
		{"one that is larger, not by far", map[string]uint64{"a": 4, "b": 3, "c": 2}, []string{"b", "c"}},
		{"one that is larger by far", map[string]uint64{"a": 5, "b": 3, "c": 2}, []string{"a", "b"}},
		{"not back at once", map[string]uint64{"a": 5, "b": 3, "c": 6}, []string{"a", "b"}},
		{"place of one that is gone", map[string]uint64{"b": 3, "c": 1, "d": 2}, []string{"b", "d"}},
		{"two that are larger by far", map[string]uint64{"b": 1, "c": 9, "d": 1, "e": 10}, []string{"c", "e"}},
		{"none", map[string]uint64{"c": 0}, nil},
	} {
		m.update(step.sizes)
		qt.Check(t, qt.DeepEquals(slices.Sorted(maps.Keys(m.in)), step.want), qt.Commentf("%s", step.what))
	}
}

// TestCensusInterval has no census taken before it is time, nor when the last has
// failed.
func TestCensusInterval(t *testing.T) {
	now, taken, takes := testTime, 0, time.Second
	var fail error
	c := newCensus(tracer.ByListener)
	c.now = func() time.Time { return now }
	c.take = func(_ context.Context, opts *tracer.CensusOptions) (*tracer.Census, error) {
		qt.Check(t, qt.Equals(opts.By, tracer.ByListener))
		taken++
		now = now.Add(takes)
		return &tracer.Census{}, fail
	}
	read := func(after time.Duration, want int, wantErr error) {
		t.Helper()
		now = now.Add(after)
		before := taken
		_, isNew, err := c.read(t.Context())
		qt.Check(t, qt.Equals(taken, want))
		qt.Check(t, qt.Equals(isNew, taken > before))
		qt.Check(t, qt.Equals(err, wantErr))
	}
	read(0, 1, nil)
	read(9*time.Second, 1, nil)
	fail = errBroken
	read(time.Second, 2, errBroken)
	read(9*time.Second, 2, errBroken)
	fail, takes = nil, 5*time.Second
	read(time.Second, 3, nil)
	read(49*time.Second, 3, nil)
	read(time.Second, 4, nil)
}

func TestCgroupOf(t *testing.T) {
	qt.Check(t, qt.Equals(cgroupOf(1<<31), ""))
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skip(err)
	}
	qt.Check(t, qt.Equals(cgroupOf(uint32(os.Getpid())), parseCgroup(text)))
}

func TestParseCgroup(t *testing.T) {
	for text, want := range map[string]string{
		"0::/\n":                                "/",
		"0::/system.slice/ssh.service\n":        "/system.slice/ssh.service",
		"12:cpu:/v1\n1:name=x:/y\n0::/v2/a b\n": "/v2/a b",
		"0::/gone (deleted)\n":                  "/gone",
		"0::/../../kubepods/pod1\n":             "/kubepods/pod1",
		"12:cpu:/v1\n":                          "",
		"0::\n":                                 "",
		"":                                      "",
	} {
		qt.Check(t, qt.Equals(parseCgroup([]byte(text)), want), qt.Commentf("%q", text))
	}
}

// FuzzCgroup has whatever a cgroup is called be a label.
func FuzzCgroup(f *testing.F) {
	f.Add([]byte("12:cpu:/v1\n0::/a\xff\n"))
	f.Add([]byte("0::/lxc.payload.\x1b (deleted)"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := parseCgroup(text)
		c := newCgroups()
		c.pathOf = func(uint32) string { return path }
		label := c.label(1)
		if !utf8.ValidString(label) || strings.ContainsFunc(label, unicode.IsControl) || label == "" || label == other {
			t.Fatalf("%q has the label %q", text, label)
		}
		container, pod := tracer.ParseCgroupPath(label)
		gauge(cgroupInfoDesc, 1, label, container, pod) // panics at what is no label
	})
}
