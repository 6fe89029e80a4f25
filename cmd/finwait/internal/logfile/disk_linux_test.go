package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
)

// onSmallDisk runs the test in a process that has a tmpfs of 1 MiB to itself. It
// returns its directory in that process, and false in the other.
func onSmallDisk(t *testing.T, options string) (string, bool) {
	t.Helper()
	requireRoot(t)
	dir, inside := inChild(t, t.TempDir(), &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS})
	if inside {
		qt.Assert(t, qt.IsNil(unix.Mount("tmpfs", dir, "tmpfs", 0, options)))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	return dir, inside
}

// ballast takes that many bytes of the disk until it is removed.
func ballast(t *testing.T, dir string, size int) (remove func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, make([]byte, size), 0o600)))
	return func() { qt.Assert(t, qt.IsNil(os.Remove(path))) }
}

// sendAll sends batches and returns the numbers that are kept, as Send says, and
// the last error.
func sendAll(t *testing.T, l *Log, first, batches int) (kept []int, last error) {
	t.Helper()
	const each = 150
	for i := range batches {
		b := newBatch(first+i*each, each/2, each/2)
		counts, err := l.Send(t.Context(), b)
		qt.Assert(t, qt.Equals(counts.Total() == each, err == nil), qt.Commentf("%v", err))
		qt.Assert(t, qt.IsTrue(counts.Conns == 0 || counts.Transitions == each/2))
		n := int(counts.Total())
		kept = append(kept, upTo(first+i*each, first+i*each+n)...)
		if err != nil {
			last = err
		}
	}
	return kept, last
}

// Every line of a log on a full disk is whole, and what counts as kept is there.
// When there is room again it goes on.
func TestFullDisk(t *testing.T) {
	dir, inside := onSmallDisk(t, "size=1m")
	if !inside {
		return
	}
	for _, opts := range []Options{
		{},
		{Sync: Sync(time.Millisecond)},
		{MaxSize: MinSize},
		{MaxSize: 3 * MinSize, Compress: "gzip"},
	} {
		t.Run(fmt.Sprintf("%d %s", opts.MaxSize, opts.Compress), func(t *testing.T) {
			opts.Path = filepath.Join(dir, "conns.log")
			remove := ballast(t, dir, 500_000)
			l := mustOpen(t, opts)
			kept, err := sendAll(t, l, 0, 60)
			// What is compressed makes room meanwhile.
			for more := 1; err == nil; more++ {
				var also []int
				also, err = sendAll(t, l, more*60*150, 60)
				kept = append(kept, also...)
			}
			qt.Check(t, qt.ErrorIs(err, unix.ENOSPC))
			remove()
			eventually(t, "it works again", func() bool {
				also, err := sendAll(t, l, 1_000_000+len(kept)*150, 1)
				kept = append(kept, also...)
				return err == nil
			})
			also, err := sendAll(t, l, 900_000_000, 3)
			qt.Check(t, qt.IsNil(err))
			kept = append(kept, also...)
			s := l.Stats()
			qt.Assert(t, qt.IsNil(l.Close()))
			checkNumbers(t, allNumbers(t, opts.Path), kept)
			if opts.MaxSize == 0 {
				qt.Check(t, qt.IsTrue(s.Torn > 0))
			}
			qt.Check(t, qt.Equals(s.Patched, 0))
			for _, name := range append(rotated(t, opts.Path), "conns.log") {
				qt.Assert(t, qt.IsNil(os.Remove(filepath.Join(dir, name))))
			}
		})
	}
}

// So it is with standard output that was sent to a file.
func TestFullDiskStdout(t *testing.T) {
	dir, inside := onSmallDisk(t, "size=1m")
	if !inside {
		return
	}
	for _, flags := range []int{0, os.O_APPEND} {
		path := filepath.Join(dir, "out")
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|flags, 0o600)
		qt.Assert(t, qt.IsNil(err))
		remove := ballast(t, dir, 500_000)
		stdout := os.Stdout
		os.Stdout = f
		l, err := Open(Options{Path: "-"})
		os.Stdout = stdout
		qt.Assert(t, qt.IsNil(err))
		kept, err := sendAll(t, l, 0, 30)
		qt.Check(t, qt.ErrorIs(err, unix.ENOSPC))
		remove()
		also, err := sendAll(t, l, 900_000_000, 3)
		qt.Check(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(l.Close()))
		checkNumbers(t, numbers(t, readLog(t, path)), append(kept, also...))
		qt.Check(t, qt.IsTrue(l.Stats().Torn > 0))
		qt.Assert(t, qt.IsNil(f.Close()))
	}
}

