//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Detect finds out what this host offers for tracing. It asks the kernel and
// the files in which it speaks of itself, loads and attaches each tier as [New]
// does, and lets go of it again, so that nothing stays in the kernel; it takes
// some tenths of a second. A nil opts is the same as the zero value.
//
// What is missing, privileges too, is in the result and is no error. There is
// an error if ctx is done first, and one that wraps [ErrNotSupported] if finwait
// is not made for this system at all.
//
// It is safe for concurrent use.
func Detect(ctx context.Context, opts *DetectOptions) (*Features, error) {
	if opts == nil {
		opts = &DetectOptions{}
	}
	f := &Features{Capabilities: capabilities(), InitialUserNS: initialUserNS()}
	f.readUname()
	f.readHost(os.DirFS("/"))
	if err := f.tryTiers(ctx, opts.Visit); err != nil {
		return nil, fmt.Errorf("detect features: %w", err)
	}
	switch {
	case f.Chosen() != nil:
		f.SocketCookie = AnswerYes // all its programs may ask
	case helperMissing():
		f.SocketCookie = AnswerNo
	}
	f.CensusErr = tryCensus(ctx)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("detect features: %w", err)
	}
	return f, nil
}

func (f *Features) readUname() {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return
	}
	f.Release = unix.ByteSliceToString(name.Release[:])
	f.Machine = unix.ByteSliceToString(name.Machine[:])
}

// readHost reads what the files of the host say.
func (f *Features) readHost(root fs.FS) {
	if info, err := fs.Stat(root, "sys/kernel/btf/vmlinux"); err == nil {
		f.BTF, f.BTFSize = true, info.Size()
	}
	f.Lockdown = lockdownMode(read(root, "sys/kernel/security/lockdown"))
	n, err := strconv.Atoi(strings.TrimSpace(read(root, "proc/sys/kernel/kptr_restrict")))
	if err == nil {
		f.KptrRestrict, f.KptrRestrictKnown = n, true
	}
	if kallsyms, err := root.Open("proc/kallsyms"); err == nil {
		defer kallsyms.Close()
		f.Symbols = symbolsShown(kallsyms)
	}
}

// lockdownMode returns the mode that is in brackets: "none [integrity]
// confidentiality".
func lockdownMode(text string) string {
	_, after, _ := strings.Cut(text, "[")
	mode, _, closed := strings.Cut(after, "]")
	if !closed {
		return ""
	}
	return mode
}

// symbolsShown tells from the first function in kallsyms whether its addresses
// are the true ones. What comes before may lie at 0: up to Linux 6.14 the
// variables that each CPU has do.
func symbolsShown(kallsyms io.Reader) Answer {
	lines := bufio.NewScanner(kallsyms)
	for lines.Scan() {
		words := bytes.Fields(lines.Bytes())
		if len(words) < 3 || len(words[1]) != 1 || words[1][0]|0x20 != 't' {
			continue
		}
		at, err := strconv.ParseUint(string(words[0]), 16, 64)
		if err != nil {
			return AnswerUnknown
		}
		return answer(at != 0)
	}
	return AnswerUnknown
}

// initialUserNS tells whether the caller's capabilities are the host's.
func initialUserNS() Answer {
	const initial = "user:[4026531837]" // PROC_USER_INIT_INO of linux/proc_ns.h
	name, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return AnswerUnknown
	}
	return answer(name == initial)
}

func capabilities() []Capability {
	all := []struct {
		name    string
		number  int
		purpose string
	}{
		{"CAP_BPF", capBPF, "load programs and maps"},
		{"CAP_PERFMON", capPerfmon, "let programs read kernel memory"},
		{"CAP_SYSLOG", unix.CAP_SYSLOG, "see where the kernel's functions lie"},
		{"CAP_SYS_ADMIN", capSysAdmin, "enter network namespaces; stands for CAP_BPF and CAP_PERFMON"},
		{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE, "see the sockets and namespaces of other users' processes"},
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, "raise the loopback of a namespace for trial connections"},
	}
	list := make([]Capability, len(all))
	for i, c := range all {
		list[i] = Capability{c.name, may(c.number), c.purpose}
	}
	return list
}

