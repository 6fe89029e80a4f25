package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// fileMode is that of a file that is not there yet.
const fileMode = 0o640

// errLocked says that another process writes the log.
var errLocked = errors.New("another process writes this log (stop it, or choose another file)")

// resolve returns where path leads if it is a symbolic link, whether or not there
// is a file. The links of today are whoever chose the path wants; those of later
// may be somebody else's, and are not followed. Rotated files are beside the file,
// not beside the link.
func resolve(path string) (string, error) {
	for range 40 {
		info, err := os.Lstat(path)
		if err == nil && info.Mode()&fs.ModeSymlink == 0 || errors.Is(err, fs.ErrNotExist) {
			return resolveDir(path)
		}
		if err != nil {
			return "", err
		}
		if path, err = readLink(path); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("%s: too many symbolic links", path)
}

// resolveDir returns path with the links of its directory followed.
func resolveDir(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(dir, filepath.Base(path)), err
}

// readLink returns what the link at path names.
func readLink(path string) (string, error) {
	to, err := os.Readlink(path)
	if err == nil && !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(path), to)
	}
	return to, err
}

// prepare has the file be ready for p, and returns how much of p to write to it.
func (l *Log) prepare(p []byte) (int, error) {
	if err := l.look(); err != nil {
		return 0, err
	}
	if l.stream {
		return len(p), nil
	}
	n := l.fit(p)
	if n == 0 || l.due() {
		if err := l.rotate(); err != nil {
			return 0, err
		}
		if n = l.fit(p); n == 0 { // it cannot be rotated
			n = len(p)
		}
	}
	err := l.archive.reserve(l.size, int64(len(l.first)+n))
	if err != nil && l.stuck != nil {
		err = fmt.Errorf("%w; the log cannot be rotated: %w", err, l.stuck)
	}
	return n, err
}

// fit returns how many bytes of p, in whole lines, a file may have before it has
// to be rotated.
func (l *Log) fit(p []byte) int {
	room := l.opts.MaxSize - l.size - int64(len(l.first))
	switch {
	case l.opts.MaxSize == 0 || room >= int64(len(p)):
		return len(p)
	case room > 0 && bytes.IndexByte(p[:room], '\n') >= 0:
		return bytes.LastIndexByte(p[:room], '\n') + 1
	case l.size > 0:
		return 0
	}
	return bytes.IndexByte(p, '\n') + 1 // MinSize is too small for it
}

// due tells whether the file has to be rotated, whatever comes.
func (l *Log) due() bool {
	tooOld := l.opts.MaxAge > 0 && !l.started.IsZero() && time.Since(l.started) >= l.opts.MaxAge
	tooBig := l.opts.MaxSize > 0 && l.size > l.opts.MaxSize
	cannotGrow := l.tooBig && (l.opts.MaxAge > 0 || l.opts.MaxSize > 0)
	return l.size > 0 && (tooOld || tooBig || cannotGrow)
}

// look sees to it that the open file is the one that is at the path, and learns its
// size.
func (l *Log) look() error {
	if l.again.Swap(false) {
		l.retry = time.Time{}
	}
	if l.stdout {
		return nil
	}
	if l.file == nil {
		return l.open()
	}
	info, err := os.Lstat(l.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// Nobody can tell: the directory may not be searched, or the server
		// is away. The file that is open is still the best that there is.
		if info, err = l.file.Stat(); err == nil {
			l.resized(info.Size())
			return nil
		}
	}
	if err == nil && os.SameFile(info, l.info) {
		l.resized(info.Size())
		return nil
	}
	l.leave()
	return l.open()
}

// resized learns the size of the file, which somebody else may have cut.
func (l *Log) resized(size int64) {
	if l.stream || size == l.size {
		return
	}
	if size < l.size {
		l.started, l.tooBig = l.startOf(size), false
	}
	l.size = size
	l.archive.set(size)
	if len(l.first) > 0 {
		l.first = l.first[:0]
		l.mend()
	}
}

