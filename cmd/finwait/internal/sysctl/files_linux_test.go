package sysctl

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// asNobody runs f on a thread that may not read what is root's, and that ends with it.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		// Of all the identities this one is the thread's alone, and CAP_DAC_OVERRIDE goes
		// with it (cap_task_fix_setuid). An ordinary user may not, and need not.
		if _, err := unix.SetfsuidRetUid(65534); err != nil && os.Geteuid() == 0 {
			t.Errorf("setfsuid: %v", err)
			return
		}
		f()
	}()
	<-done
}

// TestNoPermission has files and folders that the reader may not read: each is a
// problem, and replaces others all the same.
func TestNoPermission(t *testing.T) {
	const line = "vm.swappiness = 1\n"
	root := plant(t, map[string]string{
		"/etc/sysctl.d/a.conf": line, "/usr/lib/sysctl.d/a.conf": line, "/usr/lib/sysctl.d/b.conf": line,
		"/run/sysctl.d/c.conf": line, credential: line, "/etc/sysctl.conf": line,
	})
	qt.Assert(t, qt.IsNil(os.Chmod(filepath.Dir(root), 0o755)))
	for _, path := range []string{"/etc/sysctl.d/a.conf", "/run/sysctl.d", filepath.Dir(credential), "/etc/sysctl.conf"} {
		outside := filepath.Join(root, path)
		qt.Assert(t, qt.IsNil(os.Chmod(outside, 0)))
		t.Cleanup(func() { os.Chmod(outside, 0o755) })
	}
	asNobody(t, func() {
		f, err := ReadFiles(root)
		if !qt.Check(t, qt.IsNil(err)) {
			return
		}
		qt.Check(t, qt.DeepEquals(show(f.Lines...), []string{"/usr/lib/sysctl.d/b.conf:1"}))
		qt.Check(t, qt.DeepEquals(f.Replaced, []Replaced{{File: "/usr/lib/sysctl.d/a.conf", By: "/etc/sysctl.d/a.conf"}}))
		qt.Check(t, qt.DeepEquals(f.Conf, Conf{Exists: true}))
		qt.Check(t, qt.DeepEquals(showProblems(f), []string{
			"/run/sysctl.d: permission denied", "/etc/sysctl.d/a.conf: permission denied",
			credential + ": permission denied", "/etc/sysctl.conf: permission denied",
		}))
		for _, p := range f.Problems {
			qt.Check(t, qt.IsTrue(errors.Is(p.Err, fs.ErrPermission)))
		}
	})
}

// TestPipe has a pipe among the files, which nobody writes to.
func TestPipe(t *testing.T) {
	root := plant(t, map[string]string{"/etc/sysctl.d/": ""})
	qt.Assert(t, qt.IsNil(unix.Mkfifo(filepath.Join(root, "/etc/sysctl.d/a.conf"), 0o644)))
	f, err := ReadFiles(root)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(showProblems(f), []string{"/etc/sysctl.d/a.conf: not a regular file"}))
}

// TestReadFilesOfHost reads those of this host, where each line is in its file.
func TestReadFilesOfHost(t *testing.T) {
	f, err := ReadFiles("/")
	qt.Assert(t, qt.IsNil(err))
	t.Logf("%d lines, %d replaced, %+v, problems %v", len(f.Lines), len(f.Replaced), f.Conf, f.Problems)
	for _, l := range f.Lines {
		_, err := os.Stat(l.File)
		qt.Check(t, qt.IsNil(err))
	}
}
