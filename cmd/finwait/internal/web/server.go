// Package web is the agent's HTTP server: its metrics, whether it lives and
// whether it is ready.
package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	toolkit "github.com/prometheus/exporter-toolkit/web"
	"golang.org/x/net/netutil"
)

// Options are those of a Server.
type Options struct {
	// Addresses are where to listen, each HOST:PORT. A host that is empty is all
	// addresses of this one.
	Addresses []string
	// ConfigFile is a web configuration file of the Prometheus exporter toolkit,
	// which has TLS and the users with their passwords; "" for neither. It is
	// read again at each request, and must stay readable.
	ConfigFile string
	// Gatherer has the metrics.
	Gatherer prometheus.Gatherer
	// Alive returns why the agent does not do its work, nil if it does.
	Alive func() error
	// Ready returns why the metrics are not all there yet, nil if they are.
	Ready func() error
	// Log is told of addresses, and of what goes wrong with requests.
	Log *slog.Logger
}

// How long clients may take, so that none that is slow, or means harm, is waited
// for. Prometheus comes back on the same connection every minute or so.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = 3 * time.Minute
	maxHeader     = 16 << 10
	maxConns      = 64 // on each address
)

// Server answers on some addresses. Its methods may be called from several
// goroutines.
type Server struct {
	opts      Options
	listeners []net.Listener
	servers   []*http.Server // of each listener
}

// Listen reads the configuration and takes the addresses. The requests that come
// are answered when Serve is called.
func Listen(ctx context.Context, opts Options) (*Server, error) {
	if len(opts.Addresses) == 0 {
		return nil, errors.New("listen: no address")
	}
	if err := CheckAddresses(opts.Addresses); err != nil {
		return nil, err
	}
	lacking, err := readConfig(opts.ConfigFile)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: opts}
	for _, address := range opts.Addresses {
		l, err := listen(ctx, address)
		if err != nil {
			return nil, errors.Join(err, s.closeListeners())
		}
		s.listeners = append(s.listeners, l)
		s.servers = append(s.servers, s.newServer())
		opts.Log.Info("listening", "address", l.Addr().String())
		if len(lacking) > 0 && !isLoopback(l.Addr()) {
			opts.Log.Warn("whoever reaches this address reads the metrics; --web-config can have what lacks", "address", l.Addr().String(), "lacking", lacking)
		}
	}
	return s, nil
}

// listen takes an address. Go would make the socket one of MPTCP, which counts as
// several.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", address, err)
	}
	return netutil.LimitListener(l, maxConns), nil
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// newServer returns the server of one listener. The toolkit changes the server that
// it is given, so no two listeners can have the same.
func (s *Server) newServer() *http.Server {
	return &http.Server{
		Handler:           newHandler(&s.opts),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug),
	}
}

// Addrs returns the addresses that were taken.
func (s *Server) Addrs() (addrs []net.Addr) {
	for _, l := range s.listeners {
		addrs = append(addrs, l.Addr())
	}
	return addrs
}

// Serve answers requests until Shutdown is called, or one of the addresses fails.
func (s *Server) Serve() error {
	errs := make([]error, len(s.servers))
	var serving sync.WaitGroup
	for i, server := range s.servers {
		serving.Go(func() {
			flags := &toolkit.FlagConfig{WebConfigFile: &s.opts.ConfigFile}
			err := toolkit.Serve(s.listeners[i], server, flags, slog.New(warnings{s.opts.Log.Handler()}))
			if errors.Is(err, http.ErrServerClosed) {
				return
			}
			errs[i] = fmt.Errorf("serve on %v: %w", s.listeners[i].Addr(), err)
			for _, other := range s.servers {
				_ = other.Close() // err says why
			}
		})
	}
	serving.Wait()
	return errors.Join(errs...)
}

// Shutdown lets the requests end that are being answered, until ctx is done, and
// has Serve return.
func (s *Server) Shutdown(ctx context.Context) error {
	errs := make([]error, len(s.servers))
	var ending sync.WaitGroup
	for i, server := range s.servers {
		ending.Go(func() { errs[i] = server.Shutdown(ctx) })
	}
	ending.Wait()
	_ = s.closeListeners() // they are, if Serve was called
	return errors.Join(errs...)
}

func (s *Server) closeListeners() error {
	errs := make([]error, 0, len(s.listeners))
	for _, l := range s.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// warnings is a handler of what is worse than information: the toolkit tells of each
// address, as we do.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && w.Handler.Enabled(ctx, level)
}

// DefaultAddress is where the agent listens if nothing else is asked for.
const DefaultAddress = "127.0.0.1:9987"

// CheckAddresses returns what is wrong with addresses to listen on.
func CheckAddresses(addresses []string) error {
	for i, address := range addresses {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return fmt.Errorf("%q is no address to listen on: %w (want HOST:PORT, such as %s)", address, err, DefaultAddress)
		}
		if n, err := net.LookupPort("tcp", port); err != nil || port == "" {
			return fmt.Errorf("%q is no address to listen on: %q is no port (want HOST:PORT, such as %s)", address, port, DefaultAddress)
		} else if n != 0 && slices.Contains(addresses[:i], address) {
			return fmt.Errorf("%q is given twice to listen on", address)
		}
	}
	return nil
}
