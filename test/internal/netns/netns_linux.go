package netns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireRoot skips the test, with the reason, if the process is not root. On
// a machine that promises privileges (CI_PRIVILEGED=1) it fails the test
// instead, so that privileged tests cannot stop running unnoticed.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI_PRIVILEGED") == "1" {
		t.Fatal("needs root, and CI_PRIVILEGED=1 says that it is there")
	}
	t.Skip("needs root")
}

// NS is a network namespace. It lasts until the test that made it ends, or as
// long as a process or a socket is in it.
type NS struct {
	t     testing.TB
	fd    int
	inode uint32
}

// New makes a namespace in which nothing exists but the loopback device, which
// is up. It skips the test if the process is not root.
func New(t testing.TB) *NS {
	t.Helper()
	RequireRoot(t)
	ns := &NS{t: t}
	err := onThread(func() error {
		if err := Unshare(); err != nil {
			return err
		}
		fd, err := openCurrent()
		ns.fd = fd
		return err
	})
	if ns.fd > 0 {
		t.Cleanup(func() { unix.Close(ns.fd) })
	}
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(ns.fd, &st); err != nil {
		t.Fatal(fmt.Errorf("inode of network namespace: %w", err))
	}
	ns.inode = uint32(st.Ino)
	return ns
}

// Unshare moves the calling thread, which must be locked, to a namespace of its
// own, with a loopback device that is up. It lasts as long as the thread stays,
// or a socket is in it.
func Unshare() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare network namespace: %w", err)
	}
	return loopbackUp()
}

// Do runs f inside the namespace, on the caller's goroutine, which is locked
// to its thread meanwhile. Sockets that f makes stay in the namespace for
// good. A goroutine that f starts is NOT in it, so package net, which starts
// some, has no place in f.
//
// Read /proc/thread-self/net in f: /proc/net is the main thread's.
func (ns *NS) Do(f func()) {
	ns.t.Helper()
	err := onThread(func() error {
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		f()
		return nil
	})
	if err != nil {
		ns.t.Fatal(err)
	}
}

// Inode is the namespace's inode number, which names it in every event.
func (ns *NS) Inode() uint32 { return ns.inode }

// Path is a path of the namespace that other processes can open too, such as
// nsenter --net=PATH.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.fd) }

// Command is exec.Command for a process inside the namespace. nsenter starts
// it and becomes it, so the process id is the program's own.
func (ns *NS) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + ns.Path(), "--", name}, args...)...)
}

// Sysctl sets a sysctl of the namespace, such as "net.ipv4.tcp_fin_timeout".
func (ns *NS) Sysctl(name, value string) {
	ns.t.Helper()
	var err error
	ns.Do(func() { err = os.WriteFile(sysctlPath(name), []byte(value), 0) })
	if err != nil {
		ns.t.Fatal(fmt.Errorf("set sysctl: %w", err))
	}
}

// HasSysctl reports whether the namespace has a sysctl of its own of that name.
func (ns *NS) HasSysctl(name string) (has bool) {
	ns.t.Helper()
	ns.Do(func() { _, err := os.Stat(sysctlPath(name)); has = err == nil })
	return has
}

func sysctlPath(name string) string {
	return filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
}

// onThread runs f on a locked thread and then returns the thread to the
// namespace in which it was. If that cannot be done the thread stays locked,
// and the runtime ends it with its goroutine.
func onThread(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := openCurrent()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
			err = fmt.Errorf("return to network namespace: %w", back)
		} else {
			runtime.UnlockOSThread()
		}
		unix.Close(home)
	}()
	return f()
}

func openCurrent() (int, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open network namespace: %w", err)
	}
	return fd, nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}
