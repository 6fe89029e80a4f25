// Package otlp sends transitions and connections as OTLP logs, and what the
// tracer has counted as OTLP metrics, to an OpenTelemetry Collector or to
// anything else that takes OTLP.
//
// It is told where by the standard OTEL_* environment variables: see
// [ReadEnv]. What a record holds is in [Attributes].
//
// # Delivery
//
// Each request is sent until it is taken, refused for good, or its time is up
// (OTEL_BLRP_EXPORT_TIMEOUT, OTEL_METRIC_EXPORT_TIMEOUT). A request to which no
// answer came may have been taken: it is sent again, so that no record is lost,
// and its records may be there twice. [Stats.Unconfirmed] counts them: what the
// other side has taken is at least what is kept, and at most that many more.
package otlp

import "go.opentelemetry.io/collector/pdata/pcommon"

// scopeOf is the name of the instrumentation scope.
const scopeOf = "github.com/finwait/finwait"

// A Signal is a kind of telemetry, with settings of its own.
type Signal int

// The signals.
const (
	LogSignal Signal = iota
	MetricSignal
	numSignals = iota
)

// signals says what differs between them.
var signals = [numSignals]struct {
	variable string // as it stands in the names of environment variables
	path     string // of OTLP/HTTP
	method   string // of OTLP/gRPC
	rejected func(response []byte) (n int64, message string, err error)
}{
	LogSignal:    {"LOGS", "v1/logs", "/opentelemetry.proto.collector.logs.v1.LogsService/Export", rejectedLogs},
	MetricSignal: {"METRICS", "v1/metrics", "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", rejectedMetrics},
}

// setScope fills in who has made the records.
func setScope(scope pcommon.InstrumentationScope, version string) {
	scope.SetName(scopeOf)
	scope.SetVersion(version)
}
