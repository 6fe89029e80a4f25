package logfile

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
)

func TestRotateBySize(t *testing.T) {
	for _, compress := range Compressions {
		t.Run(compress, func(t *testing.T) {
			path := logPath(t)
			l := mustOpen(t, Options{Path: path, MaxSize: MinSize, Compress: compress})
			for i := range 20 {
				mustSend(t, l, newBatch(i*200, 100, 100))
			}
			if compress != "none" {
				eventually(t, "all rotated files are compressed", func() bool { return compressed(t, path, extensions[compress]) })
			}
			checkNumbers(t, allNumbers(t, path), upTo(0, 4000))
			s := l.Stats()
			names := rotated(t, path)
			qt.Check(t, qt.Equals(s.Rotated, uint64(len(names))))
			qt.Check(t, qt.IsTrue(len(names) > 10))
			for _, name := range names {
				info, err := os.Stat(filepath.Join(filepath.Dir(path), name))
				qt.Assert(t, qt.IsNil(err))
				qt.Check(t, qt.IsTrue(info.Size() <= MinSize))
				qt.Check(t, qt.Equals(info.Mode().Perm()&^0o640, 0))
				n, ok := parseRotated("conns.log", name)
				qt.Check(t, qt.IsTrue(ok && !n.temp))
			}
			eventually(t, "the bytes are those of the directory", func() bool { return l.Stats().Bytes == sizeOf(t, path) })
			qt.Check(t, qt.Equals(l.Stats().Files, len(names)+1))
		})
	}
}

// sizeOf returns the bytes of all that is in the directory of the log.
func sizeOf(t testing.TB, path string) int64 {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	qt.Assert(t, qt.IsNil(err))
	var sum int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum
}

// The mode of a file that somebody has made is that of the next one, too.
func TestRotateKeepsMode(t *testing.T) {
	path := logPath(t)
	qt.Assert(t, qt.IsNil(os.WriteFile(path, nil, 0o600)))
	qt.Assert(t, qt.IsNil(os.Chmod(path, 0o604)))
	l := mustOpen(t, Options{Path: path, MaxSize: MinSize, Compress: "gzip"})
	for i := range 3 {
		mustSend(t, l, newBatch(i*300, 300, 0))
	}
	eventually(t, "all rotated files are compressed", func() bool { return compressed(t, path, ".gz") })
	qt.Check(t, qt.IsTrue(len(rotated(t, path)) >= 2))
	for _, name := range append(rotated(t, path), filepath.Base(path)) {
		info, err := os.Stat(filepath.Join(filepath.Dir(path), name))
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(info.Mode().Perm(), 0o604), qt.Commentf("%s", name))
	}
}

// What is in the directory never has more bytes than the bound, whenever it is
// looked at, and what is there still is the newest.
func TestMaxTotal(t *testing.T) {
	for _, compress := range Compressions {
		t.Run(compress, func(t *testing.T) {
			path := logPath(t)
			const bound = 3*MinSize + 1000
			l := mustOpen(t, Options{Path: path, MaxSize: MinSize, MaxTotal: bound, Compress: compress})
			stop, most := make(chan struct{}), make(chan int64)
			go func() {
				var peak int64
				for {
					peak = max(peak, sizeAtOnce(path))
					select {
					case <-stop:
						most <- peak
						return
					default:
					}
				}
			}()
			const batches = 120
			for i := range batches {
				mustSend(t, l, newBatch(i*100, 100, 0))
				if size := l.Stats().Bytes; size > bound {
					t.Errorf("the log says that it has %d bytes", size)
				}
			}
			close(stop)
			peak := <-most
			qt.Check(t, qt.IsTrue(peak > 0 && peak <= bound), qt.Commentf("%d bytes", peak))
			qt.Assert(t, qt.IsNil(l.Close()))
			got := allNumbers(t, path)
			checkNumbers(t, got, upTo(batches*100-len(got), batches*100))
			s := l.Stats()
			qt.Check(t, qt.Equals(s.Rotated-s.Removed, uint64(len(rotated(t, path)))))
			qt.Check(t, qt.IsTrue(s.Removed > 0))
			qt.Check(t, qt.Equals(s.CompressFailures, 0))
		})
	}
}

// sizeAtOnce returns the bytes of what there was in the directory at one moment:
// it looks until two looks see the same files, of the same sizes.
func sizeAtOnce(path string) int64 {
	var before string
	for {
		var sum int64
		var now strings.Builder
		entries, _ := os.ReadDir(filepath.Dir(path))
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				continue
			}
			sum += info.Size()
			st := info.Sys().(*syscall.Stat_t)
			now.WriteString(e.Name() + " " + strconv.FormatUint(st.Ino, 10) + " " + strconv.FormatInt(info.Size(), 10) + "\n")
		}
		if now.String() == before {
			return sum
		}
		before = now.String()
	}
}

