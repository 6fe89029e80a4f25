package otlp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
)

// maxResponse is how much of a response is read.
const maxResponse = 64 << 10

// overHTTP sends requests by OTLP/HTTP, with bodies of protobuf.
type overHTTP struct {
	signal   Signal
	endpoint *endpoint
	client   *http.Client
	header   http.Header
	zip      *gzip.Writer // nil if nothing is to be compressed
}

func newHTTP(s Signal, e *endpoint, config *tls.Config, version string) (*overHTTP, error) {
	through := http.DefaultTransport.(*http.Transport).Clone()
	through.TLSClientConfig = config
	through.MaxIdleConnsPerHost = 1
	// A redirection is an answer: our headers are not for whom it names.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	h := &overHTTP{signal: s, endpoint: e, client: &http.Client{Transport: through, CheckRedirect: stay}, header: http.Header{}}
	for _, header := range e.headers {
		h.header.Set(header.key, header.value)
	}
	if h.header.Get("User-Agent") == "" {
		h.header.Set("User-Agent", userAgent(version))
	}
	h.header.Set("Content-Type", "application/x-protobuf")
	if e.gzip {
		h.zip, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // a level that there is
		h.header.Set("Content-Encoding", "gzip")
	}
	return h, nil
}

func (h *overHTTP) close() error {
	h.client.CloseIdleConnections()
	return nil
}

func (h *overHTTP) send(ctx context.Context, body []byte) answer {
	ctx, cancel := context.WithTimeout(ctx, h.endpoint.timeout)
	defer cancel()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.endpoint.target, bytes.NewReader(body))
	if err != nil {
		return answer{err: withoutURL(err)}
	}
	request.Header = h.header.Clone()
	response, err := h.client.Do(request)
	if err != nil {
		// A connection that carries several requests at a time stays open, and may
		// be dead, which TCP finds out after a quarter of an hour.
		h.client.CloseIdleConnections()
		return answer{err: withoutURL(err), retry: true, unsure: sent.Load()}
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, maxResponse))
	return h.answer(response, content, err)
}

// encode compresses the body, if that is asked for.
func (h *overHTTP) encode(body []byte) ([]byte, error) {
	if h.zip == nil {
		return body, nil
	}
	// A buffer of its own: a request that has ended early may be read still.
	zipped := bytes.NewBuffer(make([]byte, 0, len(body)/8))
	h.zip.Reset(zipped)
	_, err := h.zip.Write(body)
	if err = errors.Join(err, h.zip.Close()); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return zipped.Bytes(), nil
}

// answer reads what has come.
func (h *overHTTP) answer(r *http.Response, content []byte, err error) answer {
	code := r.StatusCode
	switch {
	case code/100 == 2 && err != nil:
		// It is taken, but how many of it is not known.
		return answer{err: fmt.Errorf("read the response: %w", withoutURL(err)), retry: true, unsure: true}
	case code/100 == 2:
		// Whoever answers with something else has taken it too.
		rejected, message, _ := signals[h.signal].rejected(content)
		return answer{rejected: rejected, message: h.endpoint.scrub(message)}
	}
	a := answer{err: fmt.Errorf("HTTP status %s%s", h.endpoint.scrub(r.Status), h.reason(r, content))}
	switch code {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		a.retry = true
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		a.retry, a.unsure = true, true // what is behind may have it
	}
	if a.retry {
		a.after = retryAfter(r.Header.Get("Retry-After"), time.Now())
	}
	return a
}

// reason returns what the other side says, with a colon before.
func (h *overHTTP) reason(r *http.Response, content []byte) string {
	var status spb.Status
	text := ""
	switch contentType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); {
	case contentType == "application/x-protobuf" && proto.Unmarshal(content, &status) == nil:
		text = status.GetMessage()
	case contentType == "text/plain":
		text = strings.TrimSpace(string(content))
	}
	if r.StatusCode/100 == 3 {
		text = "this is another place's, and redirections are not followed; name the right one in the endpoint"
	}
	if text == "" {
		return ""
	}
	return ": " + h.endpoint.scrub(text)
}

// retryAfter returns how long the header says to wait: seconds, or a date.
func retryAfter(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	if seconds, err := strconv.ParseUint(header, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, longestWait)
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(at.Sub(now), 0), longestWait)
	}
	return 0
}

// withoutURL returns the error without the address, in which there may be a
// password or a token.
func withoutURL(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}
