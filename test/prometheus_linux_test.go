package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// prometheus is a Prometheus that scrapes one agent.
type prometheus struct {
	t      testing.TB
	p      *process
	base   string // of its API
	client *http.Client
}

const prometheusConf = `
scrape_configs:
  - job_name: finwait
    scrape_interval: 250ms
    scrape_timeout: 250ms
    static_configs:
      - targets: [%q]
`

// startPrometheus has a Prometheus scrape the agent at target.
func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	path := requireProgram(t, "prometheus")
	dir := t.TempDir()
	conf := filepath.Join(dir, "prometheus.yml")
	qt.Assert(t, qt.IsNil(os.WriteFile(conf, fmt.Appendf(nil, prometheusConf, target), 0o600)))
	address := freeAddress(t)
	p := &prometheus{t: t, base: "http://" + address, client: &http.Client{Transport: &http.Transport{}, Timeout: patience}}
	t.Cleanup(p.client.CloseIdleConnections)
	p.p = spawn(t, exec.Command(path, "--config.file="+conf, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--enable-feature=native-histograms", "--log.level=warn"))
	p.p.await("answer of Prometheus", func() bool {
		if p.p.hasEnded() {
			t.Fatalf("Prometheus has ended: %s", p.p.stderr.String())
		}
		_, err := p.fetch("/-/ready", nil)
		return err == nil
	})
	return p
}

// freeAddress returns an address that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	return l.Addr().String()
}

func (p *prometheus) fetch(path string, query url.Values) ([]byte, error) {
	resp, err := p.client.Get(p.base + path + "?" + query.Encode())
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return body, err
}

// sample is the newest value of a series.
type sample struct {
	labels map[string]string
	time   time.Time
	value  float64
}

// newest returns the newest samples of the series that match, with the times at
// which they were scraped.
func (p *prometheus) newest(selector string) []sample {
	p.t.Helper()
	var samples []sample
	for _, series := range p.query(selector + "[1m]") {
		last := series.Values[len(series.Values)-1]
		samples = append(samples, last.of(p.t, series.Metric))
	}
	return samples
}

// value returns the value of an expression that has one.
func (p *prometheus) value(expr string) float64 {
	p.t.Helper()
	result := p.query(expr)
	qt.Assert(p.t, qt.HasLen(result, 1), qt.Commentf("%s", expr))
	return result[0].Value.of(p.t, nil).value
}

// series is one of the API's answer: Values to a range, Value to all else.
type series struct {
	Metric map[string]string
	Value  point
	Values []point
}

// point is a time in seconds, and a number as text.
type point [2]any

func (v point) of(t testing.TB, labels map[string]string) sample {
	t.Helper()
	seconds, isNumber := v[0].(float64)
	text, isText := v[1].(string)
	value, err := strconv.ParseFloat(text, 64)
	qt.Assert(t, qt.IsTrue(isNumber && isText && err == nil), qt.Commentf("%v", v))
	return sample{labels, time.UnixMilli(int64(math.Round(seconds * 1000))), value}
}

func (p *prometheus) query(expr string) []series {
	p.t.Helper()
	body, err := p.fetch("/api/v1/query", url.Values{"query": {expr}})
	qt.Assert(p.t, qt.IsNil(err), qt.Commentf("%s", expr))
	var answer struct{ Data struct{ Result []series } }
	qt.Assert(p.t, qt.IsNil(json.Unmarshal(body, &answer)), qt.Commentf("%s", body))
	return answer.Data.Result
}

// reading is what Prometheus and a tracer of the test's own have counted at a moment at
// which nothing moved.
type reading struct {
	transitions map[tracer.Transition]uint64
	states      tracer.StateCounts // without StateNewSynRecv, which is in halfOpen
	halfOpen    uint64
	dwells      map[tracer.State]uint64

	counters tracer.Counters
	gauges   tracer.StateCounts
	profile  *tracer.Profile
}

// stateOf returns the state of that label.
func stateOf(t testing.TB, label string) tracer.State {
	t.Helper()
	s, err := tracer.ParseState(label)
	qt.Assert(t, qt.IsNil(err))
	return s
}

// settle waits for a scrape between two looks at tr that see the same, and returns
// what both say.
func (p *prometheus) settle(tr *tracer.Tracer) *reading {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		now := &reading{}
		now.readTracer(p.t, tr)
		since := time.Now()
		for !now.readPrometheus(p, since) {
			if time.Now().After(deadline) {
				p.t.Fatalf("no scrape for %v: %v", patience, p.newest("up"))
			}
			time.Sleep(50 * time.Millisecond)
		}
		var again reading
		again.readTracer(p.t, tr)
		if again.counters == now.counters && again.gauges == now.gauges {
			return now
		}
		if time.Now().After(deadline) {
			p.unsettled()
		}
	}
}

// unsettled ends a test that can say nothing, on a machine that is not for tests alone.
func (p *prometheus) unsettled() {
	p.t.Helper()
	what := fmt.Sprintf("other connections on this host come and go without a pause for %v", patience)
	if os.Getenv("CI_PRIVILEGED") == "1" {
		p.t.Fatal(what)
	}
	p.t.Skip(what)
}

