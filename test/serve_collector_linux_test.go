package test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/collector/pdata/plog"
	"golang.org/x/sys/unix"
)

// realCollector returns the OpenTelemetry Collector of test/collector, which is built
// only where all has to be there.
func realCollector(t *testing.T) string {
	t.Helper()
	script := []string{"./collector/build.sh"}
	if os.Getenv("CI_PRIVILEGED") != "1" {
		script = append(script, "--have")
	}
	path, err := exec.Command(script[0], script[1:]...).Output()
	if err != nil && os.Getenv("CI_PRIVILEGED") != "1" {
		t.Skip("the Collector is not built: test/collector/build.sh builds it")
	}
	qt.Assert(t, qt.IsNil(err))
	return strings.TrimSpace(string(path))
}

const collectorConfig = `
receivers: {otlp: {protocols: {grpc: {endpoint: %q}}}}
exporters: {file: {path: %q, flush_interval: 1h}}
service:
  telemetry: {logs: {level: warn}, metrics: {level: none}}
  pipelines: {logs: {receivers: [otlp], exporters: [file]}}
`

// TestServeCollector has a real Collector take what the agent tells of connections that
// are made as fast as they go. It writes each record that the agent's ledger says it
// has kept once, and no other.
func TestServeCollector(t *testing.T) {
	dir := agentDir(t)
	address, written := freeAddress(t), filepath.Join(dir, "otlp.json")
	config := filepath.Join(dir, "collector.yaml")
	qt.Assert(t, qt.IsNil(os.WriteFile(config, fmt.Appendf(nil, collectorConfig, address, written), 0o600)))
	c := spawn(t, exec.Command(realCollector(t), "--config", config))
	c.await("collector", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil || c.hasEnded()
	})
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+address)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	a := serve(t, dir, "--records", "transitions,conns", "--wait-timewait=false", "--otlp", "logs")
	churn(t, 5000)
	said := a.terminate()
	qt.Assert(t, qt.IsNil(c.cmd.Process.Signal(unix.SIGTERM)))
	c.wait() // what it has is written; it may complain of its own log

	kept := keptBy(t, said, "otlp")
	qt.Check(t, qt.IsTrue(kept > 5000), qt.Commentf("%d", kept))
	records, times := 0, map[string]int{} // by all that there is of a record
	for line := range bytes.Lines([]byte(readFile(t, written))) {
		logs, err := new(plog.JSONUnmarshaler).UnmarshalLogs(line)
		qt.Assert(t, qt.IsNil(err))
		for _, resource := range logs.ResourceLogs().All() {
			for _, scope := range resource.ScopeLogs().All() {
				for _, r := range scope.LogRecords().All() {
					records++
					times[fmt.Sprint(r.EventName(), r.Timestamp(), r.Attributes().AsRaw())]++
				}
			}
		}
	}
	qt.Check(t, qt.Equals(records, kept))
	for record, n := range times {
		qt.Check(t, qt.Equals(n, 1), qt.Commentf("%s", record))
	}
}
