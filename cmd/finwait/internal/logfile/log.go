// Package logfile keeps records as JSON lines in a file, which it rotates if it
// is told to, or on standard output.
//
// No file has half a line in it for longer than it takes to notice. A write that
// ends in the middle of a line, because the disk is full, is cut back to the last
// whole line at once; one that ends so because the process is killed is cut back
// when the file is opened the next time. Records whose lines are whole count as
// kept, the others as lost. Kept means that the kernel has taken them: Options.Sync
// says when they outlive a power cut.
//
// Before each write the log looks whether its file still is where it was. So a
// file that was moved away, by logrotate or by hand, or removed, is noticed without
// a signal, by the next record; Reopen has that done when there is none. A
// file that was cut (logrotate's copytruncate) is written on from its new end.
//
// What fails is tried again: writing at each Send, opening once a second at most.
package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/cmd/finwait/internal/sink"
)

// retryInterval is how long to wait before opening or rotating is tried again.
const retryInterval = time.Second

// pieceSize is about how many bytes are written at once.
const pieceSize = 64 << 10

// Log is a sink of JSON lines. Reopen and Stats may be called from any goroutine,
// the other methods as those of a sink.
type Log struct {
	opts     Options
	path     string
	counters counters
	archive  *archive
	again    atomic.Bool   // Reopen was called
	wake     chan struct{} // has an element when tend must think again
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu          sync.Mutex // guards what follows; held while records are written
	transitions output.Encoder
	conns       output.ConnEncoder
	buf         []byte

	file   *os.File // nil if it could not be opened
	info   fs.FileInfo
	stream bool  // file is no regular file: it is neither rotated nor synced
	stdout bool  // file is standard output: it is neither opened nor closed
	size   int64 // as far as is known
	dir    fs.FileInfo

	started  time.Time // of the first record in the file; zero if there is none
	tooBig   bool      // the file cannot grow any more
	loaded   bool      // archive knows the rotated files
	first    []byte    // what must be written before the next record, to end a line
	dirtyAt  time.Time // of the first record that was not synced; zero if there is none
	retry    time.Time // when opening may be tried again
	failure  error     // why it did not work
	rotateAt time.Time // when rotating may be tried again
	stuck    error     // why it did not work
}

var _ sink.Sink = (*Log)(nil)

