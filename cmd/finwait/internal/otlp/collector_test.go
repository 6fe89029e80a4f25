package otlp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/collector/pdata/plog"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
)

// patience is how long to wait for what is to happen soon.
const patience = time.Minute

// eventually waits until what is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// collectorBinary is the path of test/collector's binary. It takes minutes to build,
// once, so it is built only where every test has to run.
var collectorBinary = sync.OnceValues(func() (string, error) {
	build := exec.Command("../../../../test/collector/build.sh")
	if os.Getenv("CI_PRIVILEGED") != "1" {
		build.Args = append(build.Args, "--have")
	}
	var said bytes.Buffer
	build.Stderr = &said
	path, err := build.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", build, err, bytes.TrimSpace(said.Bytes()))
	}
	return strings.TrimSpace(string(path)), nil
})

// A collector is a real OpenTelemetry Collector on ports of its own.
type collector struct {
	t          *testing.T
	dir        string
	grpc, http string // addresses
	processors string // of the pipelines
	flush      string // how often it writes to the file, 1h for when it ends
	runs       int
	process    *exec.Cmd
	output     *bytes.Buffer
}

// newCollector returns one that does not run yet. Where there is none, and not every
// test has to run, the test is skipped.
func newCollector(t *testing.T) *collector {
	if _, err := collectorBinary(); err != nil {
		if os.Getenv("CI_PRIVILEGED") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	c := &collector{t: t, dir: t.TempDir(), grpc: freeAddress(t), http: freeAddress(t), processors: "[batch]", flush: "1h"}
	t.Cleanup(func() {
		c.stop(syscall.SIGKILL)
		if t.Failed() && c.output != nil {
			t.Logf("the collector says:\n%s", c.output)
		}
	})
	return c
}

// freeAddress returns an address on which nobody listens.
func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	return l.Addr().String()
}

