package otlp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/gzip"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
)

// A reply is what a server of the tests answers.
type reply struct {
	status     int        // of HTTP; 0 for a success
	code       codes.Code // of gRPC
	after      time.Duration
	message    string
	rejected   int64
	noAnswer   bool // the connection breaks instead
	headerOnly map[string]string
}

// server takes requests, and answers with one reply after the other, the last of
// them over and over.
type server struct {
	plogotlp.UnimplementedGRPCServer

	mu      sync.Mutex
	replies []reply
	headers []map[string][]string
	logs    []plog.Logs
	times   []time.Time
}

func (s *server) take(headers map[string][]string, logs plog.Logs) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.headers, s.logs, s.times = append(s.headers, headers), append(s.logs, logs), append(s.times, time.Now())
	r := s.replies[0]
	if len(s.replies) > 1 {
		s.replies = s.replies[1:]
	}
	return r
}

func (s *server) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body := io.Reader(request.Body)
	if request.Header.Get("Content-Encoding") == "gzip" {
		body, _ = gzip.NewReader(body)
	}
	content, _ := io.ReadAll(body)
	logs := plogotlp.NewExportRequest()
	if err := logs.UnmarshalProto(content); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r := s.take(request.Header, logs.Logs())
	if r.noAnswer {
		panic(http.ErrAbortHandler)
	}
	for key, value := range r.headerOnly {
		w.Header().Set(key, value)
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	if r.after > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int(r.after.Seconds())))
	}
	if r.status != 0 {
		w.WriteHeader(r.status)
		content, _ = proto.Marshal(&spb.Status{Message: r.message})
	} else {
		content, _ = r.response().MarshalProto()
	}
	_, _ = w.Write(content)
}

func (r reply) response() plogotlp.ExportResponse {
	response := plogotlp.NewExportResponse()
	if r.rejected != 0 || r.message != "" {
		response.PartialSuccess().SetRejectedLogRecords(r.rejected)
		response.PartialSuccess().SetErrorMessage(r.message)
	}
	return response
}

func (s *server) Export(ctx context.Context, request plogotlp.ExportRequest) (plogotlp.ExportResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	r := s.take(md, request.Logs())
	if r.noAnswer {
		<-ctx.Done()
		return plogotlp.NewExportResponse(), ctx.Err()
	}
	if r.code == codes.OK {
		return r.response(), nil
	}
	st := status.New(r.code, r.message)
	if r.after > 0 {
		st, _ = st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(r.after)})
	}
	return plogotlp.NewExportResponse(), st.Err()
}

// serveHTTP returns the address of one that answers so by HTTP.
func serveHTTP(t *testing.T, replies ...reply) (*server, string) {
	s := &server{replies: replies}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return s, h.URL
}

func serveGRPC(t *testing.T, options []grpc.ServerOption, replies ...reply) (*server, string) {
	s := &server{replies: replies}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	g := grpc.NewServer(options...)
	plogotlp.RegisterGRPCServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return s, "http://" + l.Addr().String()
}

// newTestLogs returns a sink that tries again at once.
func newTestLogs(t *testing.T, env ...string) *Logs {
	t.Helper()
	l, err := NewLogs(read(t, env...), LogOptions{Version: "v1"})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { _ = l.Close() })
	l.client.firstWait = time.Millisecond
	return l
}

var overloaded = reply{status: http.StatusServiceUnavailable, code: codes.Unavailable}

