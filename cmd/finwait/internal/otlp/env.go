package otlp

import (
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
)

// The protocols.
const (
	protocolGRPC = "grpc"
	protocolHTTP = "http/protobuf"
)

// An EnvError says what is wrong with an environment variable. It does not hold
// the value where that may be secret.
type EnvError struct {
	Variable string
	Problem  string // such as "is not a number of milliseconds, such as 5000"
}

// Error implements error.
func (e *EnvError) Error() string { return e.Variable + " " + e.Problem }

// Config is what the environment says.
type Config struct {
	// Disabled is OTEL_SDK_DISABLED: nothing is to be sent.
	Disabled bool

	// What a queue for logs is to be like: see QueueOptions.
	delay       time.Duration
	batch, room uint64

	interval   time.Duration // between metrics
	endpoints  [numSignals]endpoint
	attributes []attribute // of the resource that the environment gives, in its order
	service    string      // its name, if the environment gives it
}

// endpoint is where a signal goes, and how.
type endpoint struct {
	protocol string
	variable string // that says where
	target   string // the URL of HTTP, or what gRPC is to dial
	secure   bool
	headers  []attribute
	gzip     bool
	timeout  time.Duration // of one request
	budget   time.Duration // of all that is done for one batch

	authorities, certificate, key setting // names of files
}

// setting is a value and the variable that has it.
type setting struct{ variable, value string }

type attribute struct{ key, value string }

