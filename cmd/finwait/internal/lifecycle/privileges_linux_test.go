package lifecycle

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// startHost starts a process of that user which has network namespaces until
// the test ends.
func startHost(t *testing.T, uid string) hosted {
	t.Helper()
	cmd := exec.Command(executable(t))
	cmd.Env = append(os.Environ(), hostUID+"="+uid)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	qt.Assert(t, qt.IsNil(err))
	out, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(cmd.Start()))
	t.Cleanup(func() {
		in.Close()
		qt.Check(t, qt.IsNil(cmd.Wait()))
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	qt.Assert(t, qt.IsNil(err))
	var h hosted
	qt.Assert(t, qt.IsNil(json.Unmarshal(line, &h)))
	return h
}

// mountNetns makes a network namespace with a socket in TIME_WAIT that nothing keeps
// but a mount, until the test ends, and returns its inode number.
func mountNetns(t *testing.T) (inode uint32) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, nil, 0o600)))
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := newNetns(&inode)
		if err == nil {
			err = errors.Join(connectHere(false), unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), path, "", unix.MS_BIND, ""), unix.Close(fd))
		}
		made <- err
	}()
	qt.Assert(t, qt.IsNil(<-made))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(unix.Unmount(path, unix.MNT_DETACH))) })
	return inode
}

// makeCgroup makes a version 2 cgroup that is there until the test ends.
func makeCgroup(t *testing.T) string {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/unified/cgroup.procs"); err == nil {
		root += "/unified"
	}
	path := filepath.Join(root, fmt.Sprintf("finwait-test-%d", os.Getpid()))
	qt.Assert(t, qt.IsNil(os.Mkdir(path, 0o755)))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(os.Remove(path))) })
	return path
}

// runSubject returns what becomes of an agent that the command starts, and that
// keeps these capabilities.
func runSubject(t *testing.T, keeps, cgroup string, command ...string) (findings, error) {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), subjectKeeps+"="+keeps, subjectCgroup+"="+cgroup)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return findings{}, fmt.Errorf("%w: %s", err, &stderr)
	}
	var f findings
	qt.Assert(t, qt.IsNil(json.Unmarshal(stdout.Bytes(), &f)))
	return f, nil
}

// sight is what was found of a process.
type sight struct{ thread, file, socket, census, owner bool }

func (f *findings) of(h hosted) sight {
	return sight{
		thread: slices.Contains(f.Netns, h.Thread),
		file:   slices.Contains(f.Netns, h.File),
		socket: slices.Contains(f.Netns, h.Socket),
		census: slices.Contains(f.Census, h.Thread),
		owner:  slices.Contains(f.Owners, h.PID),
	}
}

func kept() (names []string) {
	for _, c := range Capabilities {
		if c.Kept {
			names = append(names, c.Name)
		}
	}
	return names
}

// TestDropKeepsEnough has an agent drop what it does not need, and then one
// capability more: all that it does still works, and what it finds on the host is
// what Capabilities says.
func TestDropKeepsEnough(t *testing.T) {
	requireRoot(t)
	cgroup := makeCgroup(t)
	all := sight{true, true, true, true, true}
	without := func(name string) string {
		return strings.Join(slices.DeleteFunc(kept(), func(k string) bool { return k == name }), ",")
	}
	for _, test := range []struct {
		name         string
		keeps        string
		root, nobody sight
		mounted      bool
		walks        bool
	}{
		{"nothing dropped", keepAll, all, all, true, false},
		{"dropped", keepKept, all, all, true, false},
		{"and CAP_BPF", without("CAP_BPF"), all, all, true, false}, // CAP_SYS_ADMIN stands for it
		{"and CAP_SYS_ADMIN", without("CAP_SYS_ADMIN"), sight{}, sight{}, false, false},
		{"and CAP_SYS_PTRACE", without("CAP_SYS_PTRACE"), sight{}, sight{}, true, false},
		{"and CAP_DAC_READ_SEARCH", without("CAP_DAC_READ_SEARCH"), all, sight{thread: true, socket: true, census: true}, true, true},
		{
			"and CAP_NET_ADMIN", without("CAP_NET_ADMIN"),
			sight{thread: true, file: true, census: true, owner: true}, sight{thread: true, file: true, census: true, owner: true}, true, false,
		},
		{"everything", "", sight{}, sight{}, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			root, nobody, mounted := startHost(t, "0"), startHost(t, "65534"), mountNetns(t)
			f, err := runSubject(t, test.keeps, cgroup, executable(t))
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.HasLen(f.Failed, 0), qt.Commentf("%v", f.Failed))
			qt.Check(t, qt.Equals(f.of(root), test.root))
			qt.Check(t, qt.Equals(f.of(nobody), test.nobody))
			qt.Check(t, qt.Equals(slices.Contains(f.Netns, mounted), test.mounted))
			qt.Check(t, qt.Equals(f.Walks, test.walks))
			if test.keeps == keepKept {
				qt.Check(t, qt.DeepEquals(f.Left, kept()))
			}
		})
	}
}

// TestStartNotRoot starts an agent that is not root: with all capabilities that it
// uses, with those alone that it needs to start, and without one of them.
func TestStartNotRoot(t *testing.T) {
	requireRoot(t)
	cgroup, binary := makeCgroup(t), openCopy(t)
	root, nobody := startHost(t, "0"), startHost(t, "65534")
	start := func(capabilities ...string) (findings, error) {
		set := "-all"
		for _, name := range capabilities {
			set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
		}
		return runSubject(t, keepKept, cgroup, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
			"--bounding-set="+set, "--inh-caps="+set, "--ambient-caps="+set, binary)
	}

	var all []string
	for _, c := range Capabilities {
		all = append(all, c.Name)
	}
	f, err := start(all...)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(f.Failed, 0), qt.Commentf("%v", f.Failed))
	qt.Check(t, qt.DeepEquals(f.Left, kept()))
	qt.Check(t, qt.Equals(f.of(root), sight{true, true, true, true, true}))
	qt.Check(t, qt.Equals(f.of(nobody), sight{true, true, true, true, true}))

	f, err = start("CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(f.Failed, 0), qt.Commentf("%v", f.Failed))
	qt.Check(t, qt.DeepEquals(f.Left, []string{"CAP_BPF"}))

	for _, lacking := range [][]string{{"CAP_PERFMON", "CAP_SYSLOG"}, {"CAP_BPF", "CAP_SYSLOG"}} {
		_, err := start(lacking...)
		qt.Check(t, qt.ErrorMatches(err, "(?s).*needs root, or CAP_BPF, CAP_PERFMON and CAP_SYSLOG: permission denied.*"))
	}
}