// A bound that was made smaller holds from the start, and files of others stay.
func TestMaxTotalAtStart(t *testing.T) {
	path := logPath(t)
	dir := filepath.Dir(path)
	l := mustOpen(t, Options{Path: path, MaxSize: MinSize})
	for i := range 20 {
		mustSend(t, l, newBatch(i*200, 200, 0))
	}
	qt.Assert(t, qt.IsNil(l.Close()))
	others := []string{"conns.log.1", "conns.log-20261125", "conns.log-20200101T000000.000000000Z.bz2", "other.log-20200101T000000.000000000Z", "conns.log-20200101T000000.000000000Z.tmp"}
	for _, name := range others {
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, name), make([]byte, MinSize), 0o600)))
	}
	qt.Assert(t, qt.IsNil(os.Mkdir(filepath.Join(dir, "conns.log-20200101T000000.000000000Z"), 0o700)))
	qt.Assert(t, qt.IsNil(os.Symlink(path, filepath.Join(dir, "conns.log-20200102T000000.000000000Z"))))

	l = mustOpen(t, Options{Path: path, MaxSize: MinSize, MaxTotal: 2 * MinSize})
	qt.Check(t, qt.IsTrue(l.Stats().Bytes <= 2*MinSize))
	qt.Check(t, qt.IsTrue(l.Stats().Removed > 5))
	for _, name := range append(others, "conns.log-20200101T000000.000000000Z", "conns.log-20200102T000000.000000000Z") {
		_, err := os.Lstat(filepath.Join(dir, name))
		qt.Check(t, qt.IsNil(err))
	}
}

// A log that is larger than all logs may be is rotated and removed at once.
func TestMaxTotalOfOneFile(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path})
	for i := range 5 {
		mustSend(t, l, newBatch(i*200, 200, 0))
	}
	qt.Assert(t, qt.IsNil(l.Close()))
	l = mustOpen(t, Options{Path: path, MaxTotal: 2 * MinSize})
	eventually(t, "the bound is held", func() bool { return sizeOf(t, path) == 0 })
	mustSend(t, l, newBatch(0, 1, 0))
	checkNumbers(t, allNumbers(t, path), []int{0})
}

// What a crash has left of compressing is removed, and nothing is there twice.
func TestLeftovers(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path, MaxSize: MinSize, Compress: "zstd"})
	for i := range 4 {
		mustSend(t, l, newBatch(i*150, 150, 0))
	}
	eventually(t, "all rotated files are compressed", func() bool { return compressed(t, path, ".zst") })
	qt.Assert(t, qt.HasLen(rotated(t, path), 3))
	qt.Assert(t, qt.IsNil(l.Close()))
	first := filepath.Join(filepath.Dir(path), rotated(t, path)[0])
	second := filepath.Join(filepath.Dir(path), rotated(t, path)[1])
	// The first was renamed, and its plain file not removed yet.
	plain := strings.TrimSuffix(first, ".zst")
	qt.Assert(t, qt.IsNil(os.WriteFile(plain, readLog(t, first), 0o600)))
	// The second was not whole.
	qt.Assert(t, qt.IsNil(os.WriteFile(strings.TrimSuffix(second, ".zst"), readLog(t, second), 0o600)))
	qt.Assert(t, qt.IsNil(os.Rename(second, second+".tmp")))
	qt.Assert(t, qt.IsNil(os.Truncate(second+".tmp", 100)))

	l = mustOpen(t, Options{Path: path, MaxSize: MinSize}) // does not compress
	checkNumbers(t, allNumbers(t, path), upTo(0, 600))
	qt.Check(t, qt.HasLen(rotated(t, path), 3))
	qt.Check(t, qt.Equals(l.Stats().Bytes, sizeOf(t, path)))
	qt.Assert(t, qt.IsNil(l.Close()))

	mustOpen(t, Options{Path: path, MaxSize: MinSize, Compress: "gzip"})
	eventually(t, "what is not compressed is", func() bool { return strings.HasSuffix(rotated(t, path)[1], "Z.gz") })
	eventually(t, "and nothing else is left", func() bool { return len(rotated(t, path)) == 3 })
	checkNumbers(t, allNumbers(t, path), upTo(0, 600))
}

// A file that cannot be compressed stays as it is, and is compressed later.
func TestCompressFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := logPath(t)
		l := mustOpen(t, Options{Path: path, MaxAge: time.Hour, Compress: "gzip"})
		mustSend(t, l, newBatch(0, 23, 0))
		// Where the compressed file would be is a directory that is not empty.
		name := rotatedName{time: time.Now().Add(time.Hour), extension: ".gz", temp: true}.of("conns.log")
		block := filepath.Join(filepath.Dir(path), name)
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Join(block, "x"), 0o700)))
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		qt.Check(t, qt.Equals(l.Stats().CompressFailures, 1))
		qt.Check(t, qt.DeepEquals(rotated(t, path), []string{strings.TrimSuffix(name, ".gz.tmp"), name}))
		qt.Assert(t, qt.IsNil(os.RemoveAll(block)))
		time.Sleep(compressRetry)
		synctest.Wait()
		qt.Check(t, qt.DeepEquals(rotated(t, path), []string{strings.TrimSuffix(name, ".tmp")}))
		checkNumbers(t, allNumbers(t, path), upTo(0, 23))
		qt.Assert(t, qt.IsNil(l.Close()))
	})
}

