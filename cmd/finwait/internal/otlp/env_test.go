package otlp

import (
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
)

func read(t *testing.T, pairs ...string) *Config {
	t.Helper()
	c, err := ReadEnv(environment(pairs...))
	qt.Assert(t, qt.IsNil(err))
	return c
}

func TestReadEnvDefaults(t *testing.T) {
	c := read(t)
	logs, metrics := c.endpoints[LogSignal], c.endpoints[MetricSignal]
	qt.Assert(t, qt.IsFalse(c.Disabled))
	qt.Assert(t, qt.Equals(logs.protocol, "http/protobuf"))
	qt.Assert(t, qt.Equals(logs.target, "http://localhost:4318/v1/logs"))
	qt.Assert(t, qt.Equals(metrics.target, "http://localhost:4318/v1/metrics"))
	qt.Assert(t, qt.IsFalse(logs.secure))
	qt.Assert(t, qt.IsFalse(logs.gzip))
	qt.Assert(t, qt.Equals(logs.timeout, 10*time.Second))
	qt.Assert(t, qt.Equals(logs.budget, time.Minute))
	qt.Assert(t, qt.Equals(metrics.budget, 30*time.Second))
	qt.Assert(t, qt.Equals(c.interval, time.Minute))
	qt.Assert(t, qt.Equals(c.QueueOptions(), sink.Options{
		Name: "otlp", Delay: time.Second,
		Room: sink.Counts{Transitions: 8192, Conns: 2048}, Batch: sink.Counts{Transitions: 1024, Conns: 256},
	}))
	c = read(t, "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	qt.Assert(t, qt.Equals(c.endpoints[LogSignal].target, "localhost:4317"))
	qt.Assert(t, qt.IsFalse(c.endpoints[LogSignal].secure))
}

func TestReadEnvEndpoints(t *testing.T) {
	const all, logs, metrics = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
	const protocol, insecure = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_INSECURE"
	tests := []struct {
		name          string
		env           []string
		logs, metrics string
		secure        bool
	}{
		{"for all", []string{all, "https://c:1/"}, "https://c:1/v1/logs", "https://c:1/v1/metrics", true},
		{"a path", []string{all, "http://c/a"}, "http://c/a/v1/logs", "http://c/a/v1/metrics", false},
		{"a path that ends", []string{all, "http://c/a//"}, "http://c/a/v1/logs", "http://c/a/v1/metrics", false},
		{"a query", []string{all, "http://c/?k=v"}, "http://c/v1/logs?k=v", "http://c/v1/metrics?k=v", false},
		{"of one", []string{all, "http://c", logs, "https://d"}, "https://d/", "http://c/v1/metrics", true},
		{"of the other", []string{all, "http://c", metrics, "http://d/x"}, "http://c/v1/logs", "http://d/x", false},
		{"empty", []string{all, "http://c", logs, " "}, "http://c/v1/logs", "http://c/v1/metrics", false},
		{"space", []string{all, " http://c "}, "http://c/v1/logs", "http://c/v1/metrics", false},
		{"IPv6", []string{all, "http://[::1]:4318"}, "http://[::1]:4318/v1/logs", "http://[::1]:4318/v1/metrics", false},
		{"grpc", []string{protocol, "grpc", all, "http://c:4317/"}, "c:4317", "c:4317", false},
		{"grpc upper case", []string{protocol, "grpc", all, "HTTPS://c:4317"}, "c:4317", "c:4317", true},
		{"grpc without port", []string{protocol, "grpc", all, "https://c"}, "c:443", "c:443", true},
		{"grpc IPv6", []string{protocol, "grpc", all, "http://[::1]"}, "[::1]:80", "[::1]:80", false},
		{"grpc bare", []string{protocol, "grpc", all, "c:4317"}, "c:4317", "c:4317", true},
		{"grpc bare, insecure", []string{protocol, "grpc", all, "c:4317", insecure, "TRUE"}, "c:4317", "c:4317", false},
		{"grpc https, insecure", []string{protocol, "grpc", all, "https://c:4317", insecure, "true"}, "c:4317", "c:4317", true},
		{"grpc unix", []string{protocol, "grpc", all, "unix:///run/otlp", insecure, "true"}, "unix:///run/otlp", "unix:///run/otlp", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := read(t, test.env...)
			qt.Check(t, qt.Equals(c.endpoints[LogSignal].target, test.logs))
			qt.Check(t, qt.Equals(c.endpoints[MetricSignal].target, test.metrics))
			qt.Check(t, qt.Equals(c.endpoints[LogSignal].secure, test.secure))
		})
	}
	c := read(t, "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc", all, "http://c:9")
	qt.Assert(t, qt.Equals(c.endpoints[LogSignal].target, "c:9"))
	qt.Assert(t, qt.Equals(c.endpoints[MetricSignal].target, "http://c:9/v1/metrics"))
}

