package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// targetVariable names the address of an agent, such as 127.0.0.1:9987, that is
// scraped in place of the one that the test plays. A panel without data is an
// error then as well, but for those in mayBeEmpty.
const targetVariable = "FINWAIT_DASHBOARD_TARGET"

// mayBeEmpty are panels that have nothing to show where an option is off, the
// kernel does not measure, or Prometheus asks for no native histograms.
var mayBeEmpty = map[string]bool{
	"Sockets by service port": true, "99th percentile in ESTABLISHED": true, "Sockets by cgroup": true,
	"CPU of the programs": true, "Time per run": true, "Abnormal, share of all": true, "Records by sink": true,
	"Records that wait": true, "Lost records/s": true, "99th percentile, native": true, "99th percentile": true, "Median": true,
}

// TestQueries asks a Prometheus that has scraped an agent every query of the
// dashboard, and wants at least one series from each.
func TestQueries(t *testing.T) {
	program, err := exec.LookPath("prometheus")
	if err != nil {
		if os.Getenv("CI_PRIVILEGED") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs prometheus (Debian package)")
	}
	real := os.Getenv(targetVariable)
	targets := map[string]string{"/metrics": real}
	if real == "" {
		text, native := serveAgent(t), serveAgent(t)
		targets = map[string]string{"/text": text, "/metrics": native}
	}
	p := startPrometheus(t, program, targets)
	for _, r := range rows {
		for _, panel := range r.panels {
			if real != "" && mayBeEmpty[panel.title] {
				continue
			}
			for _, q := range panel.queries {
				p.await(t, panel.title, concrete(q.expr))
			}
		}
	}
}

// concrete is a query as Grafana would send it.
func concrete(expr string) string {
	return strings.NewReplacer("$job", ".*", "$instance", ".*", "$__rate_interval", "10s").Replace(placeholders.Replace(expr))
}

// serveAgent returns the address of a server that is an agent.
func serveAgent(t *testing.T) string {
	server := httptest.NewServer(newAgent())
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// server is a Prometheus that runs.
type server struct {
	url  string
	said *bytes.Buffer
	done chan error
}

// startPrometheus has one scrape the targets, which are addresses by path.
func startPrometheus(t *testing.T, program string, targets map[string]string) *server {
	t.Helper()
	dir := t.TempDir()
	config := "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n"
	for path, address := range targets {
		config += fmt.Sprintf("- {job_name: finwait%s, metrics_path: %s, static_configs: [{targets: [%q]}]}\n",
			strings.ReplaceAll(path, "/", "-"), path, address)
	}
	file := filepath.Join(dir, "prometheus.yml")
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(config), 0o600)))
	address := freeAddress(t)
	s := &server{url: "http://" + address, said: &bytes.Buffer{}, done: make(chan error, 1)}
	cmd := exec.Command(program, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--enable-feature=native-histograms", "--log.level=warn")
	cmd.Stdout, cmd.Stderr = s.said, s.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	qt.Assert(t, qt.IsNil(cmd.Start()))
	go func() { s.done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-s.done
	})
	return s
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	return l.Addr().String()
}

// await asks until there is an answer with data.
func (s *server) await(t *testing.T, title, expr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for {
		series, err := s.ask(ctx, expr)
		switch {
		case series > 0:
			return
		case ctx.Err() != nil:
			t.Errorf("%s: no data: %s: %v\n%s", title, expr, err, s.said)
			return
		}
		select {
		case err := <-s.done:
			s.done <- err
			t.Fatalf("prometheus has ended: %v\n%s", err, s.said)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ask returns how many series with a number answer a query.
func (s *server) ask(ctx context.Context, expr string) (series int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/api/v1/query?"+url.Values{"query": {expr}}.Encode(), nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Warnings      []string
		Data          struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, err
	}
	if answer.Status != "success" || len(answer.Warnings) > 0 {
		return 0, fmt.Errorf("%s: %s %v", answer.Status, answer.Error, answer.Warnings)
	}
	for _, r := range answer.Data.Result {
		if r.Value[1] != "NaN" {
			series++
		}
	}
	return series, nil
}