// TestAnswers has every answer mean to both transports what OTLP says it means.
func TestAnswers(t *testing.T) {
	unsure := func(n uint64) Stats { return Stats{Requests: 2, Retries: 1, Unconfirmed: n} }
	refused := func(httpStatus int, code codes.Code) []reply {
		return []reply{{status: httpStatus, code: code, message: "no"}, {}}
	}
	tests := []struct {
		name          string
		replies       []reply
		kept          uint64 // of 5
		stats         Stats
		err           string
		onHTTP, onRPC bool
	}{
		{"taken", []reply{{}}, 5, Stats{Requests: 1}, "", true, true},
		{"a warning", []reply{{message: "deprecated"}}, 5, Stats{Requests: 1}, "", true, true},
		{"partial", []reply{{rejected: 2, message: "too old"}}, 3, Stats{Requests: 1, Rejected: 2}, "2 of 5 were rejected: too old", true, true},
		{"more rejected than there are", []reply{{rejected: 9}}, 0, Stats{Requests: 1, Rejected: 5}, "5 of 5.*", true, true},
		{"less than none", []reply{{rejected: -3}}, 5, Stats{Requests: 1}, "", true, true},
		{"overloaded", []reply{overloaded, overloaded, overloaded, {}}, 5, Stats{Requests: 4, Retries: 3}, "", true, true},
		{"bad request", refused(400, codes.InvalidArgument), 0, Stats{Requests: 1}, ".*(400|InvalidArgument).*: no", true, true},
		{"unauthorized", refused(401, codes.Unauthenticated), 0, Stats{Requests: 1}, ".*: no", true, true},
		{"not there", refused(404, codes.Unimplemented), 0, Stats{Requests: 1}, ".*: no", true, true},
		{"too large", refused(413, codes.ResourceExhausted), 0, Stats{Requests: 1}, ".*: no", true, true},
		{"broken", refused(500, codes.Internal), 0, Stats{Requests: 1}, ".*: no", true, true},
		{"too many", []reply{{status: 429, code: codes.Unavailable}, {}}, 5, Stats{Requests: 2, Retries: 1}, "", true, true},
		{"bad gateway", []reply{{status: 502}, {}}, 5, unsure(5), "", true, false},
		{"gateway timeout", []reply{{status: 504}, {}}, 5, unsure(5), "", true, false},
		{"moved", []reply{{status: 301, headerOnly: map[string]string{"Location": "http://127.0.0.1:1/"}}}, 0, Stats{Requests: 1}, ".*301.*redirections are not followed.*", true, false},
		{"no answer", []reply{{noAnswer: true}, {}}, 5, unsure(5), "", true, true},
		{"aborted", []reply{{code: codes.Aborted}, {}}, 5, unsure(5), "", false, true},
		{"data loss", []reply{{code: codes.DataLoss}, {}}, 5, unsure(5), "", false, true},
		{"exhausted for a while", []reply{{code: codes.ResourceExhausted, after: time.Millisecond}, {}}, 5, Stats{Requests: 2, Retries: 1}, "", false, true},
	}
	check := func(t *testing.T, s *server, l *Logs, kept uint64, stats Stats, problem string) {
		got, err := l.Send(t.Context(), &newWorkload(5, 0).Batch)
		qt.Check(t, qt.Equals(got, sink.Counts{Transitions: kept}))
		qt.Check(t, qt.Equals(l.Stats(), stats))
		if problem == "" {
			qt.Check(t, qt.IsNil(err))
		} else {
			qt.Check(t, qt.ErrorMatches(err, problem))
		}
		for _, logs := range s.logs { // the same each time
			qt.Check(t, qt.Equals(logs.LogRecordCount(), 5))
		}
	}
	for _, test := range tests {
		if test.onHTTP {
			t.Run(test.name+" http", func(t *testing.T) {
				t.Parallel()
				s, url := serveHTTP(t, test.replies...)
				check(t, s, newTestLogs(t, "OTEL_EXPORTER_OTLP_ENDPOINT", url, "OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"), test.kept, test.stats, test.err)
			})
		}
		if test.onRPC {
			t.Run(test.name+" grpc", func(t *testing.T) {
				t.Parallel()
				s, url := serveGRPC(t, nil, test.replies...)
				timeout := "10000"
				if test.replies[0].noAnswer {
					timeout = "2000"
				}
				check(t, s, newTestLogs(t, "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT", url, "OTEL_EXPORTER_OTLP_TIMEOUT", timeout), test.kept, test.stats, test.err)
			})
		}
	}
}

// TestWaits has the other side's word on when to come again be kept, also by the
// next batch and when the first has been given up meanwhile.
func TestWaits(t *testing.T) {
	const wait = time.Second
	later := []reply{{status: 503, code: codes.Unavailable, after: wait}, {}}
	run := func(t *testing.T, s *server, env ...string) {
		t.Parallel()
		l := newTestLogs(t, append(env, "OTEL_BLRP_EXPORT_TIMEOUT", "300")...)
		kept, err := l.Send(t.Context(), &newWorkload(3, 0).Batch)
		qt.Check(t, qt.Equals(kept, sink.Counts{}))
		qt.Check(t, qt.ErrorMatches(err, "given up after 1 tries, when it was too late: .*"))
		l.client.budget = time.Minute
		kept, err = l.Send(t.Context(), &newWorkload(3, 0).Batch)
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(kept, sink.Counts{Transitions: 3}))
		qt.Check(t, qt.HasLen(s.times, 2))
		qt.Check(t, qt.IsTrue(s.times[1].Sub(s.times[0]) >= wait))
	}
	t.Run("http", func(t *testing.T) {
		s, url := serveHTTP(t, later...)
		run(t, s, "OTEL_EXPORTER_OTLP_ENDPOINT", url)
	})
	t.Run("grpc", func(t *testing.T) {
		s, url := serveGRPC(t, nil, later...)
		run(t, s, "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT", url)
	})
}

