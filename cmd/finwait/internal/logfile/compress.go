package logfile

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// errCanceled says that a file need not be compressed any more.
var errCanceled = errors.New("canceled")

// compressAll compresses the rotated files that are not, and tells whether none
// has failed.
func (a *archive) compressAll(ctx context.Context) bool {
	for a.extension != "" && ctx.Err() == nil {
		a.settle()
		f, found := a.uncompressed()
		if !found {
			break
		}
		err := a.compress(ctx, f)
		if err == nil || errors.Is(err, errCanceled) {
			continue
		}
		a.counters.compressFailures.Add(1)
		a.log.Warn("a rotated log stays as it is for now, it cannot be compressed", "error", err)
		return false
	}
	return true
}

// uncompressed returns the oldest file that is not compressed.
func (a *archive) uncompressed() (rotatedFile, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.files, func(f rotatedFile) bool { return f.extension == "" })
	if i < 0 {
		return rotatedFile{}, false
	}
	return a.files[i], true
}

// compress puts a compressed file in the place of f. A crash leaves a file that
// load removes, whenever it comes.
func (a *archive) compress(ctx context.Context, f rotatedFile) error {
	plain, to := a.path(f.rotatedName), rotatedName{time: f.time, extension: a.extension, temp: true}
	temp := a.path(to)
	j := a.begin(f.time, temp)
	if j == nil {
		return errCanceled
	}
	defer a.end()
	in, err := os.OpenFile(plain, os.O_RDONLY|openFlags, 0)
	if errors.Is(err, os.ErrNotExist) {
		a.forget(f.time)
		return errCanceled
	}
	if err != nil {
		return err
	}
	defer in.Close()
	size, err := a.pack(ctx, in, j, temp)
	if err != nil {
		_ = a.unlink(temp) // end does not know of it if j was canceled before it was there
		return err
	}
	to.temp = false
	if err := a.replace(j, plain, f.size, rotatedFile{to, size}); err != nil {
		return err
	}
	if err := syncDir(a.dir); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dropExtra()
}

// forget drops a file that somebody else has removed.
func (a *archive) forget(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files = slices.DeleteFunc(a.files, func(f rotatedFile) bool { return f.time.Equal(t) })
	a.total()
}

// begin returns the job of compressing a file, nil if it has been removed.
func (a *archive) begin(of time.Time, temp string) *job {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.ContainsFunc(a.files, func(f rotatedFile) bool { return f.time.Equal(of) }) {
		return nil
	}
	a.job = &job{of: of, extra: temp}
	return a.job
}

// end ends the job. What it has not finished is removed.
func (a *archive) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.dropExtra(); err != nil {
		a.log.Warn("what was left of compressing a log is there still", "error", err)
	}
	a.job = nil
	a.total()
}

// pack writes in, compressed, to the file temp, and returns its size.
func (a *archive) pack(ctx context.Context, in *os.File, j *job, temp string) (size int64, err error) {
	if err := a.unlink(temp); err != nil {
		return 0, err
	}
	out, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|openFlags, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	resemble(out, info)
	w := &jobWriter{ctx: ctx, archive: a, job: j, out: out}
	if err := compressTo(w, in, a.extension); err != nil {
		return 0, fmt.Errorf("compress %s: %w", in.Name(), err)
	}
	return w.size, out.Sync()
}

// compressTo writes all of in to w.
func compressTo(w io.Writer, in io.Reader, extension string) error {
	buffered := bufio.NewWriterSize(w, 64<<10)
	packer, err := newPacker(buffered, extension)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(packer, struct{ io.Reader }{in}, make([]byte, 64<<10))
	return errors.Join(err, packer.Close(), buffered.Flush())
}

// newPacker returns what compresses, with little memory: it is not in a hurry.
func newPacker(w io.Writer, extension string) (io.WriteCloser, error) {
	if extension == ".gz" {
		return gzip.NewWriter(w), nil
	}
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
}

// jobWriter writes the compressed file, within the bound.
type jobWriter struct {
	ctx     context.Context
	archive *archive
	job     *job
	out     *os.File
	size    int64
}

func (w *jobWriter) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, errCanceled
	}
	if err := w.archive.grow(w.job, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.out.Write(p)
	w.size += int64(n)
	return n, err
}

// grow makes room for n more bytes of the compressed file.
func (a *archive) grow(j *job, n int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if j.canceled {
		return errCanceled
	}
	j.size += n
	if err := a.shrink(); err != nil {
		return err
	}
	if j.canceled {
		return errCanceled
	}
	return nil
}

// replace gives the compressed file its name, and has the plain one be what is
// extra.
func (a *archive) replace(j *job, plain string, size int64, f rotatedFile) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if j.canceled {
		return errCanceled
	}
	if err := os.Rename(j.extra, a.path(f.rotatedName)); err != nil {
		return err
	}
	j.extra, j.size = plain, size
	for i := range a.files {
		if a.files[i].time.Equal(f.time) {
			a.files[i] = f
		}
	}
	a.total()
	return nil
}
