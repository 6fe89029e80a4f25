// Package floor attaches a BPF program that does nothing to the tracepoint of
// state changes: what it costs, no tracer can do without.
package floor

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Floor is the program at work.
type Floor struct {
	Program *ebpf.Program
	link    link.Link
}

// Attach loads and attaches the program.
func Attach() (*Floor, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "empty",
		Type:         ebpf.Tracing,
		AttachType:   ebpf.AttachTraceRawTp,
		AttachTo:     "inet_sock_set_state",
		License:      "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("load the empty program: %w", err)
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach the empty program: %w", err), prog.Close())
	}
	return &Floor{prog, l}, nil
}

// Close takes the program off and frees it.
func (f *Floor) Close() error { return errors.Join(f.link.Close(), f.Program.Close()) }
