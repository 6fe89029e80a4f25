package logfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
)

func TestReopenWithoutRecord(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path})
	mustSend(t, l, newBatch(0, 23, 0))
	qt.Assert(t, qt.IsNil(os.Rename(path, path+".1")))
	l.Reopen()
	eventually(t, "there is a new file", func() bool { _, err := os.Stat(path); return err == nil })
	mustSend(t, l, newBatch(23, 23, 0))
	checkNumbers(t, numbers(t, readLog(t, path+".1")), upTo(0, 23))
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(23, 46))
}

// A file that is moved away is written for a second more, but not if there is another
// in its place.
func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := logPath(t)
		l := mustOpen(t, Options{Path: path, MaxAge: time.Minute})
		mustSend(t, l, newBatch(0, 10, 0))
		time.Sleep(59 * time.Second)
		qt.Assert(t, qt.IsNil(os.Rename(path, path+".1")))
		mustSend(t, l, newBatch(10, 10, 0))
		time.Sleep(moveGrace - time.Nanosecond)
		mustSend(t, l, newBatch(20, 10, 0))
		time.Sleep(time.Nanosecond)
		mustSend(t, l, newBatch(30, 10, 0)) // its age is no reason to rotate it
		checkNumbers(t, numbers(t, readLog(t, path+".1")), upTo(0, 30))
		checkNumbers(t, numbers(t, readLog(t, path)), upTo(30, 40))
		qt.Check(t, qt.Equals(l.Stats().RotateFailures, 0))

		qt.Assert(t, qt.IsNil(os.Rename(path, path+".2")))
		mustSend(t, l, newBatch(40, 10, 0))
		qt.Assert(t, qt.IsNil(os.WriteFile(path, nil, 0o600)))
		mustSend(t, l, newBatch(50, 10, 0))
		checkNumbers(t, numbers(t, readLog(t, path+".2")), upTo(30, 50))
		checkNumbers(t, numbers(t, readLog(t, path)), upTo(50, 60))
		time.Sleep(time.Minute)
		synctest.Wait()
		qt.Check(t, qt.Equals(l.Stats().Rotated, 1))
		qt.Check(t, qt.Equals(l.Stats().RotateFailures, 0))
		qt.Assert(t, qt.IsNil(l.Close()))
	})
}

// Reopening a file that nobody has moved changes nothing.
func TestReopenInPlace(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path})
	for i := range 23 {
		l.Reopen()
		mustSend(t, l, newBatch(i, 1, 0))
	}
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(0, 23))
}

// Nothing is lost to files that are moved away while records are written, with a
// signal or without.
func TestReopenUnderLoad(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path})
	done := make(chan struct{})
	const moves = 23
	go func() {
		defer close(done)
		for i := range moves {
			moved := filepath.Join(filepath.Dir(path), strconv.Itoa(1000+i))
			eventually(t, "there is a file with records", func() bool {
				info, err := os.Stat(path)
				return err == nil && info.Size() > 0
			})
			if err := os.Rename(path, moved); err != nil {
				t.Error(err)
			}
			if i != moves/2 { // a second later without
				l.Reopen()
			}
		}
	}()
	sent := 0
	for running := true; running; sent += 10 {
		select {
		case <-done:
			running = false
		default:
		}
		mustSend(t, l, newBatch(sent, 5, 5))
		time.Sleep(50 * time.Microsecond) // it is not to be too much to read
	}
	qt.Check(t, qt.HasLen(rotated(t, path), moves))
	checkNumbers(t, allNumbers(t, path), upTo(0, sent))
}

// copytruncate is not exact by itself: what comes between the copying and the
// cutting is lost to it. No line is half, though, and none is there twice.
func TestCopyTruncate(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path, MaxSize: 1 << 30, MaxAge: time.Hour})
	var all []int
	for i := range 23 {
		mustSend(t, l, newBatch(i*100, 100, 0))
		all = append(all, numbers(t, readLog(t, path))...)
		qt.Assert(t, qt.IsNil(os.Truncate(path, 0)))
	}
	checkNumbers(t, all, upTo(0, 2300))
	mustSend(t, l, newBatch(0, 1, 0))
	qt.Check(t, qt.Equals(l.Stats().Bytes, sizeOf(t, path)))
}

func TestRemovedFile(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path})
	mustSend(t, l, newBatch(0, 23, 0))
	qt.Assert(t, qt.IsNil(os.Remove(path)))
	mustSend(t, l, newBatch(23, 23, 0))
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(23, 46))
}

// The directory is made again.
func TestRemovedDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "conns.log")
	_, err := Open(Options{Path: path})
	qt.Assert(t, qt.ErrorIs(err, fs.ErrNotExist)) // not if it was never there
	qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(path), 0o710)))
	l := mustOpen(t, Options{Path: path})
	mustSend(t, l, newBatch(0, 23, 0))
	qt.Assert(t, qt.IsNil(os.RemoveAll(filepath.Dir(filepath.Dir(path)))))
	mustSend(t, l, newBatch(23, 23, 0))
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(23, 46))
	info, err := os.Stat(filepath.Dir(path))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.Mode().Perm(), 0o710))
}

// A file that cannot be opened is tried again after a second, and not before.
func TestOpenIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := logPath(t)
		l := mustOpen(t, Options{Path: path})
		qt.Assert(t, qt.IsNil(os.Remove(path)))
		qt.Assert(t, qt.IsNil(os.Mkdir(path, 0o700)))
		kept, err := l.Send(t.Context(), newBatch(0, 23, 0))
		qt.Check(t, qt.ErrorMatches(err, ".*is a directory.*"))
		qt.Check(t, qt.Equals(kept, sink.Counts{}))
		qt.Assert(t, qt.IsNil(os.Remove(path)))
		time.Sleep(retryInterval - time.Nanosecond)
		_, err = l.Send(t.Context(), newBatch(23, 23, 0))
		qt.Check(t, qt.ErrorMatches(err, ".*is a directory.*"))
		time.Sleep(time.Nanosecond)
		mustSend(t, l, newBatch(46, 23, 0))
		checkNumbers(t, numbers(t, readLog(t, path)), upTo(46, 69))

		// Reopen does not wait.
		qt.Assert(t, qt.IsNil(os.Remove(path)))
		qt.Assert(t, qt.IsNil(os.Mkdir(path, 0o700)))
		_, err = l.Send(t.Context(), newBatch(0, 1, 0))
		qt.Check(t, qt.IsNotNil(err))
		qt.Assert(t, qt.IsNil(os.Remove(path)))
		l.Reopen()
		synctest.Wait()
		mustSend(t, l, newBatch(69, 1, 0))
		checkNumbers(t, numbers(t, readLog(t, path)), []int{69})
		qt.Assert(t, qt.IsNil(l.Close()))
	})
}