// What cannot be cut off is ended later, at the end if no record comes.
func TestFullDiskAppendOnly(t *testing.T) {
	dir, inside := onSmallDisk(t, "size=1m")
	if !inside {
		return
	}
	for _, batches := range []int{3, 0} {
		path := filepath.Join(dir, fmt.Sprint(batches), "conns.log")
		qt.Assert(t, qt.IsNil(os.Mkdir(filepath.Dir(path), 0o700)))
		testAppendOnly(t, path, batches)
	}
}

// testAppendOnly sends so many batches after there is room again.
func testAppendOnly(t *testing.T, path string, batches int) {
	t.Helper()
	remove := ballast(t, filepath.Dir(path), 500_000)
	l := mustOpen(t, Options{Path: path})
	const appendOnly = 0x20 // FS_APPEND_FL, chattr +a
	err := setFlags(path, appendOnly)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel's tmpfs has no files that can only be appended to (6.6 has)")
	}
	qt.Assert(t, qt.IsNil(err))
	kept, err := sendAll(t, l, 0, 30)
	qt.Check(t, qt.ErrorIs(err, unix.ENOSPC))
	remove()
	also, err := sendAll(t, l, 900_000_000, batches)
	qt.Check(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(l.Close()))
	qt.Check(t, qt.Equals(l.Stats().Patched, 1))
	qt.Check(t, qt.Equals(l.Stats().Torn, 0))
	got := numbers(t, readLog(t, path))
	// It is there, though it did not count as kept.
	checkNumbers(t, got[:len(kept)], kept)
	checkNumbers(t, got[len(kept)+1:], also)
	qt.Assert(t, qt.IsNil(setFlags(path, 0)))
	qt.Assert(t, qt.IsNil(os.Remove(path)))
}

func setFlags(path string, flags int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return control(f, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags) })
}

// The queue in front of a log has every record in its ledger.
func TestFullDiskLedger(t *testing.T) {
	dir, inside := onSmallDisk(t, "size=1m")
	if !inside {
		return
	}
	path := filepath.Join(dir, "conns.log")
	l, err := Open(Options{Path: path})
	qt.Assert(t, qt.IsNil(err))
	const batches, each = 40, 200
	room := sink.Counts{Transitions: batches * each, Conns: batches * each}
	q := sink.Start(l, sink.Options{Name: "log", Room: room, Batch: sink.Counts{Transitions: 230, Conns: 230}, Log: slog.New(slog.DiscardHandler)})
	for i := range batches {
		q.Put(newBatch(i*each, each/2, each/2))
	}
	qt.Assert(t, qt.IsNil(q.Close(t.Context())))
	ledger := q.Ledger()
	qt.Check(t, qt.Equals(ledger.Put.Total(), batches*each))
	qt.Check(t, qt.Equals(ledger.QueueFull.Total(), 0))
	qt.Check(t, qt.IsTrue(ledger.Failed.Total() > 0))
	qt.Check(t, qt.Equals(ledger.Kept.Total()+ledger.Failed.Total(), ledger.Put.Total()))
	qt.Check(t, qt.Equals(uint64(len(numbers(t, readLog(t, path)))), ledger.Kept.Total()))
}