// tryTiers loads each tier. It fails if ctx is done.
func (f *Features) tryTiers(ctx context.Context, visit func(*Tracer)) error {
	k, kernelErr := readKernel() // without that New does not begin
	var refused error
	for _, tier := range tiers {
		if err := ctx.Err(); err != nil {
			return err
		}
		result := TierFeatures{Evidence: tier.evidence, Err: kernelErr}
		if result.Err == nil {
			result.Err = result.try(tier, k, visit)
		}
		if result.Err != nil {
			refused = andAlso(refused, fmt.Errorf("evidence by %v: %w", tier.evidence, result.Err))
			result.Err = diagnose(result.Err)
		}
		f.Tiers = append(f.Tiers, result)
	}
	switch {
	case kernelErr != nil:
		f.TracingErr = diagnose(kernelErr)
	case f.Chosen() == nil:
		f.TracingErr = diagnose(refused)
	}
	return nil
}

// try starts a tracer of the tier, of the size that it would have, and closes
// it.
func (f *TierFeatures) try(with tier, k *kernel, visit func(*Tracer)) error {
	if err := with.try(k); err != nil {
		return err
	}
	begin := time.Now()
	t, err := start(&Options{AuditInterval: -1}, with, k, nil)
	if err != nil {
		return err
	}
	f.Start = time.Since(begin)
	if f.Missing, err = t.missingPrograms(); err == nil && visit != nil {
		visit(t)
	}
	return errors.Join(err, t.Close())
}

func (t *Tracer) missingPrograms() ([]MissingProgram, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	var missing []MissingProgram
	for _, name := range t.tier.optional {
		if t.coll.Programs[name] == nil {
			missing = append(missing, MissingProgram{name, spec.Programs[name].AttachTo})
		}
	}
	return missing, nil
}

// tryCensus asks for the listeners of the caller's namespace, which is quick
// however many other sockets there are.
func tryCensus(ctx context.Context) error {
	diag, err := openDiag(make([]byte, diagBufSize))
	if err != nil {
		return err
	}
	defer diag.Close()
	_, err = diag.dump(ctx, 1<<StateListen, func(diagMsg) {})
	return err
}

// sections returns where each program is attached.
var sections = sync.OnceValues(func() (map[string]string, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	names := make(map[string]string, len(spec.Programs))
	for name, program := range spec.Programs {
		names[name] = program.SectionName
	}
	return names, nil
})

// Stats returns what each program and map of the tracer has cost so far, those
// of its iterators too, and how full its ring buffers have been. It asks the
// kernel once for each; the numbers are not of one instant. It may be called after
// Detach.
//
// Run counts and times stay at 0 while the kernel keeps no statistics: see
// [ProgramStats].
func (t *Tracer) Stats() (*Stats, error) {
	attached, err := sections()
	if err != nil {
		return nil, err
	}
	stats := &Stats{Rings: t.ringStats()}
	for name, program := range t.coll.Programs {
		s, err := program.Stats()
		if err != nil {
			return nil, fmt.Errorf("read statistics of %s: %w", name, err)
		}
		stats.Programs = append(stats.Programs, ProgramStats{name, attached[name], s.RunCount, s.Runtime, s.RecursionMisses})
	}
	for name, m := range t.coll.Maps {
		info, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("read information of map %s: %w", name, err)
		}
		memory, known := info.Memlock()
		stats.Maps = append(stats.Maps, MapStats{name, memory, known})
	}
	slices.SortFunc(stats.Programs, func(a, b ProgramStats) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(stats.Maps, func(a, b MapStats) int { return cmp.Compare(a.Name, b.Name) })
	return stats, nil
}
