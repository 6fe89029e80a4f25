package logfile

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