// TestCancelled has a Send that waits return when it is told to.
func TestCancelled(t *testing.T) {
	_, url := serveHTTP(t, reply{status: 503, after: time.Hour})
	l := newTestLogs(t, "OTEL_EXPORTER_OTLP_ENDPOINT", url)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for l.Stats().Requests == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	kept, err := l.Send(ctx, &newWorkload(3, 2).Batch)
	qt.Assert(t, qt.ErrorIs(err, context.Canceled))
	qt.Assert(t, qt.Equals(kept, sink.Counts{}))
}

// TestKinds has transitions and connections counted apart.
func TestKinds(t *testing.T) {
	_, url := serveHTTP(t, reply{rejected: 1}, reply{status: 400})
	l := newTestLogs(t, "OTEL_EXPORTER_OTLP_ENDPOINT", url)
	kept, err := l.Send(t.Context(), &newWorkload(7, 4).Batch)
	qt.Assert(t, qt.IsNotNil(err))
	qt.Assert(t, qt.Equals(kept, sink.Counts{Transitions: 6}))
}

// TestRefusedByQueue has everything that is put accounted for, whatever the other
// side answers.
func TestRefusedByQueue(t *testing.T) {
	replies := []reply{{}, overloaded, {rejected: 3}, {status: 400, code: codes.InvalidArgument}, {}, {status: 502, code: codes.Aborted}, {}, overloaded, {rejected: 1}, {}}
	run := func(t *testing.T, s *server, env ...string) {
		logs, q := started(t, append(env, "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "100", "OTEL_BLRP_SCHEDULE_DELAY", "1")...)
		w := newWorkload(2000, 500)
		w.put(q, 2000) // at once, so that each request has as many records as may be
		l := closed(t, q)
		stats := logs.Stats()
		qt.Assert(t, qt.Equals(l.Put, w.Counts()))
		qt.Assert(t, qt.Equals(stats.Rejected, 4))
		qt.Assert(t, qt.Equals(l.Failed.Total(), 4+100)) // and one batch refused
		qt.Assert(t, qt.Equals(stats.Retries, 3))
		qt.Assert(t, qt.Equals(stats.Unconfirmed, 100))
	}
	t.Run("http", func(t *testing.T) {
		s, url := serveHTTP(t, replies...)
		run(t, s, "OTEL_EXPORTER_OTLP_ENDPOINT", url)
	})
	t.Run("grpc", func(t *testing.T) {
		s, url := serveGRPC(t, nil, replies...)
		run(t, s, "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT", url)
	})
}

// TestHeaders has headers arrive, and not be told to anybody else.
func TestHeaders(t *testing.T) {
	const token = "s3cretToken"
	env := []string{"OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20" + token + ",x-tenant=t1"}
	leaky := reply{status: 403, code: codes.PermissionDenied, message: "no such token: " + token}
	run := func(t *testing.T, s *server, env ...string) {
		l := newTestLogs(t, env...)
		_, err := l.Send(t.Context(), &newWorkload(1, 0).Batch)
		qt.Assert(t, qt.ErrorMatches(err, `.*no such token: \[redacted\]`))
		got := http.Header{}
		for key, values := range s.headers[0] {
			got.Set(key, values[0])
		}
		qt.Assert(t, qt.Equals(got.Get("Authorization"), "Bearer "+token))
		qt.Assert(t, qt.Equals(got.Get("X-Tenant"), "t1"))
		qt.Assert(t, qt.StringContains(got.Get("User-Agent"), "OTel-OTLP-Exporter-finwait/v1"))
	}
	t.Run("http", func(t *testing.T) {
		s, url := serveHTTP(t, leaky)
		run(t, s, append(env, "OTEL_EXPORTER_OTLP_ENDPOINT", url)...)
		qt.Assert(t, qt.DeepEquals(s.headers[0]["Content-Type"], []string{"application/x-protobuf"}))
	})
	t.Run("grpc", func(t *testing.T) {
		s, url := serveGRPC(t, nil, leaky)
		run(t, s, append(env, "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT", url)...)
	})
	t.Run("in the URL", func(t *testing.T) {
		for _, protocol := range []string{"http://user:" + token + "@", "http://"} {
			l := newTestLogs(t, "OTEL_EXPORTER_OTLP_ENDPOINT", protocol+freeAddress(t)+"/?key="+token, "OTEL_BLRP_EXPORT_TIMEOUT", "1")
			_, err := l.Send(t.Context(), &newWorkload(1, 0).Batch)
			qt.Assert(t, qt.ErrorMatches(err, ".*connection refused.*"))
			qt.Assert(t, qt.IsFalse(strings.Contains(err.Error(), token)))
		}
	})
}

// TestTLS has both sides know each other.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	authority := newCertificate(t, dir, "ca", nil)
	forServer := newCertificate(t, dir, "server", authority)
	newCertificate(t, dir, "client", authority)
	newCertificate(t, dir, "other", nil)
	pool := x509.NewCertPool()
	pool.AddCert(authority.leaf)
	config := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{forServer.leaf.Raw}, PrivateKey: forServer.key}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pool, NextProtos: []string{"h2", "http/1.1"},
	}
	run := func(t *testing.T, s *server, url, protocol string) {
		env := func(ca, client string) []string {
			return []string{
				"OTEL_EXPORTER_OTLP_PROTOCOL", protocol, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", url, "OTEL_BLRP_EXPORT_TIMEOUT", "1",
				"OTEL_EXPORTER_OTLP_CERTIFICATE", filepath.Join(dir, ca+".pem"),
				"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", filepath.Join(dir, client+".pem"), "OTEL_EXPORTER_OTLP_CLIENT_KEY", filepath.Join(dir, client+".key"),
			}
		}
		kept, err := newTestLogs(t, env("ca", "client")...).Send(t.Context(), &newWorkload(2, 0).Batch)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(kept.Transitions, 2))
		for _, wrong := range [][]string{env("other", "client"), env("ca", "other")} {
			_, err = newTestLogs(t, wrong...).Send(t.Context(), &newWorkload(2, 0).Batch)
			qt.Assert(t, qt.IsNotNil(err))
		}
		qt.Assert(t, qt.HasLen(s.logs, 1))
	}
	t.Run("http", func(t *testing.T) {
		s := &server{replies: []reply{{}}}
		h := httptest.NewUnstartedServer(s)
		h.TLS = config
		h.Config.ErrorLog = log.New(io.Discard, "", 0)
		h.StartTLS()
		t.Cleanup(h.Close)
		run(t, s, h.URL+"/v1/logs", "http/protobuf")
	})
	t.Run("grpc", func(t *testing.T) {
		s, url := serveGRPC(t, []grpc.ServerOption{grpc.Creds(credentials.NewTLS(config))}, reply{})
		run(t, s, strings.Replace(url, "http://", "https://", 1), "grpc")
	})
}