func (r *reading) readTracer(t testing.TB, tr *tracer.Tracer) {
	t.Helper()
	gauges, err := tr.Gauges(t.Context())
	qt.Assert(t, qt.IsNil(err))
	r.gauges = gauges.States()
	var errs [2]error
	r.counters, errs[0] = tr.Counters()
	r.profile, errs[1] = tr.Profile()
	qt.Assert(t, qt.IsNil(errors.Join(errs[:]...)))
}

// readPrometheus reads what was scraped after since, and tells whether all of it was.
func (r *reading) readPrometheus(p *prometheus, since time.Time) bool {
	p.t.Helper()
	r.transitions = map[tracer.Transition]uint64{}
	transitions := p.newest("finwait_transitions_total")
	for _, s := range transitions {
		if !s.time.After(since) {
			return false
		}
		r.transitions[tracer.Transition{Old: stateOf(p.t, s.labels["old_state"]), New: stateOf(p.t, s.labels["new_state"])}] = uint64(s.value)
	}
	for _, s := range p.newest("finwait_sockets") {
		r.states[stateOf(p.t, s.labels["state"])] = uint64(s.value)
	}
	if len(transitions) == 0 {
		return false
	}
	r.halfOpen = uint64(p.value("finwait_half_open_sockets"))
	r.dwells = map[tracer.State]uint64{}
	for _, s := range p.query("histogram_count(finwait_dwell_seconds)") {
		r.dwells[stateOf(p.t, s.Metric["state"])] = uint64(s.Value.of(p.t, nil).value)
	}
	return true
}

// checkIncrease holds by how much each transition has increased for Prometheus to
// what the tracer has counted in the same time.
func checkIncrease(t testing.TB, before, after *reading) {
	t.Helper()
	counted := after.counters.Sub(&before.counters)
	for _, transition := range tracer.LegalTransitions() {
		got := after.transitions[transition] - before.transitions[transition]
		qt.Check(t, qt.Equals(got, counted.Count(transition)), qt.Commentf("%v", transition))
	}
	qt.Check(t, qt.HasLen(after.transitions, len(tracer.LegalTransitions())))
}

// checkSockets holds the gauges to the tracer's own, over all namespaces.
func checkSockets(t testing.TB, at *reading) {
	t.Helper()
	qt.Check(t, qt.Equals(at.states, at.gauges.Folded()))
	qt.Check(t, qt.Equals(at.halfOpen, at.gauges[tracer.StateNewSynRecv]))
}

// checkDwells holds how many times native histograms have to the tracer's own.
func checkDwells(t testing.TB, before, after *reading) {
	t.Helper()
	diff := after.profile.Sub(before.profile)
	want := map[tracer.State]uint64{}
	for i := range diff.Rows {
		want[diff.Rows[i].Key.State] += diff.Rows[i].Count()
	}
	for _, s := range tracer.States() {
		if s != tracer.StateClose {
			qt.Check(t, qt.Equals(after.dwells[s]-before.dwells[s], want[s]), qt.Commentf("%v", s))
		}
	}
	qt.Check(t, qt.HasLen(after.dwells, len(tracer.States())-1))
}

// makeAllKinds makes connections of every kind, all at the same time, and returns the
// transitions that this takes.
func makeAllKinds(t *testing.T) map[tracer.Transition]uint64 {
	t.Helper()
	type outcome struct {
		res *traffic.Result
		err error
	}
	outcomes, started := make(chan outcome), 0
	for _, kind := range traffic.Kinds() {
		for _, family := range families {
			ns := netns.New(t)
			started++
			go func() {
				res, err := run(ns, kind, family)
				outcomes <- outcome{res, err}
			}()
		}
	}
	made := map[tracer.Transition]uint64{}
	for range started {
		o := <-outcomes
		if errors.Is(o.err, traffic.ErrUnsupported) {
			continue
		}
		if o.err != nil {
			t.Error(o.err)
			continue
		}
		for transition, n := range o.res.Cells() {
			made[transition] += n
		}
	}
	return made
}

