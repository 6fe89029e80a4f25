package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"mime"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/crypto/bcrypt"
)

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) log() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func healthy() error { return nil }

// gatherer has one counter.
func gatherer() prometheus.Gatherer {
	r := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "tries_total", Help: "Tries."})
	c.Add(23)
	r.MustRegister(c)
	return r
}

// start serves until the test ends, and returns where.
func start(t testing.TB, opts Options) (s *Server, urls []string) {
	t.Helper()
	if opts.Addresses == nil {
		opts.Addresses = []string{"127.0.0.1:0"}
	}
	if opts.Gatherer == nil {
		opts.Gatherer = gatherer()
	}
	if opts.Alive == nil {
		opts.Alive = healthy
	}
	if opts.Ready == nil {
		opts.Ready = healthy
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s, err := Listen(t.Context(), opts)
	qt.Assert(t, qt.IsNil(err))
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		qt.Check(t, qt.IsNil(s.Shutdown(context.Background())))
		qt.Check(t, qt.IsNil(<-served))
	})
	for _, addr := range s.Addrs() {
		urls = append(urls, "http://"+addr.String())
	}
	return s, urls
}

// newClient returns a client that leaves no connection behind.
func newClient(t testing.TB, config *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// get returns the status and the body.
func get(t testing.TB, client *http.Client, url string, header ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	qt.Assert(t, qt.IsNil(err))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	qt.Assert(t, qt.IsNil(err))
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	qt.Assert(t, qt.IsNil(err))
	return resp.StatusCode, string(body), resp.Header
}

func TestPages(t *testing.T) {
	_, urls := start(t, Options{Addresses: []string{"127.0.0.1:0", "[::1]:0"}})
	client := newClient(t, nil)
	for _, url := range urls {
		for path, want := range map[string]string{
			"/":        `<a href="metrics">`,
			"/metrics": "tries_total 23",
			"/healthz": "ok\n",
			"/readyz":  "ok\n",
		} {
			status, body, _ := get(t, client, url+path)
			qt.Check(t, qt.Equals(status, http.StatusOK), qt.Commentf("%s", path))
			qt.Check(t, qt.StringContains(body, want), qt.Commentf("%s", path))
		}
		for _, path := range []string{"/debug/pprof/", "/metrics/x", "/x"} {
			status, _, _ := get(t, client, url+path)
			qt.Check(t, qt.Equals(status, http.StatusNotFound), qt.Commentf("%s", path))
		}
		resp, err := client.Post(url+"/metrics", "text/plain", nil)
		qt.Assert(t, qt.IsNil(err))
		resp.Body.Close()
		qt.Check(t, qt.Equals(resp.StatusCode, http.StatusMethodNotAllowed))
	}
}

func TestNegotiation(t *testing.T) {
	_, urls := start(t, Options{})
	client := newClient(t, nil)
	const protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
	for accept, want := range map[string]string{
		"application/openmetrics-text;version=1.0.0": "application/openmetrics-text",
		"text/plain;version=0.0.4":                   "text/plain",
		"":                                           "text/plain",
		protobuf + ",text/plain;version=0.0.4;q=0.5":         "application/vnd.google.protobuf",
		protobuf + ";q=0.5,application/openmetrics-text;q=1": "application/openmetrics-text",
	} {
		_, _, header := get(t, client, urls[0]+"/metrics", "Accept", accept)
		got, _, err := mime.ParseMediaType(header.Get("Content-Type"))
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(got, want), qt.Commentf("%s", accept))
	}
	_, body, header := get(t, client, urls[0]+"/metrics", "Accept-Encoding", "gzip")
	qt.Assert(t, qt.Equals(header.Get("Content-Encoding"), "gzip"))
	unzip, err := gzip.NewReader(strings.NewReader(body))
	qt.Assert(t, qt.IsNil(err))
	text, err := io.ReadAll(unzip)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.StringContains(string(text), "tries_total 23"))
}

func TestHealth(t *testing.T) {
	var (
		mu           sync.Mutex
		alive, ready error = nil, errors.New("what was there is not counted yet")
	)
	ask := func(err *error) func() error {
		return func() error { mu.Lock(); defer mu.Unlock(); return *err }
	}
	_, urls := start(t, Options{Alive: ask(&alive), Ready: ask(&ready)})
	client := newClient(t, nil)
	check := func(path string, wantStatus int, wantBody string) {
		t.Helper()
		status, body, _ := get(t, client, urls[0]+path)
		qt.Check(t, qt.Equals(status, wantStatus))
		qt.Check(t, qt.Equals(body, wantBody))
	}
	check("/healthz", http.StatusOK, "ok\n")
	check("/readyz", http.StatusServiceUnavailable, "what was there is not counted yet\n")
	mu.Lock()
	alive, ready = errors.New("nothing has been read for 1m0s"), nil
	mu.Unlock()
	check("/healthz", http.StatusServiceUnavailable, "nothing has been read for 1m0s\n")
	check("/readyz", http.StatusOK, "ok\n")
}

