package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// agent is a finwait serve that keeps its counters pinned, and does nothing else.
type agent struct {
	cmd  *exec.Cmd
	dir  string // where a BPF file system is mounted for it
	pins string
}

// startAgent returns one that has counted all that was there.
func startAgent(finwait, dir string) (*agent, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &agent{dir: dir, pins: filepath.Join(dir, "finwait")}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		return nil, fmt.Errorf("mount a BPF file system: %w", err)
	}
	a.cmd = exec.Command(finwait, "serve", "--listen", "127.0.0.1:0", "--pin", "--pin-path", a.pins, "--state-dir", dir+"-state")
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said, err := a.cmd.StderrPipe()
	if err != nil {
		return nil, errors.Join(err, a.unmount())
	}
	if err := a.cmd.Start(); err != nil {
		return nil, errors.Join(err, a.unmount())
	}
	for lines := bufio.NewScanner(said); lines.Scan(); {
		if strings.Contains(lines.Text(), "msg=tracing ") {
			return a, nil
		}
	}
	return nil, errors.Join(errors.New("the agent does not start"), a.stop())
}

func (a *agent) stop() error {
	_ = a.cmd.Process.Signal(unix.SIGTERM) // it may have ended
	err := a.cmd.Wait()
	return errors.Join(err, a.unmount())
}

func (a *agent) unmount() error { return unix.Unmount(a.dir, 0) }