func TestReadEnvValues(t *testing.T) {
	c := read(t,
		"OTEL_SDK_DISABLED", "True",
		"OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20Zm9v, x-a = b%2Cc=d ,,x-a=e",
		"OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-m=1",
		"OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none",
		"OTEL_EXPORTER_OTLP_TIMEOUT", "2500", "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "1",
		"OTEL_BLRP_SCHEDULE_DELAY", "10", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "100000", "OTEL_BLRP_EXPORT_TIMEOUT", "20",
		"OTEL_METRIC_EXPORT_INTERVAL", "30000", "OTEL_METRIC_EXPORT_TIMEOUT", "40",
		"OTEL_RESOURCE_ATTRIBUTES", "a=b%20c,service.name=x,host.name=%C3%BC", "OTEL_SERVICE_NAME", "y",
		"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Cumulative")
	logs, metrics := c.endpoints[LogSignal], c.endpoints[MetricSignal]
	qt.Assert(t, qt.IsTrue(c.Disabled))
	qt.Assert(t, qt.DeepEquals(flat(logs.headers), []string{"authorization", "Basic Zm9v", "x-a", "e"}))
	qt.Assert(t, qt.DeepEquals(flat(metrics.headers), []string{"x-m", "1"}))
	qt.Assert(t, qt.IsTrue(logs.gzip))
	qt.Assert(t, qt.IsFalse(metrics.gzip))
	qt.Assert(t, qt.Equals(logs.timeout, time.Millisecond))
	qt.Assert(t, qt.Equals(metrics.timeout, 2500*time.Millisecond))
	qt.Assert(t, qt.Equals(logs.budget, 20*time.Millisecond))
	qt.Assert(t, qt.Equals(metrics.budget, 40*time.Millisecond))
	qt.Assert(t, qt.Equals(c.interval, 30*time.Second))
	qt.Assert(t, qt.Equals(c.delay, 10*time.Millisecond))
	qt.Assert(t, qt.Equals(c.room, 100000)) // one that is not given is not too small
	qt.Assert(t, qt.DeepEquals(flat(c.attributes), []string{"a", "b c", "service.name", "x", "host.name", "ü"}))
	qt.Assert(t, qt.Equals(c.service, "y"))
}

func flat(all []attribute) (out []string) {
	for _, a := range all {
		out = append(out, a.key, a.value)
	}
	return out
}