// start starts it, with files of its own, and waits until it listens.
func (c *collector) start() {
	c.t.Helper()
	c.runs++
	config := fmt.Sprintf(`
receivers: {otlp: {protocols: {grpc: {endpoint: %q}, http: {endpoint: %q}}}}
processors: {batch: {timeout: 50ms}}
exporters:
  file/logs: {path: %q, flush_interval: %s}
  file/metrics: {path: %q, flush_interval: 1h}
service:
  # Without metrics it takes no port for its own, which all would share.
  telemetry: {logs: {level: warn}, metrics: {level: none}}
  pipelines:
    logs: {receivers: [otlp], processors: %s, exporters: [file/logs]}
    metrics: {receivers: [otlp], processors: %[6]s, exporters: [file/metrics]}
`, c.grpc, c.http, c.file("logs", c.runs), c.flush, c.file("metrics", c.runs), c.processors)
	path := filepath.Join(c.dir, "config.yaml")
	qt.Assert(c.t, qt.IsNil(os.WriteFile(path, []byte(config), 0o600)))
	binary, _ := collectorBinary()
	c.output = new(bytes.Buffer)
	c.process = exec.Command(binary, "--config", path)
	c.process.Stdout, c.process.Stderr = c.output, c.output
	qt.Assert(c.t, qt.IsNil(c.process.Start()))
	for _, address := range []string{c.grpc, c.http} {
		eventually(c.t, "the collector listens", func() bool {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
}

// stop ends it. With SIGTERM it writes what it has.
func (c *collector) stop(signal os.Signal) {
	if c.process == nil {
		return
	}
	_ = c.process.Process.Signal(signal)
	_ = c.process.Wait()
	c.process = nil
}

func (c *collector) file(signal string, run int) string {
	return filepath.Join(c.dir, fmt.Sprintf("%s-%d.json", signal, run))
}

// lines returns the lines of all files of the signal. The last of a file may be
// cut: the collector may have been killed.
func (c *collector) lines(signal string) (all [][]byte) {
	for run := range c.runs {
		content, err := os.ReadFile(c.file(signal, run+1))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		qt.Assert(c.t, qt.IsNil(err))
		for line := range bytes.Lines(content) {
			if bytes.HasSuffix(line, []byte("\n")) {
				all = append(all, line)
			}
		}
	}
	return all
}

// taken is the log records that a collector has written, by their event names and
// cookies.
type taken map[string][]plog.LogRecord

func (c *collector) records() taken {
	all := taken{}
	for _, line := range c.lines("logs") {
		logs, err := new(plog.JSONUnmarshaler).UnmarshalLogs(line)
		qt.Assert(c.t, qt.IsNil(err))
		resource := logs.ResourceLogs().At(0).Resource().Attributes().AsRaw()
		qt.Assert(c.t, qt.Equals(resource["service.name"], any("finwait")))
		qt.Assert(c.t, qt.Equals(resource["service.version"], any("v1")))
		for _, r := range recordsOf(logs) {
			cookie, _ := r.Attributes().Get("finwait.cookie")
			key := r.EventName() + " " + cookie.Str()
			all[key] = append(all[key], r)
		}
	}
	return all
}

// workload is records to send.
type workload struct{ sink.Batch }

// newWorkload returns records whose cookies are all different.
func newWorkload(transitions, conns int) *workload {
	r := rand.New(rand.NewPCG(3, 4))
	w := &workload{}
	for i := range uint64(transitions) {
		w.Transitions = append(w.Transitions, randomEvent(r, i+1))
	}
	for i := range uint64(conns) {
		w.Conns = append(w.Conns, randomConn(r, i+1))
	}
	return w
}

// put puts all of it into the queue, some at a time.
func (w *workload) put(q *sink.Queue, at int) {
	rest := w.Batch
	for rest.Counts().Total() > 0 {
		part := sink.Batch{Transitions: rest.Transitions[:min(at, len(rest.Transitions))], Conns: rest.Conns[:min(at, len(rest.Conns))]}
		rest = sink.Batch{Transitions: rest.Transitions[len(part.Transitions):], Conns: rest.Conns[len(part.Conns):]}
		q.Put(&part)
	}
}

// check compares what a collector has with what was sent, attribute by
// attribute. Nothing may be there more often than once, but for so many records;
// so many may be missing.
func (w *workload) check(t *testing.T, got taken, twice, missing int) {
	t.Helper()
	want := map[string]*wanted{}
	for i := range w.Transitions {
		want[fmt.Sprint("finwait.transition ", w.Transitions[i].Cookie)] = wantTransition(&w.Transitions[i])
	}
	for i := range w.Conns {
		want[fmt.Sprint("finwait.connection ", w.Conns[i].Cookie)] = wantConn(&w.Conns[i])
	}
	for key, records := range got {
		qt.Assert(t, qt.IsNotNil(want[key]), qt.Commentf("nobody has sent %s", key))
		for _, r := range records {
			want[key].check(t, r)
		}
		twice -= len(records) - 1
	}
	qt.Assert(t, qt.IsTrue(twice >= 0), qt.Commentf("%d more records than can be are there twice", -twice))
	qt.Assert(t, qt.Equals(len(want)-len(got), missing), qt.Commentf("missing records"))
}

// quiet is a log that nobody reads.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// environment returns what looks variables up in pairs of names and values.
func environment(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

// started returns a sink and its queue. It tries again soon.
func started(t *testing.T, env ...string) (*Logs, *sink.Queue) {
	t.Helper()
	config, err := ReadEnv(environment(env...))
	qt.Assert(t, qt.IsNil(err))
	logs, err := NewLogs(config, LogOptions{Version: "v1", Cgroup: testCgroup})
	qt.Assert(t, qt.IsNil(err))
	logs.client.firstWait = 20 * time.Millisecond
	opts := config.QueueOptions()
	opts.Log = quiet()
	return logs, sink.Start(logs, opts)
}

// closed closes the queue and returns its ledger, which accounts for everything
// that was put.
func closed(t *testing.T, q *sink.Queue) sink.Ledger {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	qt.Assert(t, qt.IsNil(q.Close(ctx)))
	l := q.Ledger()
	qt.Assert(t, qt.Equals(l.Put.Transitions, l.Kept.Transitions+l.QueueFull.Transitions+l.Failed.Transitions))
	qt.Assert(t, qt.Equals(l.Put.Conns, l.Kept.Conns+l.QueueFull.Conns+l.Failed.Conns))
	return l
}

// ways are the ways to a collector.
var ways = []struct {
	name string
	env  func(grpc, http string) []string
}{
	{"grpc", func(grpc, _ string) []string {
		return []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT", "http://" + grpc}
	}},
	{"grpc gzip", func(grpc, _ string) []string {
		return []string{
			"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", grpc,
			"OTEL_EXPORTER_OTLP_INSECURE", "true", "OTEL_EXPORTER_OTLP_COMPRESSION", "gzip",
		}
	}},
	{"http", func(_, http string) []string { return []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://" + http} }},
	{"http gzip", func(_, http string) []string {
		return []string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://" + http + "/v1/logs", "OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"}
	}},
}

// TestCollector has a collector take every record, once, with every attribute.
func TestCollector(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			c := newCollector(t)
			c.start()
			w := newWorkload(6000, 3000)
			logs, q := started(t, append(way.env(c.grpc, c.http), "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "1500", "OTEL_BLRP_MAX_QUEUE_SIZE", "12000")...)
			w.put(q, 700)
			l := closed(t, q)
			c.stop(syscall.SIGTERM)
			qt.Assert(t, qt.Equals(l.Kept, w.Counts()))
			qt.Assert(t, qt.Equals(logs.Stats(), Stats{Requests: logs.Stats().Requests}))
			w.check(t, c.records(), 0, 0)
		})
	}
}

// TestCollectorLargeBatch has a batch that is more than a request may hold come
// in several.
func TestCollectorLargeBatch(t *testing.T) {
	c := newCollector(t)
	c.start()
	w := newWorkload(20000, 0)
	logs, q := started(t, append(ways[0].env(c.grpc, c.http), "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "20000")...)
	w.put(q, 20000)
	l := closed(t, q)
	c.stop(syscall.SIGTERM)
	qt.Assert(t, qt.Equals(l.Kept, w.Counts()))
	qt.Assert(t, qt.IsTrue(logs.Stats().Requests >= 3))
	w.check(t, c.records(), 0, 0)
}

// TestCollectorLater has what is put while nobody listens arrive, once.
func TestCollectorLater(t *testing.T) {
	for _, way := range ways[:3] {
		t.Run(way.name, func(t *testing.T) {
			c := newCollector(t)
			w := newWorkload(2000, 500)
			logs, q := started(t, append(way.env(c.grpc, c.http), "OTEL_BLRP_SCHEDULE_DELAY", "1")...)
			w.put(q, 300)
			eventually(t, "it is tried again", func() bool { return logs.Stats().Retries >= 3 })
			c.start()
			l := closed(t, q)
			c.stop(syscall.SIGTERM)
			qt.Assert(t, qt.Equals(l.Kept, w.Counts()))
			qt.Assert(t, qt.Equals(logs.Stats().Unconfirmed, 0))
			w.check(t, c.records(), 0, 0)
		})
	}
}

// TestCollectorNever has what nobody takes counted as lost, when its time is up.
func TestCollectorNever(t *testing.T) {
	for _, way := range ways[:3] {
		t.Run(way.name, func(t *testing.T) {
			w := newWorkload(10, 5)
			logs, q := started(t, append(way.env(freeAddress(t), freeAddress(t)), "OTEL_BLRP_EXPORT_TIMEOUT", "100")...)
			w.put(q, 5)
			l := closed(t, q)
			qt.Assert(t, qt.Equals(l.Failed, w.Counts()))
			qt.Assert(t, qt.Equals(logs.Stats().Unconfirmed, 0))
		})
	}
}

// TestCollectorSlow has what finds no room in the queue counted, and all the rest
// arrive, though each answer takes its time.
func TestCollectorSlow(t *testing.T) {
	for _, way := range ways[:3] {
		t.Run(way.name, func(t *testing.T) {
			c := newCollector(t)
			c.start()
			grpc, http := newProxy(t, c.grpc), newProxy(t, c.http)
			for _, p := range []*proxy{grpc, http} {
				p.delay.Store(int64(30 * time.Millisecond))
			}
			w := newWorkload(3000, 1000)
			logs, q := started(t, append(way.env(grpc.address, http.address),
				"OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "200", "OTEL_BLRP_MAX_QUEUE_SIZE", "600", "OTEL_BLRP_SCHEDULE_DELAY", "1")...)
			w.put(q, 3000)
			l := closed(t, q)
			c.stop(syscall.SIGTERM)
			qt.Assert(t, qt.IsTrue(l.QueueFull.Transitions > 0))
			qt.Assert(t, qt.Equals(l.Failed.Total(), 0))
			qt.Assert(t, qt.Equals(logs.Stats().Unconfirmed, 0))
			w.check(t, c.records(), 0, int(l.QueueFull.Total()))
		})
	}
}

// TestCollectorSilent has what was taken without an answer arrive again, and
// counted so.
func TestCollectorSilent(t *testing.T) {
	for _, way := range ways[:3] {
		t.Run(way.name, func(t *testing.T) {
			c := newCollector(t)
			c.start()
			grpc, http := newProxy(t, c.grpc), newProxy(t, c.http)
			grpc.silent.Store(true)
			http.silent.Store(true)
			w := newWorkload(300, 200)
			logs, q := started(t, append(way.env(grpc.address, http.address),
				"OTEL_EXPORTER_OTLP_TIMEOUT", "300", "OTEL_BLRP_SCHEDULE_DELAY", "1")...)
			w.put(q, 300)
			eventually(t, "no answer comes", func() bool {
				// gRPC sends nothing before it has heard of the other side.
				return logs.Stats().Unconfirmed > 0 || way.name != "http" && logs.Stats().Retries > 0
			})
			grpc.silent.Store(false)
			http.silent.Store(false)
			l := closed(t, q)
			c.stop(syscall.SIGTERM)
			qt.Assert(t, qt.Equals(l.Kept, w.Counts()))
			w.check(t, c.records(), int(logs.Stats().Unconfirmed), 0)
		})
	}
}

// TestCollectorKilled has every record arrive though the collector is killed while
// requests are under way: those that it has answered are in its file, and the
// others are sent to the next.
func TestCollectorKilled(t *testing.T) {
	for _, way := range ways[:3] {
		t.Run(way.name, func(t *testing.T) {
			c := newCollector(t)
			c.processors = "[]" // an answer comes when a record has been written
			c.flush = "5ms"     // nearly so
			c.start()
			grpc, http := newProxy(t, c.grpc), newProxy(t, c.http)
			w := newWorkload(3000, 0)
			logs, q := started(t, append(way.env(grpc.address, http.address),
				"OTEL_EXPORTER_OTLP_TIMEOUT", "300", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "50", "OTEL_BLRP_SCHEDULE_DELAY", "1")...)
			w.put(q, 500)
			eventually(t, "something is taken", func() bool { return q.Ledger().Kept.Total() >= 200 })
			grpc.silent.Store(true)
			http.silent.Store(true)
			eventually(t, "no answer comes", func() bool { return logs.Stats().Unconfirmed > 0 })
			// Requests are written in their order, this one after those that were
			// answered.
			kept := q.Ledger().Kept.Total()
			eventually(t, "the one without an answer is in the file", func() bool { return len(c.records()) > int(kept) })
			c.stop(syscall.SIGKILL)
			grpc.silent.Store(false)
			http.silent.Store(false)
			grpc.cut()
			http.cut()
			// What writes at intervals may write nonsense when it ends: its last
			// write and that of the interval can be at the same time.
			c.flush = "1h"
			c.start()
			l := closed(t, q)
			c.stop(syscall.SIGTERM)
			qt.Assert(t, qt.Equals(l.Kept, w.Counts()))
			w.check(t, c.records(), int(logs.Stats().Unconfirmed), 0)
		})
	}
}

// proxy passes connections on to an address.
type proxy struct {
	address string
	delay   atomic.Int64 // of each answer, in nanoseconds
	silent  atomic.Bool  // answers are not passed on, never on what is connected meanwhile

	mu    sync.Mutex
	conns []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	p := &proxy{address: l.Addr().String()}
	t.Cleanup(func() {
		l.Close()
		p.cut()
	})
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			p.keep(client, server)
			dead := p.silent.Load()
			go p.pass(server, client, func() bool { return true })
			go p.pass(client, server, func() bool {
				time.Sleep(time.Duration(p.delay.Load()))
				return !dead && !p.silent.Load()
			})
		}
	}()
	return p
}

// pass copies from one to the other what may pass, until one of them closes.
func (p *proxy) pass(to, from net.Conn, may func() bool) {
	defer to.Close()
	defer from.Close()
	r := bufio.NewReaderSize(from, 64<<10)
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && may() {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) keep(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, conns...)
}

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}
