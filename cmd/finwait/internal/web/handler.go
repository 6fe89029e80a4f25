package web

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// A scrape reads the kernel, so there are not many at a time, and none that
// Prometheus has long given up.
const (
	maxScrapes    = 4
	scrapeTimeout = 20 * time.Second
)

const landing = `<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>finwait</title></head>
<body>
<h1>finwait</h1>
<p>The life of every TCP socket of this host.</p>
<ul>
<li><a href="metrics">metrics</a> for Prometheus</li>
<li><a href="healthz">healthz</a>: does the agent do its work</li>
<li><a href="readyz">readyz</a>: is all counted that was there when it began</li>
</ul>
</body>
</html>
`

func newHandler(opts *Options) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(opts.Gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(opts.Log.Handler(), slog.LevelError),
		// What can be gathered is better than nothing.
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
		EnableOpenMetrics:   true,
	}))
	mux.Handle("GET /healthz", answer(opts.Alive))
	mux.Handle("GET /readyz", answer(opts.Ready))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		fmt.Fprint(w, landing)
	})
	return mux
}

// answer answers ok, or 503 and why not.
func answer(ask func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if err := ask(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	})
}