// leave gives up the file, to which no more is to be written.
func (l *Log) leave() {
	if l.file == nil {
		return
	}
	l.finish()
	if l.stream {
		_ = l.file.Close()
	} else {
		l.archive.retire(l.file)
		l.archive.set(0)
	}
	l.file = nil
}

// open opens the file, if the last time that it did not work is long enough ago.
func (l *Log) open() error {
	if time.Now().Before(l.retry) {
		return l.failure
	}
	err := l.openFile()
	if err != nil {
		l.leave()
		l.retry, l.failure = time.Now().Add(retryInterval), err
	}
	return err
}

func (l *Log) openFile() error {
	flags, err := l.flags()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, flags, fileMode)
	if errors.Is(err, fs.ErrNotExist) {
		// The directory was there when the log was opened first.
		if err := os.MkdirAll(l.archive.dir, l.dir.Mode().Perm()); err != nil {
			return err
		}
		f, err = os.OpenFile(l.path, flags, fileMode)
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = checkKind(l.path, info)
	}
	if err == nil && info.Mode().IsRegular() {
		err = lock(f)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open %s: %w", l.path, err)
	}
	l.take(f, info)
	return nil
}

// flags returns those to open the file with. It looks first, because opening alone
// can do things to a device.
func (l *Log) flags() (int, error) {
	flags := os.O_APPEND | os.O_CREATE | os.O_RDWR | openFlags // read to see how it ends
	info, err := os.Lstat(l.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return flags, nil
	case err != nil:
		return 0, err
	case info.Mode()&fs.ModeNamedPipe != 0:
		return os.O_WRONLY | openFlags | fifoFlags, nil
	}
	return flags, checkKind(l.path, info)
}

// checkKind returns an error if a log cannot be there.
func checkKind(path string, info fs.FileInfo) error {
	switch mode := info.Mode(); {
	case mode.IsRegular(), mode&fs.ModeNamedPipe != 0:
		return nil
	case mode&fs.ModeSymlink != 0:
		return fmt.Errorf("%s has become a symbolic link, which is not followed", path)
	case mode.IsDir():
		return fmt.Errorf("%s is a directory (want a file)", path)
	}
	return fmt.Errorf("%s is neither a file nor a FIFO", path)
}

// take goes on with a file that was just opened.
func (l *Log) take(f *os.File, info fs.FileInfo) {
	l.file, l.info, l.stream = f, info, !info.Mode().IsRegular()
	l.first, l.tooBig, l.dirtyAt = l.first[:0], false, time.Time{}
	if l.stream {
		return
	}
	l.size = info.Size()
	l.mend()
	l.started = l.startOf(l.size)
	l.archive.set(l.size)
	if !l.loaded {
		err := l.archive.load()
		if err != nil {
			l.opts.Log.Warn("cannot see to rotated logs of earlier runs", "error", err)
		}
		l.loaded = err == nil
		l.archive.notify()
	}
	l.notify()
}

// startOf returns when the file, of that size, has got its first record: what the
// record says, or if that cannot be read when the file was last changed.
func (l *Log) startOf(size int64) time.Time {
	if size == 0 {
		return time.Time{}
	}
	now := time.Now()
	head := make([]byte, len(recordStart)+len(time.RFC3339Nano))
	n, _ := l.file.ReadAt(head, 0)
	if t, ok := recordTime(head[:n]); ok && t.Before(now) {
		return t
	}
	if info, err := l.file.Stat(); err == nil && info.ModTime().Before(now) {
		return info.ModTime()
	}
	return now
}

// recordStart is how each record starts.
const recordStart = `{"time":"`

// recordTime returns the time of the record that starts so.
func recordTime(head []byte) (time.Time, bool) {
	rest, ok := bytes.CutPrefix(head, []byte(recordStart))
	text, _, found := bytes.Cut(rest, []byte{'"'})
	if !ok || !found {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(text))
	return t, err == nil
}

