package logfile

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/tracer"
)

// newBatch returns transitions and connections with numbers from first on.
func newBatch(first, transitions, conns int) *sink.Batch {
	var b sink.Batch
	for i := range transitions {
		b.Transitions = append(b.Transitions, newEvent(first+i))
	}
	for i := range conns {
		ev := newEvent(first + transitions + i)
		c := tracer.Conn{Start: ev.Time, End: ev.Time, Cookie: ev.Cookie, Family: ev.Family, Local: ev.Local, Remote: ev.Remote, Owner: ev.Owner}
		c.SetWalk(tracer.Visit{State: tracer.StateEstablished, Dwell: time.Second, DwellKnown: true})
		b.Conns = append(b.Conns, c)
	}
	return &b
}

// newEvent returns that of a number, which is one less than its cookie: that is not 0.
func newEvent(number int) tracer.Event {
	ev := tracer.Event{
		Time:       time.Now().UTC(),
		Transition: tracer.Transition{Old: tracer.StateFinWait2, New: tracer.StateTimeWait},
		Dwell:      time.Millisecond, DwellKnown: true,
		Cookie: uint64(number) + 1, Netns: 4026531840, Family: tracer.FamilyIPv4,
		Local: netip.MustParseAddrPort("10.0.0.1:48132"), Remote: netip.MustParseAddrPort("10.0.0.2:443"),
		Owner: tracer.Owner{Origin: tracer.OriginConnect, PID: 4194304, UID: 1000},
		Role:  tracer.RoleClient, Evidence: tracer.EvidenceTimer,
	}
	ev.Owner.SetComm("curl \"\n")
	return ev
}

func mustOpen(t testing.TB, opts Options) *Log {
	t.Helper()
	l, err := Open(opts)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// mustSend sends a batch, all of which must be kept.
func mustSend(t testing.TB, l *Log, b *sink.Batch) {
	t.Helper()
	kept, err := l.Send(t.Context(), b)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(kept, b.Counts()))
}

// numbers returns those of the records in data, each of which must be a whole line.
func numbers(t testing.TB, data []byte) []int {
	t.Helper()
	var all []int
	for line := range bytes.Lines(data) {
		qt.Assert(t, qt.IsTrue(bytes.HasSuffix(line, []byte("}\n"))), qt.Commentf("half a line: %q", line))
		var record struct {
			Cookie string `json:"cookie"`
		}
		qt.Assert(t, qt.IsNil(json.Unmarshal(line, &record)), qt.Commentf("%q", line))
		n, err := strconv.Atoi(record.Cookie)
		qt.Assert(t, qt.IsNil(err))
		all = append(all, n-1)
	}
	return all
}

// readLog returns what is in a file, which may be compressed.
func readLog(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	var r io.Reader = bufio.NewReader(f)
	switch filepath.Ext(path) {
	case ".gz":
		r, err = gzip.NewReader(r)
	case ".zst":
		r, err = zstd.NewReader(r)
	}
	qt.Assert(t, qt.IsNil(err))
	data, err := io.ReadAll(r)
	qt.Assert(t, qt.IsNil(err))
	return data
}

// allNumbers returns those of the log and of all rotated files of it, the oldest
// first.
func allNumbers(t testing.TB, path string) []int {
	t.Helper()
	var data []byte
	for _, name := range rotated(t, path) {
		data = append(data, readLog(t, filepath.Join(filepath.Dir(path), name))...)
	}
	return numbers(t, append(data, readLog(t, path)...))
}

// rotated returns the names of all that is in the directory beside the log.
func rotated(t testing.TB, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	qt.Assert(t, qt.IsNil(err))
	var names []string
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			names = append(names, e.Name())
		}
	}
	return names
}

// compressed tells whether all names beside the log end so.
func compressed(t testing.TB, path, extension string) bool {
	t.Helper()
	for _, name := range rotated(t, path) {
		if !strings.HasSuffix(name, extension) {
			return false
		}
	}
	return true
}

// checkNumbers compares all, and shows the first that differs.
func checkNumbers(t testing.TB, got, want []int) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("record %d is %d, want %d", i, got[i], want[i])
			return
		}
	}
	qt.Check(t, qt.Equals(len(got), len(want)))
}