type certificate struct {
	leaf *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newCertificate makes one for 127.0.0.1 and writes it to name.pem and name.key.
// Without an issuer it is an authority.
func newCertificate(t *testing.T, dir, name string, issuer *certificate) *certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	qt.Assert(t, qt.IsNil(err))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: issuer == nil, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, by := template, key
	if issuer != nil {
		parent, by = issuer.leaf, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	qt.Assert(t, qt.IsNil(err))
	leaf, err := x509.ParseCertificate(der)
	qt.Assert(t, qt.IsNil(err))
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	qt.Assert(t, qt.IsNil(err))
	for file, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, name+file), pem.EncodeToMemory(block), 0o600)))
	}
	return &certificate{leaf, key}
}

func TestBackoff(t *testing.T) {
	c := &client{firstWait: firstWait}
	for range 100 {
		for tries, most := range map[int]time.Duration{1: firstWait, 2: 2 * firstWait, 4: 8 * firstWait, 9: longestBackoff, 1000000: longestBackoff} {
			d := c.backoff(tries)
			qt.Assert(t, qt.IsTrue(d >= most/2 && d < most*3/2), qt.Commentf("%d: %v", tries, d))
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "x": 0, "-1": 0, "0": 0, " 7 ": 7 * time.Second, "99999999": longestWait, "99999999999999999999": 0,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0, "Fri, 02 Jan 2099 03:04:00 GMT": longestWait,
	} {
		qt.Check(t, qt.Equals(retryAfter(header, now), want), qt.Commentf("%q", header))
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("1")
	f.Add("Fri, 02 Jan 2026 03:04:35 GMT")
	f.Fuzz(func(t *testing.T, header string) {
		d := retryAfter(header, testTime)
		qt.Assert(t, qt.IsTrue(d >= 0 && d <= longestWait))
	})
}

// FuzzResponse has no answer of a server do harm.
func FuzzResponse(f *testing.F) {
	body, _ := reply{rejected: 2, message: "x"}.response().MarshalProto()
	f.Add(body, 200, "application/x-protobuf")
	f.Add([]byte("no"), 503, "text/plain; charset=utf-8")
	f.Fuzz(func(t *testing.T, content []byte, code int, contentType string) {
		h := &overHTTP{endpoint: &endpoint{headers: []attribute{{"a", "secret"}}}}
		response := &http.Response{StatusCode: code, Status: fmt.Sprint(code), Header: http.Header{"Content-Type": {contentType}}}
		a := h.answer(response, content, nil)
		qt.Assert(t, qt.Equals(a.err == nil, code/100 == 2))
		if a.err != nil {
			qt.Assert(t, qt.IsFalse(strings.Contains(a.err.Error(), "secret")))
			qt.Assert(t, qt.IsTrue(len(a.err.Error()) < 1000))
		}
		c := &client{}
		taken, _ := c.accept(a, 5)
		qt.Assert(t, qt.IsTrue(taken >= 0 && taken <= 5))
	})
}