// brokenCollector has one metric, and cannot make the other.
type brokenCollector struct{}

var brokenDesc = prometheus.NewDesc("broken", "Broken.", nil, nil)

func (brokenCollector) Describe(ch chan<- *prometheus.Desc) { ch <- brokenDesc }
func (brokenCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(brokenDesc, errors.New("broken"))
}

// TestBrokenMetric has what can be gathered told all the same.
func TestBrokenMetric(t *testing.T) {
	r := gatherer().(*prometheus.Registry)
	r.MustRegister(brokenCollector{})
	var log logBuffer
	_, urls := start(t, Options{Gatherer: r, Log: log.log()})
	status, body, _ := get(t, newClient(t, nil), urls[0]+"/metrics")
	qt.Check(t, qt.Equals(status, http.StatusOK))
	qt.Check(t, qt.StringContains(body, "tries_total 23"))
	qt.Check(t, qt.StringContains(log.String(), "broken"))
}

// slowGatherer waits until it is let go.
type slowGatherer struct{ begun, letGo chan struct{} }

func (g *slowGatherer) gather() ([]*dto.MetricFamily, error) {
	g.begun <- struct{}{}
	<-g.letGo
	return nil, nil
}

// TestManyScrapes has no more scrapes at a time than there may be.
func TestManyScrapes(t *testing.T) {
	g := slowGatherer{begun: make(chan struct{}, 2*maxScrapes), letGo: make(chan struct{})}
	_, urls := start(t, Options{Gatherer: prometheus.GathererFunc(g.gather)})
	client := newClient(t, nil)
	statuses := make(chan int, 2*maxScrapes)
	scrape := func() {
		resp, err := client.Get(urls[0] + "/metrics")
		if err != nil {
			t.Error(err)
			statuses <- 0
			return
		}
		resp.Body.Close()
		statuses <- resp.StatusCode
	}
	for range maxScrapes {
		go scrape()
		<-g.begun
	}
	scrape()
	qt.Check(t, qt.Equals(<-statuses, http.StatusServiceUnavailable))
	status, _, _ := get(t, client, urls[0]+"/healthz")
	qt.Check(t, qt.Equals(status, http.StatusOK))
	close(g.letGo)
	for range maxScrapes {
		qt.Check(t, qt.Equals(<-statuses, http.StatusOK))
	}
}

// TestShutdown lets a scrape end that is being answered.
func TestShutdown(t *testing.T) {
	g := slowGatherer{begun: make(chan struct{}, 1), letGo: make(chan struct{})}
	s, urls := start(t, Options{Gatherer: prometheus.GathererFunc(g.gather)})
	client := newClient(t, nil)
	scraped := make(chan error, 1)
	go func() {
		resp, err := client.Get(urls[0] + "/metrics")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		scraped <- err
	}()
	<-g.begun
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(context.Background()) }()
	// When nobody listens any more, it is shutting down.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", s.Addrs()[0].String())
		if err != nil {
			break
		}
		conn.Close()
		qt.Assert(t, qt.IsTrue(time.Now().Before(deadline)))
	}
	select {
	case err := <-ended:
		t.Fatalf("it has not waited: %v", err)
	default:
	}
	close(g.letGo)
	qt.Check(t, qt.IsNil(<-scraped))
	qt.Check(t, qt.IsNil(<-ended))
}

// TestShutdownUnserved ends a server that has never served.
func TestShutdownUnserved(t *testing.T) {
	s, err := Listen(t.Context(), Options{Addresses: []string{"127.0.0.1:0"}, Log: slog.New(slog.DiscardHandler)})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(s.Shutdown(context.Background())))
	_, err = net.Dial("tcp", s.Addrs()[0].String())
	qt.Assert(t, qt.IsNotNil(err))
}

const password = "open sesame"

// writeConfig writes a web configuration with whatever of TLS and a user is asked
// for, and returns its path and what a client needs to trust the server.
func writeConfig(t testing.TB, withTLS, withUser bool) (path string, roots *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	var config strings.Builder
	if withTLS {
		roots = writeCertificate(t, dir)
		config.WriteString("tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n")
	}
	if withUser {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		qt.Assert(t, qt.IsNil(err))
		fmt.Fprintf(&config, "basic_auth_users:\n  prometheus: %s\n", hash)
	}
	path = filepath.Join(dir, "web.yml")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(config.String()), 0o600)))
	return path, roots
}

func writeCertificate(t testing.TB, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	qt.Assert(t, qt.IsNil(err))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:        true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	qt.Assert(t, qt.IsNil(err))
	private, err := x509.MarshalPKCS8PrivateKey(key)
	qt.Assert(t, qt.IsNil(err))
	for name, block := range map[string]*pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: der},
		"server.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600)))
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return roots
}