// Rotated files that somebody removes are neither waited for nor counted.
func TestRotatedFileIsGone(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path, MaxSize: MinSize, Compress: "gzip"})
	l.archive.mu.Lock()
	l.archive.files = append(l.archive.files, rotatedFile{rotatedName{time: time.Unix(1, 0)}, 1 << 40})
	l.archive.total()
	l.archive.mu.Unlock()
	qt.Check(t, qt.Equals(l.Stats().Files, 2))
	l.archive.notify()
	eventually(t, "it is not counted", func() bool { return l.Stats().Files == 1 && l.Stats().Bytes == 0 })
	qt.Check(t, qt.Equals(l.Stats().CompressFailures, 0))

	for i := range 4 {
		mustSend(t, l, newBatch(i*150, 150, 0))
	}
	eventually(t, "all rotated files are compressed", func() bool { return compressed(t, path, ".gz") })
	for _, name := range rotated(t, path) {
		qt.Assert(t, qt.IsNil(os.Remove(filepath.Join(filepath.Dir(path), name))))
	}
	for i := range 2 {
		mustSend(t, l, newBatch(600+i*150, 150, 0))
	}
	eventually(t, "the bytes are those of the directory", func() bool { return l.Stats().Bytes == sizeOf(t, path) && compressed(t, path, ".gz") })
}

func TestRotateByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := logPath(t)
		l := mustOpen(t, Options{Path: path, MaxAge: time.Hour, MaxSize: MinSize, Compress: "zstd"})
		time.Sleep(2 * time.Hour) // an empty file has no age
		synctest.Wait()
		qt.Check(t, qt.HasLen(rotated(t, path), 0))

		mustSend(t, l, newBatch(0, 23, 0))
		time.Sleep(59 * time.Minute)
		mustSend(t, l, newBatch(23, 23, 0))
		synctest.Wait()
		qt.Check(t, qt.HasLen(rotated(t, path), 0))
		time.Sleep(time.Minute + time.Second) // no record comes
		synctest.Wait()
		qt.Check(t, qt.DeepEquals(rotated(t, path), []string{"conns.log-20000101T030000.000000000Z.zst"}))

		// By size in between, which starts another hour.
		for i := range 2 {
			mustSend(t, l, newBatch(46+i*150, 150, 0))
		}
		synctest.Wait()
		qt.Check(t, qt.HasLen(rotated(t, path), 2))
		time.Sleep(59 * time.Minute)
		qt.Assert(t, qt.IsNil(l.Close()))

		// A new process knows how old the file is.
		l = mustOpen(t, Options{Path: path, MaxAge: time.Hour})
		synctest.Wait()
		qt.Check(t, qt.HasLen(rotated(t, path), 2))
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		qt.Check(t, qt.HasLen(rotated(t, path), 3))
		qt.Check(t, qt.HasLen(readLog(t, path), 0))
		checkNumbers(t, allNumbers(t, path), upTo(0, 346))
		qt.Check(t, qt.Equals(l.Stats().Rotated, 1))
		qt.Assert(t, qt.IsNil(l.Close()))
	})
}

// Names are in the order of the records, though the clock is not.
func TestRotateClockPutBack(t *testing.T) {
	path := logPath(t)
	future := rotatedName{time: time.Now().Add(23 * time.Hour)}.of("conns.log")
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(filepath.Dir(path), future), mustEncode(newBatch(0, 10, 0)), 0o600)))
	l := mustOpen(t, Options{Path: path, MaxSize: MinSize})
	for i := range 10 {
		mustSend(t, l, newBatch(10+i*200, 200, 0))
	}
	checkNumbers(t, allNumbers(t, path), upTo(0, 2010))
	qt.Check(t, qt.Equals(rotated(t, path)[0], future))
}

// A log that cannot be rotated goes on, but not beyond the bound.
func TestRotateFails(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path, MaxSize: MinSize, MaxTotal: 2 * MinSize})
	mustSend(t, l, newBatch(0, 100, 0))
	// The names that it can choose are too long.
	l.archive.base += strings.Repeat("x", 240)
	kept, sent := uint64(0), 0
	var err error
	for ; err == nil && sent < 100_000; sent += 100 {
		var counts sink.Counts
		counts, err = l.Send(t.Context(), newBatch(100+sent, 100, 0))
		kept += counts.Transitions
	}
	qt.Check(t, qt.ErrorIs(err, errFull))
	qt.Check(t, qt.ErrorIs(err, syscall.ENAMETOOLONG))
	size := sizeOf(t, path)
	qt.Check(t, qt.IsTrue(size <= 2*MinSize && size > MinSize), qt.Commentf("%d bytes", size))
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(0, 100+int(kept)))
	qt.Check(t, qt.IsTrue(l.Stats().RotateFailures > 0))

	l.archive.base = "conns.log"
	eventually(t, "it is rotated", func() bool {
		_, _ = l.Send(t.Context(), newBatch(0, 1, 0))
		return l.Stats().Rotated > 0
	})
	mustSend(t, l, newBatch(0, 1, 0))
}
