package test

import (
	"os/exec"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// TestCommandNotRoot runs without privileges: what needs them says so, what
// does not works.
func TestCommandNotRoot(t *testing.T) {
	netns.RequireRoot(t)
	res := runCommand(t, asNobody(exec.Command(binary(t), "trace")))
	checkFailure(t, res, 1, "needs root, or CAP_BPF, CAP_PERFMON", "permission denied")
	res = runCommand(t, asNobody(exec.Command(binary(t), "stuck")))
	checkFailure(t, res, 1, "needs root, or CAP_BPF, CAP_PERFMON", "permission denied")

	res = runCommand(t, asNobody(exec.Command(binary(t), "explain", "FIN_WAIT2:TIME_WAIT")))
	qt.Check(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	qt.Check(t, qt.StringContains(res.stdout, "TIME_WAIT"))
	qt.Check(t, qt.Equals(res.stderr, ""))
}

func TestCommandCountNotRoot(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	listenIn(t, ns)
	args := []string{"--net=" + ns.Path(), "--setuid", "65534", "--setgid", "65534", "--"}
	count := func(more ...string) result {
		return runCommand(t, exec.Command("nsenter", append(append(args, binary(t), "count"), more...)...))
	}
	res := count("--netns", "self")
	qt.Check(t, qt.Equals(res, result{0, "LISTEN\t1\n", ""}))

	res = count() // what others have may not be seen, and that is said
	qt.Check(t, qt.Equals(res.code, 0), qt.Commentf("%s", res.stderr))
	qt.Check(t, qt.StringContains(res.stdout, "LISTEN\t"))
	qt.Check(t, qt.StringContains(res.stderr, "needs CAP_SYS_"))
}

// listenIn makes a listener in ns that is there until the test ends.
func listenIn(t testing.TB, ns *netns.NS) {
	t.Helper()
	fd, err := -1, error(nil)
	ns.Do(func() {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Listen(fd, 1)
		}
	})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { unix.Close(fd) })
}

// TestCommandNoBTF hides the kernel's types in a mount namespace.
func TestCommandNoBTF(t *testing.T) {
	netns.RequireRoot(t)
	const script = `mount --make-rprivate / && mount -t tmpfs none /sys/kernel/btf && exec "$0" trace`
	cmd := exec.Command("sh", "-c", script, binary(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	checkFailure(t, runCommand(t, cmd), 1, "not supported", "BTF", "/sys/kernel/btf/vmlinux")
}

// TestCommandMemlock runs where memory cannot be locked, and the limit cannot
// be raised.
func TestCommandMemlock(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	cmd := exec.Command("prlimit", "--memlock=0:0", "setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource",
		binary(t), "trace", "--format", "json", "--netns", inodeWord(ns))
	p := spawn(t, cmd)
	p.awaitTracing()
	made := makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
	p.awaitLines(sum(made.Cells()))
	checkRecords(t, made, parseJSON(t, p.stop().stdout))
}
