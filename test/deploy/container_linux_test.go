package deploy

import (
	"bufio"
	"context"
	"debug/elf"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// TestContainer runs the command as the container has it: in a root with nothing
// but the binary and what the kernel mounts, with the capabilities that the
// manifests give and no others.
func TestContainer(t *testing.T) {
	inSource(t)
	netns.RequireRoot(t)
	need(t, "unshare", "setpriv", "mount", "chroot")
	dir := t.TempDir()
	binary := filepath.Join(dir, "finwait")
	inRepository(t, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", binary, "./cmd/finwait")
	checkStatic(t, binary)

	// --pid=host: no new PID namespace. The capabilities are dropped by the last
	// program that is not the container's own.
	const script = `set -e
mkdir "$0/proc" "$0/sys"
mount -o bind "$0" "$0"
mount -t proc proc "$0/proc"
mount --rbind /sys "$0/sys"
mount -o remount,bind,ro "$0"
exec setpriv --bounding-set "$1" --inh-caps -all --no-new-privs chroot "$0" /finwait trace --format json --state TIME_WAIT`
	// chroot itself needs its capability, which is the one more than the manifests have.
	caps := "-all,+sys_chroot"
	for _, name := range unitCapabilities(t) {
		caps += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", script, dir, caps)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	stdout, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	stderr, err := cmd.StderrPipe()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(cmd.Start()))
	said := bufio.NewReader(stderr)
	first, err := said.ReadString('\n')
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.StringContains(first, "finwait: tracing"))

	connect(t)
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- text
		_, _ = io.Copy(io.Discard, stdout)
	}()
	select {
	case text := <-line:
		qt.Check(t, qt.StringContains(text, `"new_state":"TIME_WAIT"`))
	case <-time.After(30 * time.Second):
		t.Error("a connection was made, and nothing was printed")
	}
	qt.Check(t, qt.IsNil(cmd.Process.Signal(unix.SIGTERM)))
	rest, _ := io.ReadAll(said)
	qt.Check(t, qt.IsNil(cmd.Wait()), qt.Commentf("%s", rest))
}

// checkStatic sees that the kernel alone can load the program.
func checkStatic(t *testing.T, file string) {
	t.Helper()
	f, err := elf.Open(file)
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	for _, p := range f.Progs {
		qt.Check(t, qt.IsFalse(p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC), qt.Commentf("it has a %v", p.Type))
	}
}

// unitCapabilities returns what the unit has.
func unitCapabilities(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy/systemd/finwait.service"))
	qt.Assert(t, qt.IsNil(err))
	for line := range strings.Lines(string(text)) {
		if list, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
			return strings.Fields(list)
		}
	}
	t.Fatal("the unit bounds no capabilities")
	return nil
}

// connect makes a connection that this end closes first.
func connect(t *testing.T) {
	t.Helper()
	var plainTCP net.ListenConfig
	plainTCP.SetMultipathTCP(false)
	l, err := plainTCP.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	client, err := net.Dial("tcp4", l.Addr().String())
	qt.Assert(t, qt.IsNil(err))
	server, err := l.Accept()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(client.Close()))
	_, _ = io.Copy(io.Discard, server)
	qt.Assert(t, qt.IsNil(server.Close()))
}
