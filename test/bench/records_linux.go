package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// recordsReport is what a record takes as a line of JSON, by finwait's commands
// on connections that differ as those of a server do.
type recordsReport struct {
	header
	Connections int            `json:"connections"`
	Records     []recordReport `json:"records"`
	// Series is how many series an agent has for Prometheus when it starts, and
	// MostSeries when there has been something of everything, with breakdowns.
	Series     int `json:"series_at_start"`
	MostSeries int `json:"series_with_breakdowns"`
}

type recordReport struct {
	Record string `json:"record"`
	// PerEnd is how many there are for each end of a connection: a host has one
	// end of most of its connections.
	PerEnd float64 `json:"per_end"`
	// Bytes are of one record, a line with its end.
	Bytes     float64 `json:"bytes"`
	GzipBytes float64 `json:"gzip_bytes"`
	ZstdBytes float64 `json:"zstd_bytes"`
	// ZstdNanoseconds are of CPU, to compress one record.
	ZstdNanoseconds float64 `json:"zstd_ns"`
}

// timeWait is how long TIME_WAIT lasts.
const timeWait = 60 * time.Second

// runRecords measures both kinds of records.
func runRecords(ctx context.Context, finwait string, connections int, metrics, scratch string) (*recordsReport, error) {
	r := &recordsReport{header: newHeader(1), Connections: connections}
	if err := r.readSeries(metrics); err != nil {
		return nil, err
	}
	for _, kind := range []struct{ record, command string }{{"transition", "trace"}, {"connection", "conns"}} {
		one, err := measureRecords(ctx, finwait, kind.command, connections, scratch)
		if err != nil {
			return nil, fmt.Errorf("finwait %s: %w", kind.command, err)
		}
		one.Record = kind.record
		r.Records = append(r.Records, one)
	}
	return r, nil
}

// readSeries counts the series in what the tests of the metrics have an agent tell.
func (r *recordsReport) readSeries(folder string) error {
	for _, of := range []struct {
		file string
		n    *int
	}{{"fresh.golden", &r.Series}, {"full.golden", &r.MostSeries}} {
		text, err := os.ReadFile(filepath.Join(folder, of.file))
		if err != nil {
			return fmt.Errorf("what an agent tells Prometheus: %w", err)
		}
		*of.n = countSeries(text)
	}
	return nil
}

// countSeries returns how many series a text has that Prometheus reads.
func countSeries(text []byte) (n int) {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			n++
		}
	}
	return n
}

