package logfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// archive is the rotated files of a log. It holds them to the bound, and has a
// goroutine that compresses them.
type archive struct {
	dir, base string
	extension string // of compressed files, "" if they are to stay as they are
	max       int64  // bytes of all files, 0 if there is no bound
	sync      bool
	log       *slog.Logger
	counters  *counters
	wake      chan struct{} // has an element when the goroutine has something to do

	mu      sync.Mutex // guards what follows
	files   []rotatedFile
	last    time.Time // of the newest file that there was
	current int64     // bytes that the log itself has, or is about to have
	job     *job      // what is being compressed
	retired []*os.File

	bytes, number atomic.Int64 // of all files, for who must not wait for mu
}

// rotatedFile is one rotated file. Files are sorted by time.
type rotatedFile struct {
	rotatedName
	size int64
}

// job is the compression of a file.
type job struct {
	of       time.Time
	extra    string // the path of what there is beside the rotated file, if anything
	size     int64  // bytes of that
	canceled bool   // the rotated file was removed for the bound
}

// errFull says that the bound leaves no room.
var errFull = errors.New("the bound on all log files leaves no room")

func newArchive(path string, opts *Options, c *counters) *archive {
	return &archive{
		dir: filepath.Dir(path), base: filepath.Base(path),
		extension: extensions[opts.Compress], max: opts.MaxTotal, sync: opts.Sync != SyncNever,
		log: opts.Log, counters: c, wake: make(chan struct{}, 1),
	}
}

func (a *archive) path(n rotatedName) string { return filepath.Join(a.dir, n.of(a.base)) }

// usage returns the bytes and the number of all files.
func (a *archive) usage() (bytes int64, files int) { return a.bytes.Load(), int(a.number.Load()) }

// total returns the bytes of all files. Called with mu held.
func (a *archive) total() int64 {
	total := a.current
	for i := range a.files {
		total += a.files[i].size
	}
	if a.job != nil {
		total += a.job.size
	}
	a.bytes.Store(total)
	a.number.Store(int64(len(a.files) + 1))
	return total
}

// load finds the files that earlier processes have left, and removes what they
// have not finished: the beginning of a compressed file, and a file that is there
// compressed too. That one is whole, since it had another name until it was.
func (a *archive) load() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	names, err := a.read()
	if err != nil {
		return err
	}
	for i, f := range names {
		unfinished := f.temp && !a.making(f) || i+1 < len(names) && f.extension == "" && names[i+1].time.Equal(f.time) && !names[i+1].temp
		if !unfinished {
			continue
		}
		if err := os.Remove(a.path(f.rotatedName)); err != nil {
			return fmt.Errorf("remove what an earlier run has left: %w", err)
		}
	}
	if err := a.scan(); err != nil {
		return err
	}
	if err := a.shrink(); !errors.Is(err, errFull) {
		return err
	}
	return nil // the log itself is too large, and will be rotated
}

// making tells whether f is what the job makes. Called with mu held.
func (a *archive) making(f rotatedFile) bool {
	return a.job != nil && a.job.extra == a.path(f.rotatedName)
}

// read returns all rotated files there are, also those that are not finished. Of
// the same time, the one that is not compressed comes first.
func (a *archive) read() ([]rotatedFile, error) {
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return nil, err
	}
	var files []rotatedFile
	for _, entry := range entries { // sorted by name
		name, ok := parseRotated(a.base, entry.Name())
		if !ok || !entry.Type().IsRegular() {
			continue
		}
		if info, err := entry.Info(); err == nil {
			files = append(files, rotatedFile{name, info.Size()})
		}
	}
	return files, nil
}

// scan takes over what there is: somebody may have removed files. Not while a file
// is being compressed, which is then there in two ways. Called with mu held.
func (a *archive) scan() error {
	if a.job != nil {
		return nil
	}
	files, err := a.read()
	if err != nil {
		return err
	}
	a.files = slices.DeleteFunc(files, func(f rotatedFile) bool { return f.temp })
	for _, f := range a.files {
		if f.time.After(a.last) {
			a.last = f.time
		}
	}
	return nil
}