// An agent can start when there is no room for a file, and while the disk can only
// be read.
func TestOpenOnFullDisk(t *testing.T) {
	dir, inside := onSmallDisk(t, "size=1m,nr_inodes=20")
	if !inside {
		return
	}
	var err error
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(dir, fmt.Sprint("filler", i)), nil, 0o600)
	}
	qt.Assert(t, qt.ErrorIs(err, unix.ENOSPC))
	path := filepath.Join(dir, "conns.log")
	l := mustOpen(t, Options{Path: path, MaxSize: MinSize, MaxTotal: 2 * MinSize, Compress: "gzip"})
	kept, err := l.Send(t.Context(), newBatch(0, 23, 0))
	qt.Check(t, qt.ErrorIs(err, unix.ENOSPC))
	qt.Check(t, qt.Equals(kept, sink.Counts{}))

	qt.Assert(t, qt.IsNil(os.Remove(filepath.Join(dir, "filler0"))))
	eventually(t, "the log is opened", func() bool { kept, err = l.Send(t.Context(), newBatch(23, 23, 0)); return err == nil })
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(23, 46))

	remount := func(flags uintptr) { qt.Assert(t, qt.IsNil(unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""))) }
	qt.Assert(t, qt.IsNil(l.Close()))
	remount(unix.MS_RDONLY)
	_, err = Open(Options{Path: filepath.Join(dir, "another.log")})
	qt.Check(t, qt.ErrorIs(err, unix.EROFS), qt.Commentf("a mistake, such as a folder that the service may not write to"))
	remount(0)
	l = mustOpen(t, Options{Path: path})
	eventually(t, "the log is opened", func() bool { kept, err = l.Send(t.Context(), newBatch(46, 23, 0)); return err == nil })
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(23, 69))
}

// A process that is not root loses its directory, and gets it back.
func TestPermission(t *testing.T) {
	requireUnprivileged := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	dir := ""
	if os.Getenv(insideVar) == "" {
		requireRoot(t)
		var err error
		dir, err = os.MkdirTemp("", "") // the one of the test is in one that is root's alone
		qt.Assert(t, qt.IsNil(err))
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		qt.Assert(t, qt.IsNil(os.Chown(dir, 65534, 65534)))
	}
	dir, inside := inChild(t, dir, requireUnprivileged)
	if !inside {
		return
	}
	path := filepath.Join(dir, "conns.log")
	l := mustOpen(t, Options{Path: path, MaxSize: MinSize})
	mustSend(t, l, newBatch(0, 23, 0))
	allow := func(mode fs.FileMode) { qt.Assert(t, qt.IsNil(os.Chmod(dir, mode))) }

	allow(0) // the open file is written still
	mustSend(t, l, newBatch(23, 23, 0))
	allow(0o500) // and cannot be rotated
	mustSend(t, l, newBatch(46, 300, 0))
	qt.Check(t, qt.IsTrue(l.Stats().RotateFailures > 0))
	qt.Check(t, qt.Equals(l.Stats().Rotated, 0))

	allow(0o700)
	qt.Assert(t, qt.IsNil(os.Rename(path, path+".1")))
	allow(0o500) // there cannot be another one
	l.Reopen()
	kept, err := l.Send(t.Context(), newBatch(346, 23, 0))
	qt.Check(t, qt.ErrorIs(err, fs.ErrPermission))
	qt.Check(t, qt.Equals(kept, sink.Counts{}))
	allow(0o700)
	eventually(t, "the log is opened", func() bool { kept, err = l.Send(t.Context(), newBatch(369, 23, 0)); return err == nil })
	checkNumbers(t, numbers(t, readLog(t, path+".1")), upTo(0, 346))
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(369, 392))

	// At start that is a mistake.
	qt.Assert(t, qt.IsNil(l.Close()))
	qt.Assert(t, qt.IsNil(os.Chmod(path, 0o400)))
	_, err = Open(Options{Path: path})
	qt.Check(t, qt.ErrorIs(err, fs.ErrPermission))
}

// A file that may not grow any more is rotated, if files are.
func TestFileSizeLimit(t *testing.T) {
	dir, inside := inChild(t, t.TempDir(), nil)
	if !inside {
		return
	}
	var limit unix.Rlimit
	qt.Assert(t, qt.IsNil(unix.Getrlimit(unix.RLIMIT_FSIZE, &limit)))
	qt.Assert(t, qt.IsNil(unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 100_001, Max: limit.Max})))
	for name, opts := range map[string]Options{"stays": {}, "rotates": {MaxAge: time.Hour}} {
		opts.Path = filepath.Join(dir, name, "conns.log")
		qt.Assert(t, qt.IsNil(os.Mkdir(filepath.Dir(opts.Path), 0o700)))
		l := mustOpen(t, opts)
		kept, err := sendAll(t, l, 0, 10)
		qt.Check(t, qt.ErrorIs(err, unix.EFBIG))
		qt.Assert(t, qt.IsNil(l.Close())) // or it is rotated while it is looked at
		checkNumbers(t, allNumbers(t, opts.Path), kept)
		qt.Check(t, qt.IsTrue(l.Stats().Torn > 0))
		qt.Check(t, qt.Equals(l.Stats().Rotated > 0, opts.MaxAge > 0))
	}
}

