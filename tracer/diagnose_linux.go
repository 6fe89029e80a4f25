//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// diagnose says in one sentence why loading failed, where that can be told.
// It looks at caller and host only after the failure: what works is never
// refused.
func diagnose(err error) error {
	if !mayTrace() {
		return fmt.Errorf("tracing needs root, or CAP_BPF, CAP_PERFMON and CAP_SYSLOG: %w", os.ErrPermission)
	}
	return diagnoseHost(os.DirFS("/"), helperMissing, err)
}

// mayTrace tells whether the caller has what loading and attaching need.
func mayTrace() bool { return may(capSysAdmin) || may(capBPF) && may(capPerfmon) }

func diagnoseHost(root fs.FS, helperMissing func() bool, err error) error {
	switch {
	case !exists(root, "sys/kernel/btf/vmlinux"):
		return fmt.Errorf("%w: the kernel has no BTF (/sys/kernel/btf/vmlinux is missing; it needs CONFIG_DEBUG_INFO_BTF)", ErrNotSupported)
	case strings.Contains(read(root, "sys/kernel/security/lockdown"), "[confidentiality]"):
		return fmt.Errorf("%w: kernel lockdown is in confidentiality mode, which forbids programs to read kernel memory (boot with lockdown=integrity)", ErrNotSupported)
	case helperMissing():
		return fmt.Errorf("%w: the kernel is too old (it is %s; finwait needs Linux 5.12, where tracing programs can ask for a socket's cookie)",
			ErrNotSupported, strings.TrimSpace(read(root, "proc/sys/kernel/osrelease")))
	case kallsymsHidden(root, err):
		return fmt.Errorf("%w: the kernel hides its symbols' addresses, which the timer tracepoints need (sysctl kernel.kptr_restrict=1, and CAP_SYSLOG)", ErrNotSupported)
	}
	return err
}

// helperMissing tries the helper that finwait's oldest kernel is the first to
// let tracing programs call.
func helperMissing() bool {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:       ebpf.Tracing,
		AttachType: ebpf.AttachTraceRawTp,
		AttachTo:   stateTracepoint,
		License:    "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord), // the socket
			asm.FnGetSocketCookie.Call(),
			asm.Return(),
		},
	})
	if err == nil {
		prog.Close()
	}
	var refused *ebpf.VerifierError
	return errors.As(err, &refused)
}

// kallsymsHidden tells whether the timer tier was refused because the kernel
// does not show where its functions lie.
func kallsymsHidden(root fs.FS, err error) bool {
	if !errors.Is(err, errNoSymbols) {
		return false
	}
	kallsyms, err := root.Open("proc/kallsyms")
	if err != nil {
		return true
	}
	defer kallsyms.Close()
	return symbolsShown(kallsyms) != AnswerYes
}

func exists(root fs.FS, name string) bool {
	_, err := fs.Stat(root, name)
	return err == nil
}

func read(root fs.FS, name string) string {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return string(text)
}
