package otlp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
)

// transport carries requests.
type transport interface {
	// encode returns the body as send wants it.
	encode(body []byte) ([]byte, error)
	// send sends one request, once.
	send(ctx context.Context, body []byte) answer
	close() error
}

// answer is what became of a request.
type answer struct {
	// err is nil if the request was taken, but for those that are rejected.
	err      error
	rejected int64
	message  string // why, in the other side's words
	// retry says that the same request may be taken later, and after how long
	// to wait until then if the other side has said so.
	retry bool
	after time.Duration
	// unsure says that the request may have been taken, and no answer has come.
	unsure bool
}

func newTransport(s Signal, e *endpoint, version string) (transport, error) {
	config, err := e.tls()
	if err != nil {
		return nil, err
	}
	if e.protocol == protocolGRPC {
		return newGRPC(s, e, config, version)
	}
	return newHTTP(s, e, config, version)
}

// tls returns the configuration of a secure connection, nil if it is not.
func (e *endpoint) tls() (*tls.Config, error) {
	if !e.secure {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.authorities.value != "" {
		pem, err := os.ReadFile(e.authorities.value)
		if err != nil {
			return nil, e.authorities.unreadable(err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &EnvError{e.authorities.variable, fmt.Sprintf("is %q, a file without a certificate in PEM", e.authorities.value)}
		}
	}
	if e.certificate.value != "" {
		pair, err := tls.LoadX509KeyPair(e.certificate.value, e.key.value)
		if err != nil {
			return nil, e.certificate.unreadable(fmt.Errorf("%w (%s is %q)", err, e.key.variable, e.key.value))
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

func (s setting) unreadable(err error) error {
	return &EnvError{s.variable, fmt.Sprintf("is %q, which cannot be used: %v", s.value, err)}
}

// userAgent is how OTLP has exporters name themselves.
func userAgent(version string) string {
	return strings.TrimSuffix("OTel-OTLP-Exporter-finwait/"+version, "/")
}

// scrub takes from a text of the other side what it may have from our headers,
// and what is more than a line of a log.
func (e *endpoint) scrub(text string) string {
	const most = 300
	for _, h := range e.headers {
		secret := h.value
		if scheme, token, found := strings.Cut(secret, " "); found && scheme != "" {
			secret = token // Bearer and such
		}
		if len(secret) >= 4 {
			text = strings.ReplaceAll(text, secret, "[redacted]")
		}
	}
	if len(text) > most {
		text = text[:most] + "..."
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

func rejectedLogs(response []byte) (int64, string, error) {
	r := plogotlp.NewExportResponse()
	if err := r.UnmarshalProto(response); err != nil {
		return 0, "", err
	}
	return r.PartialSuccess().RejectedLogRecords(), r.PartialSuccess().ErrorMessage(), nil
}

func rejectedMetrics(response []byte) (int64, string, error) {
	r := pmetricotlp.NewExportResponse()
	if err := r.UnmarshalProto(response); err != nil {
		return 0, "", err
	}
	return r.PartialSuccess().RejectedDataPoints(), r.PartialSuccess().ErrorMessage(), nil
}