// ReadEnv reads the configuration from environment variables, of which lookup
// returns the values (see [os.LookupEnv]). One that is empty counts as not set.
// An error is an [EnvError].
//
// These have a form for all signals and one for each, which takes precedence,
// such as OTEL_EXPORTER_OTLP_LOGS_ENDPOINT and OTEL_EXPORTER_OTLP_METRICS_ENDPOINT:
//
//	OTEL_EXPORTER_OTLP_PROTOCOL            http/protobuf (default) or grpc
//	OTEL_EXPORTER_OTLP_ENDPOINT            http://localhost:4318 (default), or :4317 with grpc; with
//	                                       HTTP, v1/logs and v1/metrics are appended to the form for all
//	OTEL_EXPORTER_OTLP_HEADERS             key=value,key=value, percent-encoded
//	OTEL_EXPORTER_OTLP_COMPRESSION         none (default) or gzip
//	OTEL_EXPORTER_OTLP_TIMEOUT             of one request in milliseconds, 10000 by default
//	OTEL_EXPORTER_OTLP_INSECURE            true has gRPC use no TLS where the endpoint does not say
//	OTEL_EXPORTER_OTLP_CERTIFICATE         file of the authorities to trust
//	OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE  file of our certificate
//	OTEL_EXPORTER_OTLP_CLIENT_KEY          file of its key
//
// The others:
//
//	OTEL_SDK_DISABLED                      true has nothing sent
//	OTEL_SERVICE_NAME                      default finwait
//	OTEL_RESOURCE_ATTRIBUTES               key=value,key=value, percent-encoded
//	OTEL_BLRP_SCHEDULE_DELAY               how long records wait for others in milliseconds, 1000 by default
//	OTEL_BLRP_MAX_EXPORT_BATCH_SIZE        how many transitions are sent together, 1024 by default
//	OTEL_BLRP_MAX_QUEUE_SIZE               how many transitions may wait, 8192 by default
//	OTEL_BLRP_EXPORT_TIMEOUT               how long a batch is tried in milliseconds, 60000 by default
//	OTEL_METRIC_EXPORT_INTERVAL            milliseconds between metrics, 60000 by default
//	OTEL_METRIC_EXPORT_TIMEOUT             how long metrics are tried in milliseconds, 30000 by default
//	OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE  cumulative is what there is
func ReadEnv(lookup func(string) (string, bool)) (*Config, error) {
	e := &env{lookup: lookup}
	c := &Config{
		Disabled:   e.boolean(e.get("OTEL_SDK_DISABLED")),
		service:    e.text(e.get("OTEL_SERVICE_NAME")),
		attributes: e.pairs(e.get("OTEL_RESOURCE_ATTRIBUTES")),
		delay:      e.milliseconds(e.get("OTEL_BLRP_SCHEDULE_DELAY"), time.Second),
		batch:      e.count(e.get("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"), 1024),
		room:       e.count(e.get("OTEL_BLRP_MAX_QUEUE_SIZE"), 8192),
		interval:   e.milliseconds(e.get("OTEL_METRIC_EXPORT_INTERVAL"), time.Minute),
	}
	if room := e.get("OTEL_BLRP_MAX_QUEUE_SIZE"); c.batch > c.room && room.value != "" {
		e.fail(room, "is less than OTEL_BLRP_MAX_EXPORT_BATCH_SIZE, %d: no batch would ever be full", c.batch)
	}
	c.room = max(c.room, c.batch)
	e.cumulative(e.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"))
	for s := range Signal(numSignals) {
		c.endpoints[s] = e.endpoint(s)
	}
	c.endpoints[LogSignal].budget = e.milliseconds(e.get("OTEL_BLRP_EXPORT_TIMEOUT"), time.Minute)
	c.endpoints[MetricSignal].budget = e.milliseconds(e.get("OTEL_METRIC_EXPORT_TIMEOUT"), 30*time.Second)
	if e.err != nil {
		return nil, e.err
	}
	return c, nil
}

// QueueOptions returns what the queue before a Logs is to be like. Of connections
// there are a quarter as many as of transitions: each has several transitions, and
// is three times as large. Log is the caller's.
func (c *Config) QueueOptions() sink.Options {
	counts := func(n uint64) sink.Counts { return sink.Counts{Transitions: n, Conns: max(n/4, 1)} }
	return sink.Options{Name: "otlp", Room: counts(c.room), Batch: counts(c.batch), Delay: c.delay}
}

// env reads variables, and keeps the first error.
type env struct {
	lookup func(string) (string, bool)
	err    error
}

func (e *env) fail(s setting, format string, args ...any) {
	if e.err == nil {
		e.err = &EnvError{s.variable, fmt.Sprintf(format, args...)}
	}
}

func (e *env) get(variable string) setting {
	value, _ := e.lookup(variable)
	return setting{variable, strings.TrimSpace(value)}
}

// of returns the setting of that name for a signal, or else for all.
func (e *env) of(s Signal, name string) setting {
	if own := e.get("OTEL_EXPORTER_OTLP_" + signals[s].variable + "_" + name); own.value != "" {
		return own
	}
	return e.get("OTEL_EXPORTER_OTLP_" + name)
}

func (e *env) endpoint(s Signal) endpoint {
	p := endpoint{
		protocol:    e.choice(e.of(s, "PROTOCOL"), protocolHTTP, protocolGRPC),
		headers:     e.headers(e.of(s, "HEADERS")),
		gzip:        e.choice(e.of(s, "COMPRESSION"), "none", "gzip") == "gzip",
		timeout:     e.milliseconds(e.of(s, "TIMEOUT"), 10*time.Second),
		authorities: e.of(s, "CERTIFICATE"),
		certificate: e.of(s, "CLIENT_CERTIFICATE"),
		key:         e.of(s, "CLIENT_KEY"),
	}
	if (p.certificate.value == "") != (p.key.value == "") {
		e.fail(p.certificate, "and %s are needed both, or none", p.key.variable)
	}
	insecure := e.boolean(e.of(s, "INSECURE"))
	place := e.of(s, "ENDPOINT")
	p.variable = place.variable
	if p.protocol == protocolGRPC {
		p.target, p.secure = e.grpcTarget(place, !insecure)
	} else {
		p.target, p.secure = e.httpTarget(place, signals[s].path, place.variable == "OTEL_EXPORTER_OTLP_ENDPOINT")
	}
	return p
}

// httpTarget returns the URL to send to. Errors do not tell the value, which may
// have a password in it, or a token.
func (e *env) httpTarget(s setting, path string, forAll bool) (target string, secure bool) {
	if s.value == "" {
		return "http://localhost:4318/" + path, false
	}
	u := e.url(s, "http://localhost:4318")
	if u == nil {
		return "", false
	}
	if forAll {
		u = u.JoinPath(path)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u.String(), u.Scheme == "https"
}

// grpcTarget returns what to dial. Besides a URL that is anything that gRPC
// knows, such as a host and a port.
func (e *env) grpcTarget(s setting, secure bool) (string, bool) {
	scheme, _, _ := strings.Cut(strings.ToLower(s.value), ":")
	switch {
	case s.value == "":
		return "localhost:4317", false
	case scheme == "http", scheme == "https":
	case slices.Contains(grpcSchemes, scheme), isHostPort(s.value):
		return s.value, secure
	default:
		e.fail(s, "is not a place to send to by gRPC, such as http://localhost:4317 or localhost:4317")
		return "", false
	}
	u := e.url(s, "http://localhost:4317")
	if u == nil {
		return "", false
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		e.fail(s, "has more than a scheme, a host and a port, which gRPC has no use for (want such as http://localhost:4317)")
	}
	secure = u.Scheme == "https"
	if u.Port() == "" {
		u.Host += ":" + map[bool]string{true: "443", false: "80"}[secure]
	}
	return u.Host, secure
}

// grpcSchemes are how gRPC names places beyond a host and a port.
var grpcSchemes = []string{"dns", "passthrough", "unix", "unix-abstract", "vsock"}

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	return err == nil && host != "" && isPort(port) && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || strings.ContainsRune("/@?#", r) })
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func (e *env) url(s setting, example string) *url.URL {
	u, err := url.Parse(s.value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" {
		e.fail(s, "is not a URL such as %s", example)
		return nil
	}
	if port := u.Port(); port != "" && !isPort(port) {
		e.fail(s, "has no port from 1 to 65535 (want a URL such as %s)", example)
		return nil
	}
	return u
}

