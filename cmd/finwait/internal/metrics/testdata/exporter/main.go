// Command exporter serves the metrics of a tracer, and does nothing else: the tests
// in test/ hold them to the kernel. Its arguments are the address, the evidence (""
// for the best) and the service ports.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"github.com/finwait/finwait/cmd/finwait/internal/metrics"
	"github.com/finwait/finwait/cmd/finwait/internal/web"
	"github.com/finwait/finwait/tracer"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// source has what it reads in events of the tracer for endings.
type source struct {
	*tracer.Tracer

	mu      sync.Mutex // guards endings
	endings tracer.Endings
}

func (s *source) Endings() (tracer.Endings, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endings, nil
}

func (s *source) read() error {
	for ev, err := range s.Events(context.Background()) {
		if err != nil {
			return err
		}
		if ev.New == tracer.StateClose {
			s.mu.Lock()
			s.endings.Add(tracer.Ending{Old: ev.Old, Reason: ev.Reason, Side: ev.Side}, 1)
			s.mu.Unlock()
		}
	}
	return nil
}

func run(ctx context.Context, address, evidence string, portWords []string) error {
	var ports []uint16
	for _, word := range portWords {
		port, err := strconv.ParseUint(word, 10, 16)
		if err != nil {
			return err
		}
		ports = append(ports, uint16(port))
	}
	opts := &tracer.Options{Profile: metrics.ProfileOptions(ports)}
	for _, e := range []tracer.Evidence{tracer.EvidenceProbe, tracer.EvidenceTimer} {
		if evidence == e.String() {
			opts.Evidence = e
		}
	}
	t, err := tracer.New(opts)
	if err != nil {
		return err
	}
	defer t.Close()
	s := &source{Tracer: t}
	read := make(chan error, 1)
	go func() { read <- s.read() }()
	if _, err := t.Gauges(ctx); err != nil {
		return err
	}

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	collector := metrics.New(s, metrics.Options{ServicePorts: ports, ByCgroup: true, Log: log})
	healthy := func() error { return nil }
	server, err := web.Listen(ctx, web.Options{
		Addresses: []string{address}, Gatherer: metrics.NewRegistry(collector), Alive: healthy, Ready: healthy, Log: log,
	})
	if err != nil {
		return err
	}
	fmt.Println(server.Addrs()[0])
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	<-ctx.Done()
	err = errors.Join(server.Shutdown(context.Background()), <-served)
	return errors.Join(err, t.Detach(), <-read)
}
