package main

import (
	"fmt"
	"io"
	"iter"
	"os"

	"golang.org/x/term"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
)

// printBuffer is how much is gathered before it is written, while more waits. A
// file takes large pieces with much less work for each byte than small ones; from
// here on there is little to gain.
const printBuffer = 256 << 10

// printer writes items, and counts those that it has written.
type printer[T any] struct {
	w     io.Writer
	noun  string
	item  func([]byte, *T) []byte // appends one
	head  []byte                  // the header line, repeated for people; empty for none
	every uint64                  // items between header lines; 0 for one header
	buf   []byte

	taken   uint64 // given to the printer
	written uint64 // of those, written
}

func newPrinter[T any](w io.Writer, flags *streamFlags, opts output.Options, s stream[T]) (*printer[T], error) {
	p := &printer[T]{w: w, noun: s.noun, buf: make([]byte, 0, printBuffer+4096)}
	if width, height, ok := terminal(w); ok {
		opts.Color = os.Getenv("NO_COLOR") == ""
		opts.Width = width
		p.every = uint64(max(height-1, 10))
	}
	head, item, err := s.encode(flags.format, opts)
	if err != nil {
		return nil, usagef("--format: %w", err)
	}
	p.item = item
	if !flags.noHeader {
		p.head = head
	}
	if flags.format != "table" {
		p.every = 0
	}
	return p, nil
}

// terminal tells whether w is one, and its size.
func terminal(w io.Writer) (width, height int, ok bool) {
	file, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(file.Fd())) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 80, 24, true
	}
	return width, height, true
}

// print prints the header and the items, up to count if that is not 0. What was
// gathered is written when nothing more is pending.
func (p *printer[T]) print(items iter.Seq2[*T, error], pending func() bool, count uint64) error {
	if err := p.header(); err != nil {
		return err
	}
	for item, err := range items {
		if err != nil {
			return err
		}
		p.add(item)
		done := count > 0 && p.taken == count
		if done || p.full() || !pending() {
			if err := p.flush(); err != nil {
				return err
			}
		}
		if done {
			break
		}
	}
	return p.flush()
}

func (p *printer[T]) header() error {
	p.buf = append(p.buf, p.head...)
	return p.flush()
}

func (p *printer[T]) add(item *T) {
	if p.every > 0 && p.taken > 0 && p.taken%p.every == 0 {
		p.buf = append(p.buf, p.head...)
	}
	p.buf = p.item(p.buf, item)
	p.taken++
}

func (p *printer[T]) full() bool { return len(p.buf) >= printBuffer }

func (p *printer[T]) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	_, err := p.w.Write(p.buf)
	p.buf = p.buf[:0]
	if err != nil {
		return fmt.Errorf("write %s: %w", p.noun, err)
	}
	p.written = p.taken
	return nil
}