// upTo returns the numbers from first to end.
func upTo(first, end int) []int {
	var all []int
	for i := first; i < end; i++ {
		all = append(all, i)
	}
	return all
}

func logPath(t testing.TB) string { return filepath.Join(t.TempDir(), "conns.log") }

// eventually waits until done says so.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSend(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path})
	mustSend(t, l, newBatch(0, 23, 17))
	mustSend(t, l, newBatch(40, 0, 0))
	mustSend(t, l, newBatch(40, 0, 1999)) // more than a piece
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(0, 2039))
	info, err := os.Stat(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.Mode().Perm()&^0o640, 0))
	qt.Check(t, qt.Equals(l.Stats(), Stats{Bytes: info.Size(), Files: 1}))
}

func TestSendCanceled(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	kept, err := l.Send(ctx, newBatch(0, 23, 0))
	qt.Check(t, qt.ErrorIs(err, context.Canceled))
	qt.Check(t, qt.Equals(kept, sink.Counts{}))
	qt.Check(t, qt.HasLen(readLog(t, path), 0))
}

func TestPrefix(t *testing.T) {
	b := newBatch(0, 3, 2)
	for n, want := range []sink.Counts{{}, {Transitions: 1}, {Transitions: 2}, {Transitions: 3}, {Transitions: 3, Conns: 1}, {Transitions: 3, Conns: 2}} {
		qt.Check(t, qt.Equals(prefix(b, n), want))
	}
}

func TestNoAllocationPerRecord(t *testing.T) {
	l := mustOpen(t, Options{Path: logPath(t)})
	b := newBatch(0, 500, 500)
	mustSend(t, l, b)
	allocs := testing.AllocsPerRun(10, func() { mustSend(t, l, b) })
	qt.Check(t, qt.IsTrue(allocs < 100), qt.Commentf("%v allocations for %d records", allocs, b.Counts().Total()))
}

func TestOptions(t *testing.T) {
	for name, opts := range map[string]Options{
		"no path":          {},
		"small":            {Path: "x", MaxSize: MinSize - 1},
		"negative size":    {Path: "x", MaxSize: -1},
		"negative age":     {Path: "x", MaxAge: -1},
		"total below size": {Path: "x", MaxSize: MinSize, MaxTotal: 2*MinSize - 1},
		"small total":      {Path: "x", MaxTotal: 2*MinSize - 1},
		"negative total":   {Path: "x", MaxTotal: -1},
		"compression":      {Path: "x", Compress: "lz4"},
		"sync":             {Path: "x", Sync: -2},
	} {
		_, err := Open(opts)
		qt.Check(t, qt.IsNotNil(err), qt.Commentf("%s", name))
	}
	opts, err := Options{Path: "x", MaxTotal: 2 * MinSize}.validate()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(opts.MaxSize, MinSize))
}

func TestParseSync(t *testing.T) {
	for text, want := range map[string]Sync{"never": SyncNever, "rotate": SyncRotate, "5s": Sync(5 * time.Second), "1m30s": Sync(90 * time.Second)} {
		got, err := ParseSync(text)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(got, want))
		qt.Check(t, qt.Equals(got.String(), text))
	}
	for _, text := range []string{"", "always", "0s", "-1s", "5", "Never"} {
		_, err := ParseSync(text)
		qt.Check(t, qt.IsNotNil(err), qt.Commentf("%q", text))
	}
}