// next returns a name for the file that is rotated now. It is after all others,
// even if the clock was put back.
func (a *archive) next(now time.Time) rotatedName {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := rotatedName{time: now.UTC().Round(0)}
	if !n.time.After(a.last) {
		n.time = a.last.Add(1)
	}
	for a.taken(n) {
		n.time = n.time.Add(1)
	}
	return n
}

func (a *archive) taken(n rotatedName) bool {
	for _, n.extension = range []string{"", ".gz", ".zst"} {
		if _, err := os.Lstat(a.path(n)); err == nil {
			return true
		}
	}
	return false
}

// add takes over a file that was just renamed, open as f.
func (a *archive) add(n rotatedName, size int64, f *os.File) {
	a.mu.Lock()
	a.files = append(a.files, rotatedFile{n, size})
	a.last = n.time
	a.current = 0
	if err := a.scan(); err != nil {
		a.log.Warn("cannot see which rotated logs there are", "error", err)
	}
	if err := a.shrink(); err != nil {
		a.log.Warn("too much is in rotated logs", "error", err)
	}
	a.mu.Unlock()
	a.retire(f)
}

// maxRetired is how many files may wait to be synced and closed.
const maxRetired = 16

// retire has the goroutine sync and close a file that gets no more records. Where
// the disk is so slow that too many wait, the caller does that.
func (a *archive) retire(f *os.File) {
	a.mu.Lock()
	a.retired = append(a.retired, f)
	tooMany := len(a.retired) > maxRetired
	a.mu.Unlock()
	if tooMany {
		a.settle()
	}
	a.notify()
}

func (a *archive) notify() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// reserve makes room for n more bytes in the log, which has size.
func (a *archive) reserve(size, n int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = size + n
	if err := a.shrink(); err != nil {
		a.current = size
		return err
	}
	return nil
}

// set tells how many bytes the log has.
func (a *archive) set(size int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = size
	a.total()
}

// shrink removes the oldest files until the bound is held. Called with mu held.
func (a *archive) shrink() error {
	for a.total() > a.max && a.max > 0 {
		if len(a.files) == 0 {
			return errFull
		}
		if err := a.remove(a.files[0]); err != nil {
			return fmt.Errorf("remove the oldest log: %w", err)
		}
		a.files = slices.Delete(a.files, 0, 1)
		a.counters.removed.Add(1)
	}
	return nil
}

// remove removes a file, and what is being made of it. Called with mu held.
func (a *archive) remove(f rotatedFile) error {
	if err := a.unlink(a.path(f.rotatedName)); err != nil {
		return err
	}
	if a.job == nil || !a.job.of.Equal(f.time) {
		return nil
	}
	a.job.canceled = true
	return a.dropExtra()
}

// dropExtra removes what the job has beside the rotated file. Called with mu held.
func (a *archive) dropExtra() error {
	if a.job.extra == "" {
		return nil
	}
	if err := a.unlink(a.job.extra); err != nil {
		return err
	}
	a.job.extra, a.job.size = "", 0
	return nil
}

// unlink removes a file that may be gone.
func (a *archive) unlink(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// compressRetry is when to try again if a file could not be compressed and no
// other is rotated.
const compressRetry = time.Minute

// run does what takes long, until ctx is done.
func (a *archive) run(ctx context.Context) {
	for ctx.Err() == nil {
		a.settle()
		var again <-chan time.Time
		if !a.compressAll(ctx) {
			again = time.After(compressRetry)
		}
		select {
		case <-a.wake:
		case <-again:
		case <-ctx.Done():
		}
	}
	a.settle()
}

// settle syncs and closes the files that get no more records.
func (a *archive) settle() {
	a.mu.Lock()
	retired := a.retired
	a.retired = nil
	a.mu.Unlock()
	for _, f := range retired {
		var err error
		if a.sync {
			err = f.Sync()
		}
		if err := errors.Join(err, f.Close()); err != nil {
			a.syncFailed(err)
		}
	}
	if a.sync && len(retired) > 0 {
		if err := syncDir(a.dir); err != nil {
			a.syncFailed(err)
		}
	}
}

func (a *archive) syncFailed(err error) {
	a.counters.syncFailures.Add(1)
	a.log.Error("records of the log may be lost, it cannot be written through to the disk", "error", err)
}

// syncDir has the names in a directory outlive a power cut.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
