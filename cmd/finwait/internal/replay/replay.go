// Package replay reads back the JSON lines that package output writes:
// transitions and connections, mixed as they may be, from files that may be
// compressed.
//
// What it reads may have been damaged, cut off or made up by somebody. A line
// that is not a record is reported and skipped; memory does not grow with the
// length of a line, of a file, or of what comes out of a compressed one.
package replay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

// MaxLine is the length of the longest line that is read, with its end. Those
// that finwait writes are shorter by far.
const MaxLine = 1 << 20

// Record is one line of a log. It is either a transition or a connection.
type Record struct {
	Event *tracer.Event // nil if it is a connection
	Conn  *tracer.Conn  // nil if it is a transition
	// Logged is what else the line says.
	output.Logged
}

// Options say how to read.
type Options struct {
	// Stdin is what the file named - stands for.
	Stdin io.Reader
	// Idle is called before a read that may wait, and may return an error to end
	// the reading. nil is for nothing to do.
	Idle func() error
	// Complain is told of everything that could not be read: a LineError or a
	// FileError, valid until it returns.
	Complain func(error)
}

// Counts are what was read.
type Counts struct {
	Transitions, Conns uint64
	// Damaged is the number of lines that are no records.
	Damaged uint64
	// Broken is the number of files of which something could not be read, and
	// Unread the number of those of which nothing could be, for they did not open
	// or the system refused to read on.
	Broken, Unread uint64
}

// Records returns the number of records of both kinds.
func (c Counts) Records() uint64 { return c.Transitions + c.Conns }

// Err returns an error if so much went wrong that the reading failed: a file
// that could not be read, or none of what was read was a record.
func (c Counts) Err() error {
	switch {
	case c.Unread > 0:
		return errors.New("not every file could be read")
	case c.Records() == 0 && c.Damaged+c.Broken > 0:
		return errors.New("nothing that was read is a record of finwait (they are written by --format json)")
	}
	return nil
}

// A LineError is a line that is not a record.
type LineError struct {
	File string
	Line uint64 // the first is 1
	Err  error
	Text []byte // what the line begins with
}

// Error implements error.
func (e *LineError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }

// Unwrap returns what is wrong with the line.
func (e *LineError) Unwrap() error { return e.Err }

// A FileError is a file that could not be read to its end.
type FileError struct {
	File  string
	Lines uint64 // that were read
	Err   error
}

// Error implements error.
func (e *FileError) Error() string {
	if e.Lines == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s: after line %d: %v", e.File, e.Lines, e.Err)
}

// Unwrap returns why it could not.
func (e *FileError) Unwrap() error { return e.Err }

// A Reader reads records.
type Reader struct {
	files   []string
	opts    Options
	counts  Counts
	decoder decoder
	lines   *bufio.Reader

	file string // that is read
	line uint64 // that was read last
}

// New returns a reader of these files, one after the other.
func New(files []string, opts Options) *Reader {
	if opts.Idle == nil {
		opts.Idle = func() error { return nil }
	}
	if opts.Complain == nil {
		opts.Complain = func(error) {}
	}
	return &Reader{files: files, opts: opts, lines: bufio.NewReaderSize(nil, MaxLine)}
}

// Counts returns what was read so far.
func (r *Reader) Counts() Counts { return r.counts }

// Records yields the records, until ctx is done. Each is valid until the next.
// An error is that of Options.Idle, and the last.
func (r *Reader) Records(ctx context.Context) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		for _, name := range r.files {
			more, err := r.readFile(ctx, name, yield)
			if err != nil {
				yield(nil, err)
				return
			}
			if !more || ctx.Err() != nil {
				return
			}
		}
	}
}

// readFile yields what is in one file. more is false if no more is wanted.
func (r *Reader) readFile(ctx context.Context, name string, yield func(*Record, error) bool) (more bool, err error) {
	r.file, r.line = name, 0
	file, err := r.open(name)
	if err != nil {
		r.fail(true, err)
		return true, nil
	}
	defer func() { _ = file.Close() }() // it was only read
	in := &patientReader{ctx: ctx, r: file, idle: r.opts.Idle}
	text, done, err := decompress(in)
	if err == nil {
		defer done()
		r.lines.Reset(text)
		more, err = r.readLines(in, yield)
	}
	if err == nil {
		return more, nil
	}
	if in.halted() {
		return false, in.stopped
	}
	r.fail(in.failed, err)
	return true, nil
}

// open opens the file, or what stands for it.
func (r *Reader) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		r.file = "standard input"
		return io.NopCloser(r.opts.Stdin), nil
	}
	return os.Open(name)
}

// fail notes that the file cannot be read any further. unread says that this is
// not for what is in it.
func (r *Reader) fail(unread bool, err error) {
	r.counts.Broken++
	if unread {
		r.counts.Unread++
	}
	var pathError *os.PathError
	switch {
	case errors.As(err, &pathError): // it says the name once more
		err = pathError.Err
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("the compressed data is cut off")
	}
	r.opts.Complain(&FileError{File: r.file, Lines: r.line, Err: err})
}

// readLines yields the records of the lines. more is false if no more is wanted.
func (r *Reader) readLines(in *patientReader, yield func(*Record, error) bool) (more bool, err error) {
	for {
		line, err := r.lines.ReadSlice('\n')
		if err != nil && in.halted() { // what is there of the line is not the line
			return false, err
		}
		ended := err == nil
		if len(line) > 0 {
			r.line++
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			r.damaged(errTooLong, line)
			if err = r.skipLine(); err == nil {
				continue
			}
			line = nil
		}
		if !r.take(line, ended, yield) {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return true, err
		}
	}
}

var (
	errTooLong = errors.New("the line is longer than 1 MiB")
	errCutOff  = errors.New("the line is cut off")
)

// skipLine reads to the end of a line.
func (r *Reader) skipLine() error {
	for {
		_, err := r.lines.ReadSlice('\n')
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// take yields the record that a line has. ended says whether the line has an end.
func (r *Reader) take(line []byte, ended bool, yield func(*Record, error) bool) (more bool) {
	if len(bytes.TrimSpace(line)) == 0 {
		return true
	}
	record, err := r.decoder.decode(line)
	if err != nil {
		if !ended {
			err = errCutOff
		}
		r.damaged(err, line)
		return true
	}
	if record.Event != nil {
		r.counts.Transitions++
	} else {
		r.counts.Conns++
	}
	return yield(record, nil)
}

func (r *Reader) damaged(err error, line []byte) {
	r.counts.Damaged++
	r.opts.Complain(&LineError{File: r.file, Line: r.line, Err: err, Text: bytes.TrimRight(line, "\r\n")})
}