// A file that a killed process has left is cut back to its last whole line, and
// nothing else is.
func TestMend(t *testing.T) {
	whole := string(mustEncode(newBatch(0, 1, 0)))
	for _, tt := range []struct {
		name, before, want string
		torn, patched      uint64
	}{
		{"empty", "", "", 0, 0},
		{"whole", whole, whole, 0, 0},
		{"one byte", whole + "{", whole, 1, 0},
		{"half", whole + whole[:len(whole)/2], whole, 1, 0},
		{"no line end", whole + whole[:len(whole)-1], whole, 1, 0},
		{"nothing but half", whole[:40], "", 1, 0},
		{"zeros", whole + strings.Repeat("\x00", 9999), whole, 1, 0},
		{"half and zeros", whole + whole[:99] + strings.Repeat("\x00", 4096), whole, 1, 0},
		{"something else", "root:x:0", "root:x:0\n", 0, 1},
		{"something else behind", whole + "[1,2", whole + "[1,2\n", 0, 1},
		{"zeros alone", "\x00\x00", "\x00\x00\n", 0, 1},
		{"long", whole + recordStart + strings.Repeat("x", 2*pieceSize), whole + recordStart + strings.Repeat("x", 2*pieceSize) + "\n", 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := logPath(t)
			qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(tt.before), 0o600)))
			l := mustOpen(t, Options{Path: path})
			b := newBatch(1, 1, 0)
			mustSend(t, l, b)
			qt.Check(t, qt.Equals(string(readLog(t, path)), tt.want+string(mustEncode(b))))
			s := l.Stats()
			qt.Check(t, qt.Equals(s.Torn, tt.torn))
			qt.Check(t, qt.Equals(s.Patched, tt.patched))
		})
	}
}

// What was to be ended may be gone when the next record comes.
func TestMendCut(t *testing.T) {
	for size, want := range []string{"", "r\n", "ro\n"} {
		path := logPath(t)
		qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte("root"), 0o600)))
		l := mustOpen(t, Options{Path: path})
		qt.Assert(t, qt.IsNil(os.Truncate(path, int64(size))))
		b := newBatch(0, 1, 0)
		mustSend(t, l, b)
		qt.Check(t, qt.Equals(string(readLog(t, path)), want+string(mustEncode(b))))
	}
}

// A log that has got no record leaves alone what was there.
func TestMendNothing(t *testing.T) {
	path := logPath(t)
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte("root"), 0o600)))
	qt.Assert(t, qt.IsNil(mustOpen(t, Options{Path: path, MaxSize: MinSize}).Close()))
	qt.Check(t, qt.Equals(string(readLog(t, path)), "root"))
}

// mustEncode returns the lines of a batch.
func mustEncode(b *sink.Batch) []byte {
	l, err := Open(Options{Path: "-"})
	if err != nil {
		panic(err)
	}
	l.encode(b, 0)
	return l.buf
}

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

// An interval syncs without another record, and an idle log does nothing.
func TestSyncInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustOpen(t, Options{Path: logPath(t), Sync: Sync(5 * time.Second)})
		mustSend(t, l, newBatch(0, 23, 0))
		synctest.Wait()
		dirty := func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return !l.dirtyAt.IsZero()
		}
		time.Sleep(5*time.Second - time.Nanosecond)
		synctest.Wait()
		qt.Check(t, qt.IsTrue(dirty()))
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		qt.Check(t, qt.IsFalse(dirty()))
		// A sync that fails is counted: the file is a pipe all of a sudden.
		mustSend(t, l, newBatch(23, 23, 0))
		r, w, err := os.Pipe()
		qt.Assert(t, qt.IsNil(err))
		defer r.Close()
		l.mu.Lock()
		file := l.file
		l.file = w
		l.mu.Unlock()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		qt.Check(t, qt.Equals(l.Stats().SyncFailures, 1))
		l.mu.Lock()
		l.file = file
		l.mu.Unlock()
		w.Close()
		qt.Assert(t, qt.IsNil(l.Close()))
	})
}

// What is rotated or moved away is synced, unless nothing is to be. A pipe cannot be,
// which shows that it was tried.
func TestSyncWhenLeft(t *testing.T) {
	for sync, want := range map[Sync]uint64{SyncNever: 0, SyncRotate: 1, Sync(time.Hour): 1} {
		l := mustOpen(t, Options{Path: logPath(t), Sync: sync})
		r, w, err := os.Pipe()
		qt.Assert(t, qt.IsNil(err))
		l.archive.retire(w)
		eventually(t, "it is closed", func() bool { _, err := w.Stat(); return err != nil })
		qt.Assert(t, qt.IsNil(r.Close()))
		qt.Assert(t, qt.IsNil(l.Close())) // all is done
		qt.Check(t, qt.Equals(l.Stats().SyncFailures, want), qt.Commentf("%v", sync))
	}
}