// Open returns a log. If its file cannot be opened by a mistake of the user, or
// because another process writes it, that is an error. If it is for something
// that passes, such as a disk that is full, the log tries again when there are
// records.
func Open(opts Options) (*Log, error) {
	opts, err := opts.validate()
	if err != nil {
		return nil, err
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	l := &Log{opts: opts, wake: make(chan struct{}, 1), stop: func() {}}
	if l.transitions, err = output.New("json", opts.Output); err != nil {
		return nil, err
	}
	if l.conns, err = output.NewConns("json", opts.Output); err != nil {
		return nil, err
	}
	open := l.openPath
	if opts.Path == "-" || opts.Path == "/dev/stdout" {
		open = l.openStdout
	}
	if err := open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Log) openStdout() error {
	l.archive = newArchive("-", &l.opts, &l.counters)
	l.file, l.stream, l.stdout = os.Stdout, true, true
	info, err := l.file.Stat()
	l.info = info
	return err
}

func (l *Log) openPath() error {
	path, err := resolve(l.opts.Path)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	l.path = path
	l.archive = newArchive(path, &l.opts, &l.counters)
	if l.dir, err = os.Stat(l.archive.dir); err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	switch err := l.open(); {
	case err == nil:
	case !isPassing(err):
		return err
	default:
		l.opts.Log.Warn("the log cannot be opened, until it works records are lost", "error", err)
	}
	var ctx context.Context
	ctx, l.stop = context.WithCancel(context.Background())
	l.running.Go(func() { l.archive.run(ctx) })
	l.running.Go(func() { l.run(ctx) })
	return nil
}

// Send writes the records as lines. How long a file makes it wait is the kernel's
// choice, and not bounded by ctx.
func (l *Log) Send(ctx context.Context, b *sink.Batch) (sink.Counts, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept, total := 0, len(b.Transitions)+len(b.Conns)
	for kept < total {
		if err := ctx.Err(); err != nil {
			return prefix(b, kept), err
		}
		l.encode(b, kept)
		written, err := l.write(ctx)
		kept += bytes.Count(l.buf[:written], newline)
		if err != nil {
			return prefix(b, kept), err
		}
	}
	return b.Counts(), nil
}

var newline = []byte{'\n'}

// prefix returns what the first n records of b are, transitions before
// connections.
func prefix(b *sink.Batch, n int) sink.Counts {
	transitions := min(n, len(b.Transitions))
	return sink.Counts{Transitions: uint64(transitions), Conns: uint64(n - transitions)}
}

// encode fills buf with records of b, from that one on.
func (l *Log) encode(b *sink.Batch, from int) {
	l.buf = l.buf[:0]
	for i := from; i < len(b.Transitions) && len(l.buf) < pieceSize; i++ {
		l.buf = l.transitions.AppendEvent(l.buf, &b.Transitions[i])
	}
	for i := max(from-len(b.Transitions), 0); i < len(b.Conns) && len(l.buf) < pieceSize; i++ {
		l.buf = l.conns.AppendConn(l.buf, &b.Conns[i])
	}
}

// write writes buf, and returns how many bytes of it are there as whole lines.
func (l *Log) write(ctx context.Context) (written int, err error) {
	for written < len(l.buf) && err == nil {
		var n int
		if n, err = l.prepare(l.buf[written:]); err != nil {
			break
		}
		p := l.buf[written : written+n]
		if l.stream {
			n, err = l.putStream(ctx, p)
		} else {
			n, err = l.putFile(p)
		}
		written += n
	}
	return written, err
}

// Reopen has the file opened anew if another one, or none, is where it was. It
// does not wait for that.
func (l *Log) Reopen() {
	l.again.Store(true)
	l.notify()
}

func (l *Log) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Close ends what goes on in the background, and closes the file. A file that is
// being compressed stays as it was, for the next process.
func (l *Log) Close() error {
	l.stop()
	l.running.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil || l.stdout {
		return nil
	}
	l.finish()
	var err error
	if !l.stream && l.opts.Sync != SyncNever {
		err = l.file.Sync()
	}
	err = errors.Join(err, l.file.Close())
	if err != nil {
		l.counters.syncFailures.Add(1)
	}
	l.file = nil
	return err
}

// run does what is due when no record comes, until ctx is done.
func (l *Log) run(ctx context.Context) {
	for {
		var due <-chan time.Time
		if next := l.tend(); !next.IsZero() {
			due = time.After(time.Until(next))
		}
		select {
		case <-l.wake:
		case <-due:
		case <-ctx.Done():
			return
		}
	}
}

// tend does what is due, and returns when to do so again, zero if nothing will be
// due until there are records.
func (l *Log) tend() (next time.Time) {
	file := l.tendFile()
	if file != nil {
		if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
			l.archive.syncFailed(err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil || l.stream {
		return time.Time{}
	}
	if l.opts.MaxAge > 0 && !l.started.IsZero() {
		next = later(l.started.Add(l.opts.MaxAge), l.rotateAt)
	}
	if l.opts.Sync > 0 && !l.dirtyAt.IsZero() {
		next = sooner(next, l.dirtyAt.Add(time.Duration(l.opts.Sync)))
	}
	return next
}

// tendFile opens or rotates the file if that is due. It returns the file if it
// is to be synced, for which nobody else has to wait.
func (l *Log) tendFile() (sync *os.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.again.Load() {
		_ = l.look() // the next Send has the same error
	}
	if l.file == nil || l.stream {
		return nil
	}
	if l.due() && l.look() == nil && l.due() {
		_ = l.rotate()
	}
	if l.opts.Sync <= 0 || l.dirtyAt.IsZero() || time.Since(l.dirtyAt) < time.Duration(l.opts.Sync) {
		return nil
	}
	l.dirtyAt = time.Time{}
	return l.file
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sooner returns the earlier of two times, of which a may be none.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
