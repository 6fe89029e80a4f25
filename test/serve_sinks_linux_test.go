package test

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/tracer"
)

// collector takes OTLP by HTTP, and counts what it has taken.
type collector struct {
	*httptest.Server
	mu   sync.Mutex     // guards what follows
	logs map[string]int // records, by what they are called
	err  error
}

func newCollector(t testing.TB) *collector {
	t.Helper()
	c := &collector{logs: map[string]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/logs", c.takeLogs)
	mux.HandleFunc("/v1/metrics", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		c.add("metrics", 1)
		w.Header().Set("Content-Type", "application/x-protobuf")
	})
	// Not MPTCP, which Go's listeners are by default: its transitions are not told.
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	c.Server = httptest.NewUnstartedServer(mux)
	c.Listener.Close()
	c.Listener = l
	c.Start()
	t.Cleanup(c.Close)
	return c
}

func (c *collector) add(name string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logs[name] += n
}

func (c *collector) takeLogs(w http.ResponseWriter, r *http.Request) {
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(r.Body)
		if err != nil {
			c.fail(w, err)
			return
		}
		body = unpacked
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		c.fail(w, err)
		return
	}
	request := plogotlp.NewExportRequest()
	if err := request.UnmarshalProto(raw); err != nil {
		c.fail(w, err)
		return
	}
	for _, resource := range request.Logs().ResourceLogs().All() {
		for _, scope := range resource.ScopeLogs().All() {
			for _, log := range scope.LogRecords().All() {
				c.add(log.EventName(), 1)
			}
		}
	}
	answer, err := plogotlp.NewExportResponse().MarshalProto()
	if err != nil {
		c.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(answer)
}

func (c *collector) fail(w http.ResponseWriter, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	http.Error(w, err.Error(), http.StatusBadRequest)
}

// TestServeAllSinks has connections made as fast as they go, and the agent tell of
// them by everything that it has: a log that rotates, OTLP, metrics, pins. What each
// sink has is what its ledger says, and the agent stays small.
func TestServeAllSinks(t *testing.T) {
	dir := agentDir(t)
	otlp := newCollector(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
	a := serve(t, dir, "--records", "transitions,conns", "--wait-timewait=false", "--otlp", "logs,metrics", "--pin", "--pin-path", bpffs(t),
		"--log-max-size", "8MiB", "--log-max-total", "1GiB", "--log-compress", "zstd", "--service-ports", "20000-20007")
	for range 4 {
		churn(t, 10_000)
		a.metrics()
	}
	status := readFile(t, fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	said := a.terminate()

	const mostKB = 60 << 10
	peak, err := strconv.Atoi(regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(status)[1])
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(peak < mostKB), qt.Commentf("%d kB at the most", peak))
	t.Logf("%d kB at the most; %s", peak, strings.Join(sinkLedger.FindAllString(said, -1), "; "))

	// Twelve transitions of the two ends of a connection, or more; each end is one.
	lines := loggedLines(t, a.log)
	qt.Check(t, qt.Equals(lines, keptBy(t, said, "log")))
	qt.Check(t, qt.IsTrue(lines > 40_000*6), qt.Commentf("%d", lines))
	otlp.mu.Lock()
	defer otlp.mu.Unlock()
	qt.Check(t, qt.IsNil(otlp.err))
	qt.Check(t, qt.Equals(otlp.logs["finwait.transition"]+otlp.logs["finwait.connection"], keptBy(t, said, "otlp")))
	qt.Check(t, qt.IsTrue(otlp.logs["metrics"] > 0))
	qt.Check(t, qt.StringContains(said, " lost=0 "))
}

// keptBy returns how many records the sink has kept, of which the others are counted.
func keptBy(t testing.TB, said, sink string) int {
	t.Helper()
	for _, m := range sinkLedger.FindAllStringSubmatch(said, -1) {
		if m[1] != sink {
			continue
		}
		var n [4]int
		for i := range n {
			n[i], _ = strconv.Atoi(m[i+2])
		}
		qt.Check(t, qt.Equals(n[0], n[1]+n[2]+n[3]), qt.Commentf("%s", m[0]))
		return n[1]
	}
	t.Fatalf("nothing of the sink %s: %s", sink, said)
	return 0
}

// loggedLines returns how many lines the log has, and those that were rotated.
func loggedLines(t testing.TB, path string) (n int) {
	t.Helper()
	files, err := filepath.Glob(path + "*")
	qt.Assert(t, qt.IsNil(err))
	for _, file := range files {
		for line := range strings.Lines(unpack(t, file)) {
			qt.Assert(t, qt.IsTrue(strings.HasSuffix(line, "}\n") && json.Valid([]byte(line))), qt.Commentf("%s: %q", file, line))
			n++
		}
	}
	return n
}

// unpack returns what is in the file, compressed or not.
func unpack(t testing.TB, path string) string {
	t.Helper()
	file, err := os.Open(path)
	qt.Assert(t, qt.IsNil(err))
	defer file.Close()
	var r io.Reader = file
	if strings.HasSuffix(path, ".zst") {
		unpacked, err := zstd.NewReader(file)
		qt.Assert(t, qt.IsNil(err))
		defer unpacked.Close()
		r = unpacked
	}
	text, err := io.ReadAll(r)
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", path))
	return string(text)
}

// attached returns the programs and links that the kernel has.
func attached(t testing.TB) []string {
	t.Helper()
	all, err := oracle.Leftovers()
	qt.Assert(t, qt.IsNil(err))
	return slices.DeleteFunc(all, func(s string) bool { return strings.HasPrefix(s, "map ") })
}

// TestServeKilled kills the agent at full speed, again and again: every line of the
// log is whole, nothing is left attached, and the next start is not kept from it.
func TestServeKilled(t *testing.T) {
	dir := agentDir(t)
	pins := bpffs(t)
	ns := netns.New(t)
	for range 5 {
		before := attached(t)
		listeners := listenersIn(t, ns, connections)
		a := serve(t, dir, "--records", "transitions,conns", "--wait-timewait=false", "--pin", "--pin-path", pins)
		churned := make(chan struct{})
		go func() {
			defer close(churned)
			churn(t, 4000)
		}()
		a.await("records", func() bool { info, err := os.Stat(a.log); return err == nil && info.Size() > 1<<20 })
		qt.Assert(t, qt.IsNil(a.cmd.Process.Kill()))
		<-a.ended
		<-churned
		a.await("end of its programs", func() bool { return len(oracle.Since(before, attached(t))) == 0 })
		_, err := tracer.PinnedGauges(pins)
		qt.Check(t, qt.ErrorIs(err, tracer.ErrNotPinned))
		for _, l := range listeners {
			unix.Close(l)
		}
		stop := checkNobody(t, pins, ns)
		serve(t, dir, "--pin", "--pin-path", pins).terminate()
		stop()
	}
	loggedLines(t, filepath.Join(dir, "records.log"))
}

// listenersIn makes so many listeners in the namespace.
func listenersIn(t *testing.T, ns *netns.NS, n int) (fds []int) {
	t.Helper()
	ns.Do(func() {
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			qt.Check(t, qt.IsNil(errors.Join(err, unix.Listen(fd, 1))))
			fds = append(fds, fd)
		}
	})
	return fds
}