func TestSymbolicLink(t *testing.T) {
	dir := t.TempDir()
	real, err := filepath.EvalSymlinks(dir)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(os.Mkdir(filepath.Join(dir, "data"), 0o700)))
	link := filepath.Join(dir, "conns.log")
	qt.Assert(t, qt.IsNil(os.Symlink("data/real.log", link))) // to nothing
	l := mustOpen(t, Options{Path: link, MaxSize: MinSize})
	for i := range 2 {
		mustSend(t, l, newBatch(i*150, 150, 0))
	}
	path := filepath.Join(real, "data", "real.log")
	checkNumbers(t, allNumbers(t, path), upTo(0, 300))
	qt.Check(t, qt.HasLen(rotated(t, path), 1))

	// A link that comes later is not followed.
	victim := filepath.Join(dir, "victim")
	qt.Assert(t, qt.IsNil(os.WriteFile(victim, nil, 0o600)))
	qt.Assert(t, qt.IsNil(os.Remove(path)))
	qt.Assert(t, qt.IsNil(os.Symlink(victim, path)))
	_, err = l.Send(t.Context(), newBatch(300, 1, 0))
	qt.Check(t, qt.ErrorMatches(err, ".*symbolic link.*"))
	qt.Check(t, qt.HasLen(readLog(t, victim), 0))
}

func TestLinkToItself(t *testing.T) {
	path := logPath(t)
	qt.Assert(t, qt.IsNil(os.Symlink(path, path)))
	_, err := Open(Options{Path: path})
	qt.Check(t, qt.IsNotNil(err))
}

func TestNoFile(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/dev/zero", "/dev/full"} {
		_, err := Open(Options{Path: path})
		qt.Check(t, qt.IsNotNil(err), qt.Commentf("%s", path))
	}
}

func TestClose(t *testing.T) {
	for _, sync := range []Sync{SyncNever, SyncRotate, Sync(time.Hour)} {
		l := mustOpen(t, Options{Path: logPath(t), Sync: sync, MaxAge: time.Hour})
		mustSend(t, l, newBatch(0, 23, 0))
		qt.Check(t, qt.IsNil(l.Close()))
		qt.Check(t, qt.IsNil(l.Close()))
		qt.Check(t, qt.Equals(l.Stats().SyncFailures, 0))
	}
}

// After an error that is not of the disk being full, the file is opened anew.
func TestWriteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := logPath(t)
		l := mustOpen(t, Options{Path: path})
		mustSend(t, l, newBatch(0, 23, 0))
		broken, err := os.Open(path) // cannot be written
		qt.Assert(t, qt.IsNil(err))
		l.mu.Lock()
		l.file.Close()
		l.file = broken
		l.mu.Unlock()
		kept, err := l.Send(t.Context(), newBatch(23, 23, 0))
		qt.Check(t, qt.IsNotNil(err))
		qt.Check(t, qt.Equals(kept, sink.Counts{}))
		time.Sleep(retryInterval)
		mustSend(t, l, newBatch(46, 23, 0))
		checkNumbers(t, numbers(t, readLog(t, path)), append(upTo(0, 23), upTo(46, 69)...))
		qt.Assert(t, qt.IsNil(l.Close()))
	})
}

// BenchmarkSend writes batches as the agent does, to a file in the directory that
// tests have, which may be in memory.
func BenchmarkSend(b *testing.B) {
	for _, opts := range []Options{
		{},
		{Sync: SyncRotate, MaxSize: 100 << 20},
		{Sync: Sync(time.Second)},
		{Sync: Sync(time.Second), MaxSize: 32 << 20, MaxTotal: 256 << 20, Compress: "zstd"},
	} {
		b.Run("sync="+opts.Sync.String()+" compress="+opts.Compress, func(b *testing.B) {
			opts.Path = logPath(b)
			l := mustOpen(b, opts)
			batch := newBatch(0, 1000, 0)
			b.SetBytes(10 * int64(len(mustEncode(newBatch(0, 100, 0))))) // a piece holds 100
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Send(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
		})
	}
}
