//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func readPinnedInfo(path string) (pinnedInfo, error) {
	var info pinnedInfo
	m, err := ebpf.LoadPinnedMap(filepath.Join(path, pinInfo), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return info, fmt.Errorf("read pinned counters: %w", err)
	}
	defer m.Close()
	if m.ValueSize() != uint32(binary.Size(info)) {
		return info, errLayout
	}
	if err := m.Lookup(uint32(0), &info); err != nil {
		return info, fmt.Errorf("read pinned counters: %w", err)
	}
	if info.Layout != ourLayout() {
		return info, errLayout
	}
	return info, nil
}

// errLayout says that what is pinned is of a version that has it in another form.
var errLayout = errors.New("the pinned counters are of another version")

// PinnedGauges returns the gauges of a tracer of another process that has its
// counters in that folder (Options.PinPath). It takes a few system calls, however
// many sockets there are, and no more than reading BPF maps needs: root, or
// CAP_BPF and access to the folder.
//
// It returns an error that wraps [ErrNotPinned] if there is no such tracer, or one
// that is about to begin or to end, or one of a version whose counters this one
// does not understand. With EvidenceTimer, what mini-sockets do that nobody owns
// may be [SweepInterval] old.
func PinnedGauges(path string) (*Gauges, error) {
	if err := pinsInUse(path); err != nil {
		return nil, err
	}
	before, err := readPinnedInfo(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotPinned, path)
	}
	if errors.Is(err, errLayout) {
		return nil, fmt.Errorf("%w: %w", ErrNotPinned, err)
	}
	if err != nil {
		return nil, err
	}
	g, err := readPinnedGauges(path)
	if err != nil {
		return nil, err
	}
	after, err := readPinnedInfo(path)
	if err != nil || after.Epoch != before.Epoch || after.Epoch == 0 {
		return nil, fmt.Errorf("%w: one is about to take over in %s", ErrNotPinned, path)
	}
	g.MissedNetns = int(before.Missed)
	return g, pinsInUse(path)
}

// pinsInUse returns an error if there is no tracer that keeps the gauges right.
func pinsInUse(path string) error {
	dir, err := os.Open(filepath.Join(path, pinLive))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotPinned, path)
	}
	if err != nil {
		return fmt.Errorf("read pinned counters: %w", err)
	}
	defer dir.Close()
	err = unix.Flock(int(dir.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pinned counters: %w", err)
	}
	return fmt.Errorf("%w: %s", ErrNotPinned, path)
}

func readPinnedGauges(path string) (*Gauges, error) {
	var maps [2]*ebpf.Map
	for i, name := range []string{"gauges", pinCorrections} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(path, name), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotPinned, err)
		}
		defer m.Close()
		maps[i] = m
	}
	corrections, err := readCorrections(maps[1])
	if err != nil {
		return nil, err
	}
	return readGauges(maps[0], func(cookie uint64) correction { return corrections[cookie] })
}

func readCorrections(m *ebpf.Map) (map[uint64]correction, error) {
	corrections := map[uint64]correction{}
	var (
		cookie uint64
		by     correction
	)
	all := m.Iterate()
	for all.Next(&cookie, &by) {
		corrections[cookie] = by
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read pinned corrections: %w", err)
	}
	return corrections, nil
}