// TestPrometheus has a real Prometheus scrape while connections of every kind are
// made, and then as many as go in a moment. What it has in the end is what a tracer
// of the test's own has counted, and what ss says.
func TestPrometheus(t *testing.T) {
	netns.RequireRoot(t)
	requireProgram(t, "prometheus")
	address := serve(t, agentDir(t)).addr
	tr, err := tracer.New(&tracer.Options{
		NoTransitions: true, Evidence: wantedEvidence(t), Profile: &tracer.ProfileOptions{By: tracer.ProfileByState},
	})
	qt.Assert(t, qt.IsNil(err))
	defer tr.Close()
	guards := watchGuards(t)
	prom := startPrometheus(t, address)
	before := prom.settle(tr)
	checkSockets(t, before)

	made := makeAllKinds(t)
	middle := prom.settle(tr)
	for transition, n := range made {
		got := middle.transitions[transition] - before.transitions[transition]
		qt.Check(t, qt.IsTrue(got >= n), qt.Commentf("%v: %d, and %d were made", transition, got, n))
	}
	if t.Failed() {
		guards.excuse(t)
	}

	const inAMoment = 200_000
	churn(t, inAMoment)
	station := makeStations(t, tracer.FamilyIPv4)
	after := prom.settle(tr)
	checkGauges(t, tr, station.l.ns, "where sockets are in every state") // equal to ss
	checkSockets(t, after)
	checkIncrease(t, before, after)
	checkDwells(t, before, after)
	opened := tracer.Transition{Old: tracer.StateSynSent, New: tracer.StateEstablished}
	increase := after.transitions[opened] - middle.transitions[opened]
	qt.Check(t, qt.IsTrue(increase > inAMoment*99/100), qt.Commentf("%d of %d; this kernel may have hidden some", increase, inAMoment))
	qt.Check(t, qt.Equals(prom.value("sum(finwait_scrape_errors_total)"), 0))
	qt.Check(t, qt.Equals(prom.value("sum(finwait_transitions_total) - sum(finwait_ledger_total{entry=\"seen\"})"), 0))
	qt.Check(t, qt.Equals(prom.value("count(go_goroutines) + count(process_resident_memory_bytes)"), 2))
}

// scrape returns what the agent at address says, by the names of the metrics.
func scrape(t *testing.T, address string) (text []byte, families map[string]*dto.MetricFamily) {
	t.Helper()
	resp, err := http.Get("http://" + address + "/metrics")
	qt.Assert(t, qt.IsNil(err))
	defer resp.Body.Close()
	text, err = io.ReadAll(resp.Body)
	qt.Assert(t, qt.IsNil(err))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err = parser.TextToMetricFamilies(bytes.NewReader(text))
	qt.Assert(t, qt.IsNil(err))
	return text, families
}

// labeled returns the metric that has all of those labels: names and values.
func labeled(t *testing.T, f *dto.MetricFamily, want ...string) *dto.Metric {
	t.Helper()
next:
	for _, m := range f.GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		for i := 0; i < len(want); i += 2 {
			if labels[want[i]] != want[i+1] {
				continue next
			}
		}
		return m
	}
	t.Fatalf("%s has none with %q", f.GetName(), want)
	return nil
}

// TestBreakdowns has a service with connections, and what /metrics says of its port
// and of the cgroup of this process.
func TestBreakdowns(t *testing.T) {
	netns.RequireRoot(t)
	at := unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	qt.Assert(t, qt.IsNil(err))
	defer unix.Close(listener)
	qt.Assert(t, qt.IsNil(errors.Join(unix.Bind(listener, &at), unix.Listen(listener, connections))))
	name, err := unix.Getsockname(listener)
	qt.Assert(t, qt.IsNil(err))
	at = *name.(*unix.SockaddrInet4)
	port := strconv.Itoa(at.Port)
	address := serve(t, agentDir(t), "--by-cgroup", "--service-ports", "9,"+port).addr
	guards := watchGuards(t)

	var ends []int
	for range connections {
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(unix.Connect(client, &at)))
		server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		qt.Assert(t, qt.IsNil(err))
		ends = append(ends, client, server)
	}
	text, families := scrape(t, address)
	promtool(t, text, "check", "metrics")
	sockets := families["finwait_service_sockets"]
	for state, want := range map[string]float64{"established": connections, "listen": 1, "time_wait": 0} {
		qt.Check(t, qt.Equals(labeled(t, sockets, "port", port, "state", state).GetGauge().GetValue(), want), qt.Commentf("%s", state))
		qt.Check(t, qt.Equals(labeled(t, sockets, "port", "9", "state", state).GetGauge().GetValue(), 0), qt.Commentf("%s", state))
	}
	inOthers := labeled(t, sockets, "port", "other", "state", "established").GetGauge().GetValue()
	qt.Check(t, qt.IsTrue(inOthers >= connections), qt.Commentf("%v: the other ends are not there", inOthers))
	ours := labeled(t, families["finwait_cgroup_sockets"], "cgroup", ownCgroup(t), "state", "established").GetGauge().GetValue()
	qt.Check(t, qt.IsTrue(ours >= 2*connections), qt.Commentf("%v", ours))

	for _, fd := range ends {
		qt.Check(t, qt.IsNil(unix.Close(fd)))
	}
	dwell := func() uint64 {
		_, families := scrape(t, address)
		return labeled(t, families["finwait_service_dwell_seconds"], "port", port, "state", "established").GetHistogram().GetSampleCount()
	}
	for deadline := time.Now().Add(patience); dwell() != connections; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			guards.excuse(t)
			t.Fatalf("%d times in ESTABLISHED, not %d", dwell(), connections)
		}
	}
}

// ownCgroup returns the path of the version 2 cgroup of this process.
func ownCgroup(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	qt.Assert(t, qt.IsNil(err))
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	t.Skip("no cgroups of version 2")
	return ""
}