// TestTLSAndUsers has two addresses that only who knows the password gets in by.
func TestTLSAndUsers(t *testing.T) {
	path, roots := writeConfig(t, true, true)
	_, urls := start(t, Options{Addresses: []string{"127.0.0.1:0", "127.0.0.1:0"}, ConfigFile: path})
	client := newClient(t, &tls.Config{RootCAs: roots})
	for _, url := range urls {
		// Who speaks no TLS is told so, and nothing else.
		status, _, _ := get(t, newClient(t, nil), url+"/metrics")
		qt.Check(t, qt.Equals(status, http.StatusBadRequest))
		url = strings.Replace(url, "http:", "https:", 1)
		for _, path := range []string{"/", "/metrics", "/healthz", "/readyz"} {
			status, body, _ := get(t, client, url+path)
			qt.Check(t, qt.Equals(status, http.StatusUnauthorized))
			qt.Check(t, qt.Equals(body, "Unauthorized\n"))
			for user, want := range map[string]int{
				"prometheus:" + password: http.StatusOK, "prometheus:guess": http.StatusUnauthorized, "other:" + password: http.StatusUnauthorized,
			} {
				status, _, _ = get(t, client, strings.Replace(url, "https://", "https://"+strings.ReplaceAll(user, " ", "%20")+"@", 1)+path)
				qt.Check(t, qt.Equals(status, want), qt.Commentf("%s as %s", path, user))
			}
		}
	}
	_, err := newClient(t, nil).Get(strings.Replace(urls[0], "http:", "https:", 1)) // which trusts others
	qt.Check(t, qt.ErrorMatches(err, ".*certificate signed by unknown authority.*"))
}

func TestBadConfig(t *testing.T) {
	dir := t.TempDir()
	for name, config := range map[string]string{
		"unknown key":  "tls_config: {}\n",
		"no YAML":      "\t\x00",
		"no key file":  "tls_server_config:\n  cert_file: absent.crt\n  key_file: absent.key\n",
		"no hash":      "basic_auth_users:\n  prometheus: open sesame\n",
		"no such file": "",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name+".yml")
			if config != "" {
				qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(config), 0o600)))
			}
			_, err := Listen(t.Context(), Options{Addresses: []string{"127.0.0.1:0"}, ConfigFile: path})
			qt.Assert(t, qt.ErrorMatches(err, "(?s)web configuration .*"+name+`\.yml.*`))
			qt.Assert(t, qt.IsNotNil(CheckConfig(path)))
		})
	}
}

func TestBadAddresses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer taken.Close()
	for _, tt := range []struct {
		addresses []string
		want      string
	}{
		{nil, "listen: no address"},
		{[]string{"127.0.0.1"}, `"127\.0\.0\.1" is no address to listen on: .*missing port.*`},
		{[]string{"127.0.0.1:"}, `"127\.0\.0\.1:" is no address to listen on: "" is no port .*`},
		{[]string{"127.0.0.1:99999"}, `.*"99999" is no port.*`},
		{[]string{"127.0.0.1:9", "127.0.0.1:9"}, `"127\.0\.0\.1:9" is given twice to listen on`},
		{[]string{"127.0.0.1:0", taken.Addr().String()}, `listen on ".*": .*address already in use`},
	} {
		_, err := Listen(t.Context(), Options{Addresses: tt.addresses, Log: slog.New(slog.DiscardHandler)})
		qt.Check(t, qt.ErrorMatches(err, tt.want))
	}
}

// TestWarning has it said if everybody may read, and not otherwise.
func TestWarning(t *testing.T) {
	for _, tt := range []struct {
		address           string
		withTLS, withUser bool
		want              string // that is lacking
	}{
		{"127.0.0.1:0", false, false, ""},
		{"[::1]:0", false, false, ""},
		{":0", false, false, `"[TLS authentication]"`},
		{"0.0.0.0:0", true, false, "[authentication]"},
		{"0.0.0.0:0", false, true, "[TLS]"},
		{"0.0.0.0:0", true, true, ""},
	} {
		var log logBuffer
		path := ""
		if tt.withTLS || tt.withUser {
			path, _ = writeConfig(t, tt.withTLS, tt.withUser)
		}
		s, err := Listen(t.Context(), Options{Addresses: []string{tt.address}, ConfigFile: path, Log: log.log()})
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.IsNil(s.Shutdown(context.Background())))
		qt.Check(t, qt.StringContains(log.String(), "listening"))
		qt.Check(t, qt.Equals(strings.Contains(log.String(), "level=WARN"), tt.want != ""), qt.Commentf("%+v: %s", tt, log.String()))
		qt.Check(t, qt.StringContains(log.String(), tt.want))
	}
}

// FuzzConfig has any web configuration be refused or taken, and never be fatal.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("basic_auth_users:\n  prometheus: $2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n"))
	f.Add([]byte("tls_server_config:\n  client_auth_type: RequireAndVerifyClientCert\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, config []byte) {
		path := filepath.Join(t.TempDir(), "web.yml")
		qt.Assert(t, qt.IsNil(os.WriteFile(path, config, 0o600)))
		lacking, err := readConfig(path)
		qt.Check(t, qt.IsTrue(err == nil || lacking == nil))
	})
}
