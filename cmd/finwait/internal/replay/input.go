package replay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// inputBuffer is how much of a file is read at a time.
const inputBuffer = 256 << 10

// maxWindow is how far back zstd may refer: what the zstd command takes without
// being asked for more. It bounds the memory that a file can make it use.
const maxWindow = 128 << 20

// decompress returns what r has, decompressed if it begins as a compressed file
// does. Several compressed files in a row are one.
func decompress(r io.Reader) (text io.Reader, done func(), err error) {
	in := bufio.NewReaderSize(r, inputBuffer)
	magic, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, nil, fmt.Errorf("decompress: %w", err)
		}
		return z, func() { _ = z.Close() }, nil
	case isZstd(magic):
		// With one goroutine nothing is read but when it is asked for.
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, fmt.Errorf("decompress: %w", err)
		}
		return z, z.Close, nil
	}
	return in, func() {}, nil
}

// isZstd says whether magic is that of a frame of zstd, or of one that it skips
// (RFC 8878, 3.1).
func isZstd(magic []byte) bool {
	if len(magic) < 4 {
		return false
	}
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// patientReader reads what may have to be waited for, but not beyond ctx.
type patientReader struct {
	ctx  context.Context
	r    io.Reader
	idle func() error

	stopped error // of idle
	failed  bool  // r could not be read
}

// halted says whether the reading is to end before the file does.
func (p *patientReader) halted() bool { return p.stopped != nil || p.ctx.Err() != nil }

// Read implements io.Reader. If it is left because ctx is done, p may still be
// written to.
func (p *patientReader) Read(b []byte) (int, error) {
	if p.stopped = p.idle(); p.stopped != nil {
		return 0, p.stopped
	}
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := p.r.Read(b)
		done <- result{n, err}
	}()
	select {
	case res := <-done:
		p.failed = res.err != nil && !errors.Is(res.err, io.EOF)
		return res.n, res.err
	case <-p.ctx.Done():
		return 0, p.ctx.Err()
	}
}