// A FIFO that nobody reads fills up, and Send waits no longer than it may. All
// lines in it are whole.
func TestFIFO(t *testing.T) {
	path := logPath(t)
	qt.Assert(t, qt.IsNil(unix.Mkfifo(path, 0o600)))
	l := mustOpen(t, Options{Path: path, MaxSize: MinSize, Sync: SyncRotate})
	_, err := l.Send(t.Context(), newBatch(0, 1, 0))
	qt.Check(t, qt.ErrorIs(err, unix.ENXIO)) // no reader

	reader, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	qt.Assert(t, qt.IsNil(err))
	defer reader.Close()
	eventually(t, "the FIFO is opened", func() bool { _, err = l.Send(t.Context(), newBatch(0, 10, 0)); return err == nil })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		eventually(t, "there is something in the FIFO", func() bool { return waiting(t, reader) > 10_000 })
	}()
	kept, err := l.Send(ctx, newBatch(10, 50_000, 0))
	qt.Check(t, qt.ErrorIs(err, context.Canceled))
	qt.Check(t, qt.IsTrue(kept.Transitions > 0 && kept.Transitions < 50_000))
	checkNumbers(t, numbers(t, drain(t, reader)), upTo(0, 10+int(kept.Transitions)))
	mustSend(t, l, newBatch(0, 10, 0))
	checkNumbers(t, numbers(t, drain(t, reader)), upTo(0, 10))

	qt.Assert(t, qt.IsNil(reader.Close()))
	_, err = l.Send(t.Context(), newBatch(0, 10, 0))
	qt.Check(t, qt.ErrorIs(err, unix.EPIPE))
}

// waiting returns how many bytes are in a pipe.
func waiting(t *testing.T, f *os.File) int {
	n := 0
	err := control(f, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	qt.Check(t, qt.IsNil(err))
	return n
}

// drain returns what is in a pipe.
func drain(t *testing.T, f *os.File) []byte {
	t.Helper()
	var data []byte
	buf := make([]byte, 64<<10)
	qt.Assert(t, qt.IsNil(f.SetReadDeadline(time.Now().Add(200*time.Millisecond))))
	for {
		n, err := f.Read(buf)
		data = append(data, buf[:n]...)
		if err != nil {
			return data
		}
	}
}

// What reads standard output sees whole lines as soon as they are kept, and when
// it is gone that is an error.
func TestStdout(t *testing.T) {
	r, w, err := os.Pipe()
	qt.Assert(t, qt.IsNil(err))
	stdout := os.Stdout
	os.Stdout = w
	l, err := Open(Options{Path: "/dev/stdout", MaxSize: MinSize, MaxTotal: 2 * MinSize})
	os.Stdout = stdout
	qt.Assert(t, qt.IsNil(err))
	data := make(chan []byte)
	go func() {
		var all []byte
		buf := make([]byte, 1000)
		for !bytes.HasSuffix(all, newline) || !bytes.Contains(all, []byte(`"cookie":"3000"`)) {
			n, err := r.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				break
			}
		}
		r.Close()
		data <- all
	}()
	mustSend(t, l, newBatch(0, 1500, 1500))
	checkNumbers(t, numbers(t, <-data), upTo(0, 3000))
	_, err = l.Send(t.Context(), newBatch(0, 1, 0))
	qt.Check(t, qt.ErrorIs(err, unix.EPIPE))
	l.Reopen()
	qt.Check(t, qt.IsNil(l.Close()))
	qt.Check(t, qt.Equals(l.Stats(), Stats{}))
	_, err = w.Stat() // it is not ours to close
	qt.Check(t, qt.IsNil(err))
	w.Close()
}