// rotate gives the file another name and opens a new one. If the renaming does not
// work it is not an error, since there is a file still, and l.stuck says why; it is
// tried again a second later.
func (l *Log) rotate() error {
	now := time.Now()
	if now.Before(l.rotateAt) {
		return nil
	}
	name := l.archive.next(now)
	if err := os.Rename(l.path, l.archive.path(name)); err != nil {
		l.counters.rotateFailures.Add(1)
		if l.stuck == nil {
			l.opts.Log.Warn("the log goes on in the same file, which cannot be rotated", "error", err)
		}
		l.rotateAt, l.stuck = now.Add(retryInterval), err
		return nil
	}
	l.rotateAt, l.stuck = time.Time{}, nil
	l.counters.rotated.Add(1)
	old, statErr := l.file.Stat()
	l.finish()
	l.archive.add(name, l.size, l.file)
	l.file = nil
	if err := l.open(); err != nil {
		return err
	}
	if statErr == nil {
		resemble(l.file, old)
	}
	return nil
}

// putFile writes p, and returns how many bytes of it are there as whole lines.
func (l *Log) putFile(p []byte) (int, error) {
	if err := l.putFirst(); err != nil {
		return 0, err
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	if err != nil {
		n = l.torn(p, n)
		l.failed(err)
	}
	if n > 0 {
		l.wrote()
	}
	l.archive.set(l.size)
	return n, err
}

// putFirst writes what has to be written before a record.
func (l *Log) putFirst() error {
	if len(l.first) == 0 {
		return nil
	}
	n, err := l.file.Write(l.first)
	l.size += int64(n)
	l.first = append(l.first[:0], l.first[n:]...)
	if err != nil {
		l.failed(err)
		return err
	}
	l.counters.patched.Add(1)
	return nil
}

// finish ends the line that this process has begun, if it can, since the file gets
// no other record. It leaves alone what was there before.
func (l *Log) finish() {
	if len(l.first) > 1 {
		if n, _ := l.file.Write(l.first); n == len(l.first) {
			l.counters.patched.Add(1)
		}
	}
	l.first = l.first[:0]
}

// wrote remembers that there is a record more.
func (l *Log) wrote() {
	now := time.Now()
	if l.started.IsZero() {
		l.started = now
		l.notify()
	}
	if l.opts.Sync > 0 && l.dirtyAt.IsZero() {
		l.dirtyAt = now
		l.notify()
	}
}

// failed closes the file after an error of writing, unless it is full: then
// another one would be, too.
func (l *Log) failed(err error) {
	if isFull(err) {
		l.tooBig = l.tooBig || errors.Is(err, syscall.EFBIG)
		return
	}
	if l.stdout {
		return
	}
	l.leave()
	l.retry, l.failure = time.Now().Add(retryInterval), err
}

// torn sees to the end of the file when only n bytes of p were written, and returns
// how many of them are whole lines. What cannot be cut off is ended before
// the next record.
func (l *Log) torn(p []byte, n int) int {
	whole := bytes.LastIndexByte(p[:n], '\n') + 1
	if n == whole {
		return whole
	}
	switch cut, err := cutEnd(l.file, int64(n-whole)); {
	case err != nil:
		end := n + bytes.IndexByte(p[n:], '\n') + 1
		l.first = append(l.first[:0], p[n:end]...)
	case cut:
		l.counters.torn.Add(1)
		l.size -= int64(n - whole)
	}
	return whole
}

// cutEnd cuts off what was just written last. It does not, and that is no error,
// if that is not the end of the file any more: then somebody else has cut more.
func cutEnd(f *os.File, n int64) (bool, error) {
	end, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, err
	}
	info, err := f.Stat()
	if err != nil || info.Size() != end {
		return false, err
	}
	if err := f.Truncate(end - n); err != nil {
		return false, err
	}
	_, err = f.Seek(end-n, io.SeekStart)
	return true, err
}
