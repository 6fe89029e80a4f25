//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// kernel is the programs, and what they need to know of the kernel that runs, each
// read once.
type kernel struct {
	spec  *ebpf.CollectionSpec // to be copied
	types *btf.Cache           // its BTF
	// symbols waits for what kallsyms says, which the kernel takes half as long to
	// write as everything else takes.
	symbols func() (symbols, error)
	// keepsCPU tells that at tracepoints no other process takes the CPU.
	keepsCPU bool
}

func readKernel() (*kernel, error) {
	k := &kernel{types: btf.NewCache(), symbols: inBackground(readSymbols)}
	types := inBackground(k.types.Kernel)
	spec, err := loadBpf()
	_, _ = types() // who needs them asks again
	if err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	k.spec = spec
	// What stands in the way of finding out, loading the programs is going to tell.
	k.keepsCPU, _ = k.tracepointsKeepCPU()
	return k, nil
}

// inBackground calls f at once, and returns what waits for its results.
func inBackground[T any](f func() (T, error)) func() (T, error) {
	once := sync.OnceValues(f)
	go func() { _, _ = once() }()
	return once
}

// has tells whether the kernel's BTF has the function.
func (k *kernel) has(function string) (bool, error) {
	types, err := k.types.Kernel()
	if err != nil {
		return false, fmt.Errorf("read the kernel's BTF: %w", err)
	}
	var found *btf.Func
	err = types.TypeByName(function, &found)
	if errors.Is(err, btf.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// measureProgram finds out whether tracepoints keep the CPU, in measureVariables
// (bpf/preempt.h).
const measureProgram = "measure_cpu"

var measureVariables = map[string]bool{"cpu_measured": true, "cpu_open": true}

// tracepointsKeepCPU tells whether no other process can take the CPU from a
// program at a tracepoint. Not all that is loaded is needed then. If it cannot be
// found out it may be so.
func (k *kernel) tracepointsKeepCPU() (bool, error) {
	spec := k.spec.Copy()
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return name != measureProgram })
	maps.DeleteFunc(spec.Variables, func(name string, _ *ebpf.VariableSpec) bool { return !measureVariables[name] })
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return name != ".bss" })
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: k.types})
	if err != nil {
		return false, fmt.Errorf("load %s: %w", measureProgram, err)
	}
	defer coll.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: coll.Programs[measureProgram]})
	if err != nil {
		return false, fmt.Errorf("attach %s: %w", measureProgram, err)
	}
	defer l.Close()
	if err := passConsumeSkb(); err != nil {
		return false, err
	}
	var measured, open uint64
	err = errors.Join(coll.Variables["cpu_measured"].Get(&measured), coll.Variables["cpu_open"].Get(&open))
	return err == nil && measured > 0 && open == 0, err
}

// passConsumeSkb passes the tracepoint consume_skb: the kernel frees what has
// carried a message once it is read.
func passConsumeSkb() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a pair of sockets: %w", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	message := make([]byte, 1)
	if _, err := unix.Write(pair[0], message); err != nil {
		return fmt.Errorf("write to a socket: %w", err)
	}
	if _, err := unix.Read(pair[1], message); err != nil {
		return fmt.Errorf("read from a socket: %w", err)
	}
	return nil
}
