package tracer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// netns is a network namespace that is held open. Its inode number on nsfs is
// its identity for as long as that is so.
type netns struct {
	fd    int
	inode uint32
	name  string
}

func (n *netns) close() { unix.Close(n.fd) }

// threadNetns opens the network namespace of the calling thread.
func threadNetns() (netns, error) { return openNetns(unix.AT_FDCWD, "/proc/thread-self/ns/net") }

// openNetns opens the network namespace that the file at path, relative to the
// directory dirfd, stands for.
func openNetns(dirfd int, path string) (netns, error) {
	fd, err := unix.Openat(dirfd, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return netns{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return netns{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return netns{fd: fd, inode: uint32(st.Ino)}, nil
}

// enter moves the calling thread, which must be locked, into the namespace.
func (n *netns) enter() error {
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %d: %w", n.inode, os.NewSyscallError("setns", err))
	}
	return nil
}

// enterEach calls visit in each namespace of work, on a thread of its own, and
// done with what came of it. It must be the last thing that its goroutine does:
// where the thread cannot be brought back to its own namespace it stays locked,
// so that the runtime ends it with the goroutine. It returns an error only if
// the thread could not be prepared.
func enterEach(ctx context.Context, work <-chan *netns, visit func(*netns) error, done func(*netns, error)) error {
	runtime.LockOSThread()
	home, err := threadNetns()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.close()

	at := home.inode
	for n := range work {
		if ctx.Err() != nil {
			break
		}
		var err error
		if at != n.inode {
			if err = n.enter(); err == nil {
				at = n.inode
			}
		}
		if err == nil {
			err = visit(n)
		}
		if ctx.Err() != nil {
			break
		}
		done(n, err)
	}
	if at == home.inode || home.enter() == nil {
		runtime.UnlockOSThread()
	}
	return nil
}

// enterAll visits all namespaces, several at once. newVisit is called for each
// thread, and what it returns on that thread in each namespace. done is called with
// what came of it, one call at a time, in no particular order; the result means
// something only if there is no error. enterAll returns an error only if ctx is
// done or no thread could be prepared.
func enterAll[T any](ctx context.Context, spaces []netns, newVisit func() func(*netns) (T, error), done func(*netns, T, error)) error {
	work := queue(spaces)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for range min(runtime.GOMAXPROCS(0), len(spaces)) {
		wg.Go(func() {
			visit := newVisit()
			var result T
			err := enterEach(ctx, work, func(n *netns) (err error) {
				result, err = visit(n)
				return err
			}, func(n *netns, err error) {
				mu.Lock()
				defer mu.Unlock()
				done(n, result, err)
			})
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// queue returns the namespaces as work for enterEach.
func queue(spaces []netns) <-chan *netns {
	work := make(chan *netns, len(spaces))
	for i := range spaces {
		work <- &spaces[i]
	}
	close(work)
	return work
}

// netnsLedger keeps count of what came of the namespaces that were visited.
type netnsLedger struct {
	missed *CensusMissed
	read   int
	first  error
}

func (l *netnsLedger) add(n *netns, inexact bool, err error) {
	if err != nil {
		l.first = cmp.Or(l.first, err)
		l.missed.Netns = append(l.missed.Netns, MissedNetns{Netns: n.inode, Name: n.name, Err: err})
		return
	}
	l.read++
	if inexact {
		l.missed.Inexact = append(l.missed.Inexact, n.inode)
	}
}

// err returns an error if nothing could be read.
func (l *netnsLedger) err() error {
	switch {
	case l.read > 0:
		return nil
	case l.first != nil:
		return l.first
	}
	return errors.New("no network namespace can be seen (is /proc mounted?)")
}

// netnsFinder collects the network namespaces of the host, each once.
type netnsFinder struct {
	found    []netns
	seen     map[uint32]bool
	names    map[uint32]string
	vanished map[uint32]bool
	missed   *CensusMissed
}

// findNetns opens every network namespace that AllNetns speaks of, and notes in
// missed those that it could not open. The caller closes what it returns.
func findNetns(missed *CensusMissed) ([]netns, error) {
	f := &netnsFinder{
		seen:     map[uint32]bool{},
		names:    map[uint32]string{},
		vanished: map[uint32]bool{},
		missed:   missed,
	}
	if err := f.addProcesses(); err != nil {
		closeAllNetns(f.found)
		return nil, fmt.Errorf("find network namespaces: %w", err)
	}
	f.addMounts("/proc/self/mountinfo", "")
	f.addMounts("/proc/1/mountinfo", "/proc/1/root")
	for i := range f.found {
		f.found[i].name = f.names[f.found[i].inode]
	}
	for i := range missed.Netns {
		missed.Netns[i].Name = f.names[missed.Netns[i].Netns]
	}
	for inode := range f.vanished {
		missed.Vanished = append(missed.Vanished, inode)
	}
	return f.found, nil
}

func closeAllNetns(spaces []netns) {
	for i := range spaces {
		spaces[i].close()
	}
}

// addProcesses adds the namespaces of every thread in /proc: a thread can leave
// the namespace of its process.
func (f *netnsFinder) addProcesses() error {
	proc, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc", Err: err}
	}
	defer unix.Close(proc)
	dir, tasks := newDirReader(), newDirReader()
	return dir.each(proc, func(pid []byte) {
		if isNumber(pid) {
			f.addThreads(proc, string(pid)+"/task", tasks)
		}
	})
}

// addThreads adds the namespaces of the threads in the directory at path. A
// process or thread that has ended meanwhile has none, which is no error.
func (f *netnsFinder) addThreads(proc int, path string, dir *dirReader) {
	task, err := unix.Openat(proc, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(task)
	hidden := false
	// An error of getdents means that the process ended while it was read.
	_ = dir.each(task, func(tid []byte) {
		if isNumber(tid) {
			hidden = isDenied(f.add(task, string(tid)+"/ns/net", 0)) || hidden
		}
	})
	if hidden {
		f.missed.HiddenProcesses++
	}
}

// add opens the namespace at path unless it is known. want is its inode number
// if that is known, else 0. It returns the error of looking the path up;
// a namespace that is there and cannot be opened goes into the ledger.
func (f *netnsFinder) add(dirfd int, path string, want uint32) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, path, &st, 0); err != nil {
		return err
	}
	inode := uint32(st.Ino)
	if f.seen[inode] || want != 0 && want != inode {
		return nil
	}
	n, err := openNetns(dirfd, path)
	switch {
	case err == nil && f.seen[n.inode]:
		n.close() // the thread moved between the two calls
	case err == nil:
		f.seen[n.inode] = true
		delete(f.vanished, n.inode)
		f.found = append(f.found, n)
	case isGone(err):
		f.vanished[inode] = true
	default:
		f.seen[inode] = true
		f.missed.Netns = append(f.missed.Netns, MissedNetns{Netns: inode, Err: err})
	}
	return nil
}

// addMounts adds the namespaces that are bind-mounted according to the
// mountinfo file, whose mount points are relative to root, and learns their
// names. A file that is not to be had is no error: it adds to what the
// processes showed, and one that is hidden is counted there.
func (f *netnsFinder) addMounts(file, root string) {
	data, err := os.ReadFile(file)
	if err != nil {
		return
	}
	for line := range bytes.Lines(data) {
		inode, point, ok := parseNetnsMount(line)
		if !ok {
			continue
		}
		if _, known := f.names[inode]; !known || isIPNetns(point) {
			f.names[inode] = path.Base(point)
		}
		if !f.seen[inode] {
			// A mount may hide below another: the inode number tells.
			_ = f.add(unix.AT_FDCWD, root+point, inode)
		}
	}
}

// isIPNetns reports whether ip netns made the mount point. That name wins over
// others: it is the one people know.
func isIPNetns(point string) bool {
	dir := path.Dir(point)
	return dir == "/run/netns" || dir == "/var/run/netns"
}

// parseNetnsMount returns the inode number and the mount point of a network
// namespace from a line of mountinfo; ok is false if it is another mount.
func parseNetnsMount(line []byte) (inode uint32, point string, ok bool) {
	// 36 35 0:4 net:[4026532281] /run/netns/blue rw shared:1 - nsfs nsfs rw
	var fields [5][]byte
	rest := line
	for i := range fields {
		fields[i], rest, _ = bytes.Cut(rest, []byte(" "))
	}
	number, isNet := bytes.CutPrefix(fields[3], []byte("net:["))
	number, closed := bytes.CutSuffix(number, []byte("]"))
	if !isNet || !closed || len(fields[4]) == 0 {
		return 0, "", false
	}
	n, err := strconv.ParseUint(string(number), 10, 32)
	if err != nil {
		return 0, "", false
	}
	return uint32(n), unescapeMount(string(fields[4])), true
}

// unescapeMount undoes the kernel's escapes of space, tab, newline and
// backslash in a mount point: a backslash and three octal digits.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(c))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

func isDenied(err error) bool { return errors.Is(err, os.ErrPermission) }

func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// dirReader reads directories without an allocation per entry. It serves one
// directory at a time.
type dirReader struct{ buf []byte }

func newDirReader() *dirReader { return &dirReader{buf: make([]byte, 32<<10)} }

// Offsets of struct linux_dirent64.
const (
	direntReclen = 16
	direntName   = 19
)

// each calls visit with the name of every entry of the directory fd. The name
// is valid until visit returns.
func (r *dirReader) each(fd int, visit func(name []byte)) error {
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.ReadDirent(fd, r.buf) })
		if err != nil || n == 0 {
			return os.NewSyscallError("getdents", err)
		}
		for b := r.buf[:n]; len(b) > direntName; {
			size := int(b[direntReclen]) | int(b[direntReclen+1])<<8
			if size <= direntName || size > len(b) {
				break
			}
			name, _, _ := bytes.Cut(b[direntName:size], []byte{0})
			visit(name)
			b = b[size:]
		}
	}
}

func isNumber(s []byte) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(s) > 0
}