// measureRecords has one command print the connections that it sees.
func measureRecords(ctx context.Context, finwait, command string, connections int, scratch string) (r recordReport, err error) {
	space, begin, done := make(chan string, 1), make(chan struct{}), make(chan error, 1)
	over := make(chan struct{})
	defer close(over)
	go func() {
		// The namespace ends with the thread, and what is in TIME_WAIT with it;
		// and its number may then be another's.
		runtime.LockOSThread()
		done <- mix(connections, space, begin)
		<-over
	}()
	var inode string
	select {
	case inode = <-space:
	case err := <-done:
		return r, err
	}
	t := &tool{name: command, args: []string{finwait, command, "--format", "json", "--buffer", "64", "--netns", inode}, account: ledger}
	running, err := t.start(scratch)
	if err != nil {
		return r, err
	}
	close(begin)
	err = <-done
	if err == nil {
		select {
		case <-time.After(timeWait + 2*time.Second): // the last of them end
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	running.drain()
	if err := errors.Join(err, running.end()); err != nil {
		return r, err
	}
	printed, lost, err := ledger("", running.stderr.String())
	if err != nil || lost > 0 {
		return r, fmt.Errorf("%d lost: %w", lost, err)
	}
	text, err := os.ReadFile(running.stdout)
	if err != nil {
		return r, err
	}
	r.PerEnd = float64(printed) / float64(2*connections)
	return r, r.measure(text, float64(printed))
}

// measure compresses the lines as a whole, which is what a log's files are.
func (r *recordReport) measure(text []byte, records float64) error {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if err := compressInto(z, text); err != nil {
		return err
	}
	r.Bytes, r.GzipBytes = float64(len(text))/records, float64(packed.Len())/records

	packed.Reset()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	encoder, err := zstd.NewWriter(&packed, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	before := threadTime()
	if err := compressInto(encoder, text); err != nil {
		return err
	}
	r.ZstdBytes, r.ZstdNanoseconds = float64(packed.Len())/records, float64(threadTime()-before)/records
	return nil
}

func compressInto(w io.WriteCloser, text []byte) error {
	_, err := w.Write(text)
	return errors.Join(err, w.Close())
}

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	var usage unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

const (
	mixBatch   = 500  // connections that are open at once
	mixClients = 5000 // addresses that they come from
	mixPort    = 8443
)

// mix makes connections in a namespace of its own when it is told to begin: from
// many addresses, of different lengths, with different ends.
func mix(connections int, space chan<- string, begin <-chan struct{}) error {
	if err := netns.Unshare(); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo").CombinedOutput(); err != nil {
		return fmt.Errorf("make 10.0.0.0/8 local: %w: %s", err, out)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return err
	}
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(listener)
	server := &unix.SockaddrInet4{Port: mixPort, Addr: [4]byte{10, 0, 0, 1}}
	if err := errors.Join(unix.Bind(listener, server), unix.Listen(listener, mixBatch)); err != nil {
		return err
	}
	space <- strconv.FormatUint(st.Ino, 10)
	<-begin
	random := rand.New(rand.NewPCG(1, 2))
	for left := connections; left > 0; left -= mixBatch {
		if err := mixOnce(random, listener, server, min(left, mixBatch)); err != nil {
			return err
		}
	}
	return nil
}

// mixOnce opens connections, uses them for a while and ends them.
func mixOnce(random *rand.Rand, listener int, server *unix.SockaddrInet4, n int) error {
	type pair struct{ client, server int }
	var pairs []pair
	for range n {
		who := random.IntN(mixClients)
		from := &unix.SockaddrInet4{Addr: [4]byte{10, 1, byte(who >> 8), byte(who)}}
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Bind(client, from), unix.Connect(client, server)); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		accepted, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		pairs = append(pairs, pair{client, accepted})
	}
	buf := make([]byte, 8192)
	var failed []error
	for _, p := range pairs {
		for range 1 + random.IntN(4) {
			failed = append(failed, say(p.client, p.server, buf[:100+random.IntN(800)]), say(p.server, p.client, buf[:200+random.IntN(7000)]))
		}
	}
	random.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	for i, p := range pairs {
		if i%50 == 0 {
			time.Sleep(time.Duration(1+random.IntN(20)) * time.Millisecond)
		}
		failed = append(failed, endMixed(random.IntN(100), p.client, p.server))
	}
	return errors.Join(failed...)
}

// endMixed ends a connection: mostly the client closes first, less often the
// server, and some are reset.
func endMixed(dice, client, server int) error {
	switch {
	case dice < 60:
		return closeBoth(client, server)
	case dice < 85:
		return closeBoth(server, client)
	case dice < 95:
		return halfClose(client, server)
	default:
		return reset(client, server)
	}
}

// say sends a message and has all of it read.
func say(from, to int, message []byte) error {
	if _, err := unix.Write(from, message); err != nil {
		return err
	}
	for left := len(message); left > 0; {
		n, err := unix.Read(to, message[:left])
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}

func (r *recordsReport) headline() string {
	return fmt.Sprintf("Linux %s, %d CPUs; %d connections, both ends of each", r.Kernel, r.CPUs, r.Connections)
}

func (r *recordsReport) sections() []section {
	rows := [][]string{{"record", "for each end of a connection", "bytes", "gzip", "zstd", "CPU ns to compress (zstd)"}}
	for _, one := range r.Records {
		rows = append(rows, []string{
			one.Record, fmt.Sprintf("%.2f", one.PerEnd), fmt.Sprintf("%.0f", one.Bytes),
			fmt.Sprintf("%.0f", one.GzipBytes), fmt.Sprintf("%.0f", one.ZstdBytes), fmt.Sprintf("%.0f", one.ZstdNanoseconds),
		})
	}
	return []section{{"What a record takes as JSON", rows}}
}

// of returns the measurements of one kind of record.
func (r *recordsReport) of(record string) (recordReport, error) {
	for _, one := range r.Records {
		if one.Record == record {
			return one, nil
		}
	}
	return recordReport{}, fmt.Errorf("no record %q was measured", record)
}
