package logfile

import (
	"bytes"
	"context"
	"time"
)

const (
	// atomicSize is how many bytes a pipe takes whole or not at all (PIPE_BUF).
	// It is also what there is room for in a pipe that says it has room.
	atomicSize = 4096
	// askInterval is how often to ask whether waiting is still wanted.
	askInterval = 100 * time.Millisecond
)

// putStream writes p to a pipe, a terminal or what else standard output may be, and
// returns how many bytes of it are there as whole lines. It waits for whoever reads
// it, until ctx is done.
func (l *Log) putStream(ctx context.Context, p []byte) (whole int, err error) {
	if err := l.putStreamFirst(ctx); err != nil {
		return 0, err
	}
	for whole < len(p) {
		part := p[whole:l.endOfPart(p, whole)]
		if err := l.await(ctx); err != nil {
			return whole, err
		}
		n, err := l.file.Write(part)
		if err != nil {
			whole += l.torn(part, n)
			l.failed(err)
			return whole, err
		}
		whole += n
	}
	return whole, nil
}

// endOfPart returns where the lines of p end that are written at once, from start
// on.
func (l *Log) endOfPart(p []byte, start int) int {
	rest := p[start:]
	if l.info.Mode().IsRegular() || len(rest) <= atomicSize {
		return len(p)
	}
	if end := bytes.LastIndexByte(rest[:atomicSize], '\n'); end >= 0 {
		return start + end + 1
	}
	return start + bytes.IndexByte(rest, '\n') + 1
}

// putStreamFirst writes what has to be written before a record.
func (l *Log) putStreamFirst(ctx context.Context) error {
	if len(l.first) == 0 {
		return nil
	}
	if err := l.await(ctx); err != nil {
		return err
	}
	return l.putFirst()
}

// await waits until something can be written, or ctx is done.
func (l *Log) await(ctx context.Context) error {
	for {
		ready, err := writable(l.file, askInterval)
		if ready || err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