func TestReadEnvErrors(t *testing.T) {
	const secret = "s3cret"
	tests := []struct {
		variable, value string
		also            []string
		problem         string
	}{
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", nil, `is "http/json" \(want http/protobuf or grpc\)`},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", nil, `is not a URL such as http://localhost:4318`},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://c", nil, "is not a URL.*"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://:4318", nil, "is not a URL.*"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://" + secret + ":x@c:y", nil, "is not a URL.*"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:70000/" + secret, nil, "has no port from 1 to 65535.*"},
		{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "://", nil, "is not a URL.*"},
		{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "x", nil, "is not a URL.*"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://c/" + secret, []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, "has more than a scheme, a host and a port.*"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "a " + secret, []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, "is not a place to send to by gRPC.*"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "c", []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, "is not a place to send to by gRPC.*"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", secret + "@c:1", []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, "is not a place to send to by gRPC.*"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "c:99999", []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, "is not a place to send to by gRPC.*"},
		{"OTEL_EXPORTER_OTLP_HEADERS", secret, nil, "is not as it should be at member 1 .*"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a=b,c=%zz" + secret, nil, "is not as it should be at member 2 .*"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a=b,=" + secret, nil, "is not as it should be at member 2 .*"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a=%0d%0a" + secret, nil, "has what cannot be a header.*"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a b=" + secret, nil, "has what cannot be a header.*"},
		{"OTEL_EXPORTER_OTLP_LOGS_HEADERS", ":authority=" + secret, nil, "has what cannot be a header.*"},
		{"OTEL_EXPORTER_OTLP_LOGS_HEADERS", "Content-Type=" + secret, nil, "has the header content-type, .*"},
		{"OTEL_EXPORTER_OTLP_LOGS_HEADERS", "grpc-x=" + secret, nil, "has the header grpc-x, .*"},
		{"OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", nil, `is "zstd" \(want none or gzip\)`},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "10s", nil, `is "10s" \(want a number of milliseconds, such as 5000\)`},
		{"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "0", nil, `is "0" .*`},
		{"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "99999999999999999999", nil, `is "9+" .*`},
		{"OTEL_EXPORTER_OTLP_INSECURE", "yes", nil, `is "yes" \(want false or true\)`},
		{"OTEL_SDK_DISABLED", "1", nil, `is "1" \(want false or true\)`},
		{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "a", nil, "and OTEL_EXPORTER_OTLP_CLIENT_KEY are needed both, or none"},
		{"OTEL_RESOURCE_ATTRIBUTES", "a=%ff", nil, "is not as it should be at member 1 .*"},
		{"OTEL_SERVICE_NAME", "\xff", nil, "is not UTF-8"},
		{"OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "0", nil, `is "0" \(want a number from 1 to 1048576\)`},
		{"OTEL_BLRP_MAX_QUEUE_SIZE", "-1", nil, `is "-1" .*`},
		{"OTEL_BLRP_MAX_QUEUE_SIZE", "100", nil, "is less than OTEL_BLRP_MAX_EXPORT_BATCH_SIZE, 1024: .*"},
		{"OTEL_BLRP_SCHEDULE_DELAY", "x", nil, `is "x" .*`},
		{"OTEL_METRIC_EXPORT_INTERVAL", "x", nil, `is "x" .*`},
		{"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta", nil, `is "delta" \(want cumulative\)`},
	}
	for _, test := range tests {
		t.Run(test.variable+"="+test.value, func(t *testing.T) {
			_, err := ReadEnv(environment(append(test.also, test.variable, test.value)...))
			var mistake *EnvError
			qt.Assert(t, qt.ErrorAs(err, &mistake))
			qt.Assert(t, qt.Equals(mistake.Variable, test.variable))
			qt.Assert(t, qt.Matches(mistake.Problem, test.problem))
			qt.Assert(t, qt.IsFalse(strings.Contains(err.Error(), secret)))
		})
	}
}

func TestFilesErrors(t *testing.T) {
	for _, variable := range []string{"OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE"} {
		c := read(t, "OTEL_EXPORTER_OTLP_ENDPOINT", "https://c", variable, "/nowhere/ca.pem")
		_, err := NewLogs(c, LogOptions{})
		var mistake *EnvError
		qt.Assert(t, qt.ErrorAs(err, &mistake))
		qt.Assert(t, qt.Equals(mistake.Variable, variable))
		qt.Assert(t, qt.StringContains(err.Error(), "/nowhere/ca.pem"))
	}
	c := read(t, "OTEL_EXPORTER_OTLP_ENDPOINT", "https://c", "OTEL_EXPORTER_OTLP_CERTIFICATE", "env_test.go")
	_, err := NewLogs(c, LogOptions{})
	qt.Assert(t, qt.ErrorMatches(err, `OTEL_EXPORTER_OTLP_CERTIFICATE is "env_test.go", a file without a certificate in PEM`))
}

func TestCannotDial(t *testing.T) {
	c := read(t, "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "dns:///%zz")
	_, err := NewLogs(c, LogOptions{})
	var mistake *EnvError
	qt.Assert(t, qt.ErrorAs(err, &mistake))
	qt.Assert(t, qt.ErrorMatches(err, `OTEL_EXPORTER_OTLP_LOGS_ENDPOINT is "dns:///%zz", which gRPC cannot dial: .*`))
}

func TestResource(t *testing.T) {
	h := host{machineID: "00112233445566778899aabbccddeeff", name: "h", osVersion: "6.1", description: "Linux 6.1"}
	attributes := func(env []string, h host) map[string]string {
		all := map[string]string{}
		for _, a := range read(t, env...).resource(h, "v1", environment(env...)) {
			_, twice := all[a.key]
			qt.Assert(t, qt.IsFalse(twice))
			all[a.key] = a.value
		}
		return all
	}
	got := attributes(nil, h)
	qt.Assert(t, qt.Equals(got["service.name"], "finwait"))
	qt.Assert(t, qt.Equals(got["service.version"], "v1"))
	qt.Assert(t, qt.Equals(got["host.name"], "h"))
	qt.Assert(t, qt.Equals(got["host.id"], h.machineID))
	qt.Assert(t, qt.Equals(got["os.version"], "6.1"))
	qt.Assert(t, qt.Matches(got["service.instance.id"], `[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`))
	qt.Assert(t, qt.Equals(attributes(nil, h)["service.instance.id"], got["service.instance.id"])) // again the same

	env := []string{
		"OTEL_RESOURCE_ATTRIBUTES", "service.name=x,host.name=other,deployment.environment.name=prod", "OTEL_SERVICE_NAME", "y",
		"NODE_NAME", "n", "K8S_POD_NAME", "p", "POD_NAME", "no", "POD_NAMESPACE", "ns",
	}
	got = attributes(env, host{})
	qt.Assert(t, qt.Equals(got["service.name"], "y"))
	qt.Assert(t, qt.Equals(got["host.name"], "other"))
	qt.Assert(t, qt.Equals(got["deployment.environment.name"], "prod"))
	qt.Assert(t, qt.Equals(got["k8s.node.name"], "n"))
	qt.Assert(t, qt.Equals(got["k8s.pod.name"], "p"))
	qt.Assert(t, qt.Equals(got["k8s.namespace.name"], "ns"))
	_, known := got["host.id"]
	qt.Assert(t, qt.IsFalse(known))
	qt.Assert(t, qt.Equals(got["service.instance.id"], instanceID("n")))
	qt.Assert(t, qt.Equals(attributes([]string{"OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=mine"}, h)["service.instance.id"], "mine"))
	qt.Assert(t, qt.Not(qt.Equals(instanceID(""), instanceID("")))) // nothing is known of the host
}

// FuzzReadEnv has what is read be such that it can be used, and errors name a
// variable and tell nothing of a header.
func FuzzReadEnv(f *testing.F) {
	f.Add("http://localhost:4318", "a=b,c=d%20e", "grpc", "gzip", "5000", "a=b")
	f.Add("https://u:p@[::1]:1/x?y", "Authorization=Bearer x", "http/protobuf", "none", "1", "service.name=x")
	f.Add("localhost:4317", "%,=", "grpc", "", "-1", "%c3%bc=%ff")
	f.Fuzz(func(t *testing.T, endpoint, headers, protocol, compression, number, attributes string) {
		c, err := ReadEnv(environment(
			"OTEL_EXPORTER_OTLP_ENDPOINT", endpoint, "OTEL_EXPORTER_OTLP_HEADERS", headers,
			"OTEL_EXPORTER_OTLP_PROTOCOL", protocol, "OTEL_EXPORTER_OTLP_COMPRESSION", compression,
			"OTEL_EXPORTER_OTLP_TIMEOUT", number, "OTEL_BLRP_MAX_QUEUE_SIZE", number, "OTEL_RESOURCE_ATTRIBUTES", attributes))
		var mistake *EnvError
		if err != nil {
			qt.Assert(t, qt.ErrorAs(err, &mistake))
			qt.Assert(t, qt.IsTrue(strings.HasPrefix(mistake.Variable, "OTEL_")))
			qt.Assert(t, qt.IsNil(c))
			return
		}
		for s := range Signal(numSignals) {
			e := c.endpoints[s]
			if e.protocol == protocolHTTP {
				u, err := url.Parse(e.target)
				qt.Assert(t, qt.IsNil(err))
				qt.Assert(t, qt.IsTrue(u.Hostname() != "" && u.Path != ""))
			}
			qt.Assert(t, qt.IsTrue(e.target != "" && e.timeout > 0))
			for _, h := range e.headers {
				qt.Assert(t, qt.IsTrue(h.key != "" && !strings.ContainsAny(h.key+h.value, "\r\n\x00")))
			}
		}
		qt.Assert(t, qt.IsTrue(c.batch <= c.room))
		for _, a := range c.attributes {
			qt.Assert(t, qt.IsTrue(a.key != "" && utf8.ValidString(a.key) && utf8.ValidString(a.value)))
		}
	})
}

// FuzzPairs has whatever a key and a value are come back from their encoding.
func FuzzPairs(f *testing.F) {
	f.Add("a", "b,c=d %")
	f.Add("ü", "")
	f.Fuzz(func(t *testing.T, key, value string) {
		if key == "" || !utf8.ValidString(key) || !utf8.ValidString(value) {
			return
		}
		e := &env{}
		got := e.pairs(setting{"X", "first=1," + escape(key) + "=" + escape(value)})
		qt.Assert(t, qt.IsNil(e.err))
		if key != "first" {
			qt.Assert(t, qt.DeepEquals(flat(got), []string{"first", "1", key, value}))
		}
	})
}

// escape returns s as it should stand in a list of pairs.
func escape(s string) string {
	return strings.NewReplacer("=", "%3D", ",", "%2C").Replace(url.PathEscape(s))
}