// choice returns the value, the first of those that may be by default.
func (e *env) choice(s setting, may ...string) string {
	if s.value == "" {
		return may[0]
	}
	if slices.Contains(may, s.value) {
		return s.value
	}
	e.fail(s, "is %q (want %s)", s.value, strings.Join(may, " or "))
	return may[0]
}

func (e *env) boolean(s setting) bool {
	return e.choice(setting{s.variable, strings.ToLower(s.value)}, "false", "true") == "true"
}

func (e *env) cumulative(s setting) {
	e.choice(setting{s.variable, strings.ToLower(s.value)}, "cumulative")
}

func (e *env) milliseconds(s setting, byDefault time.Duration) time.Duration {
	if s.value == "" {
		return byDefault
	}
	n, err := strconv.ParseInt(s.value, 10, 64)
	if err != nil || n < 1 || n > math.MaxInt32 {
		e.fail(s, "is %q (want a number of milliseconds, such as 5000)", s.value)
	}
	return time.Duration(n) * time.Millisecond
}

func (e *env) count(s setting, byDefault uint64) uint64 {
	const most = 1 << 20 // of some hundred bytes each
	if s.value == "" {
		return byDefault
	}
	n, err := strconv.ParseUint(s.value, 10, 64)
	if err != nil || n < 1 || n > most {
		e.fail(s, "is %q (want a number from 1 to %d)", s.value, most)
	}
	return n
}

func (e *env) text(s setting) string {
	if !utf8.ValidString(s.value) {
		e.fail(s, "is not UTF-8")
	}
	return s.value
}

// pairs parses key=value,key=value, as W3C Baggage has it, without properties.
// The last of those with one key counts. Errors do not tell the value.
func (e *env) pairs(s setting) []attribute {
	var all []attribute
	n := 0
	for member := range strings.SplitSeq(s.value, ",") {
		n++
		if strings.TrimSpace(member) == "" {
			continue
		}
		key, value, found := strings.Cut(member, "=")
		a := attribute{unescape(key), unescape(value)}
		if !found || a.key == "" || !utf8.ValidString(a.key) || !utf8.ValidString(a.value) {
			e.fail(s, "is not as it should be at member %d (want key=value,key=value, with what is special as %%XX)", n)
			return nil
		}
		all = put(all, a)
	}
	return all
}

// unescape returns s without the space around it, and with %XX as what it stands
// for, or what is not UTF-8 if that cannot be.
func unescape(s string) string {
	out, err := url.PathUnescape(strings.TrimSpace(s))
	if err != nil {
		return "\xff"
	}
	return out
}

// put adds a, in the place of what has its key.
func put(all []attribute, a attribute) []attribute {
	for i := range all {
		if all[i].key == a.key {
			all[i] = a
			return all
		}
	}
	return append(all, a)
}

// headers parses pairs that can be headers of HTTP and metadata of gRPC. Their
// names are in lower case, which is the same to HTTP and needed by gRPC.
func (e *env) headers(s setting) []attribute {
	var all []attribute
	for _, h := range e.pairs(s) {
		h.key = strings.ToLower(h.key)
		if strings.Trim(h.key, headerNames) != "" || strings.ContainsFunc(h.value, func(r rune) bool { return r < ' ' && r != '\t' || r > '~' }) {
			e.fail(s, "has what cannot be a header (want key=value,key=value; a key of letters, digits and -_., a value of printable ASCII)")
			return nil
		}
		if strings.HasPrefix(h.key, "grpc-") || reservedHeaders[h.key] {
			e.fail(s, "has the header %s, which is not for the user to set", h.key)
			return nil
		}
		all = put(all, h)
	}
	return all
}

const headerNames = "abcdefghijklmnopqrstuvwxyz0123456789-_."

// reservedHeaders are those that the transport sets.
var reservedHeaders = map[string]bool{
	"content-type": true, "content-encoding": true, "content-length": true, "transfer-encoding": true,
	"connection": true, "te": true, "host": true,
}