// checkNobody looks, until the result is called, whether the pinned gauges have sockets
// in a namespace in which there are none: those of an agent that is no more.
func checkNobody(t *testing.T, pins string, ns *netns.NS) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			gauges, err := tracer.PinnedGauges(pins)
			if err == nil {
				qt.Check(t, qt.Equals(gauges.Of(ns.Inode()), tracer.StateCounts{}))
			} else if !errors.Is(err, tracer.ErrNotPinned) {
				t.Error(err)
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// awaitNoDrift waits until the gauges that are pinned are, over all network namespaces,
// those of a tracer that has just counted every socket.
func awaitNoDrift(t *testing.T, pins string) {
	t.Helper()
	fresh, err := tracer.New(&tracer.Options{NoTransitions: true, Evidence: wantedEvidence(t)})
	qt.Assert(t, qt.IsNil(err))
	defer fresh.Close()
	for deadline := time.Now().Add(patience); ; time.Sleep(tracer.SweepInterval) {
		want, err := fresh.Gauges(t.Context())
		qt.Assert(t, qt.IsNil(err))
		got, err := tracer.PinnedGauges(pins)
		qt.Assert(t, qt.IsNil(err))
		if got.States() == want.States() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the gauges have %v, the kernel %v", got.States(), want.States())
		}
	}
}

// TestServeRestarts ends and starts the agent ten times while connections come and
// go: its gauges are right each time, and its counters never go back.
func TestServeRestarts(t *testing.T) {
	dir := agentDir(t)
	pins := bpffs(t)
	guards := watchGuards(t)
	ns := netns.New(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				churn(t, 500)
			}
		}
	}()
	last := map[string]float64{}
	for i := range 10 {
		a := serve(t, dir, "--pin", "--pin-path", pins)
		connectIn(t, ns, 8443, connections, 2, clientFirst)
		series := a.metrics()
		for name, value := range last {
			qt.Check(t, qt.IsTrue(series[name] >= value), qt.Commentf("%s: %v after %v", name, series[name], value))
		}
		for name, value := range series {
			if strings.HasPrefix(name, "finwait_transitions_total") || strings.HasPrefix(name, "finwait_endings_total") {
				last[name] = value
			}
		}
		awaitPinned(t, pins, ns)
		if i%2 == 0 {
			a.terminate()
			continue
		}
		qt.Assert(t, qt.IsNil(a.cmd.Process.Kill()))
		<-a.ended
	}
	close(stop)
	<-stopped
	a := serve(t, dir, "--pin", "--pin-path", pins)
	awaitNoDrift(t, pins)
	a.terminate()
	if t.Failed() {
		guards.excuse(t)
	}
}
