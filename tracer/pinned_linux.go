//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

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
func PinnedGauges(path string) (*Gauges, error) { return readPinned(path, readPinnedGauges) }

// PinnedCounts returns the counters and the endings of a tracer of another process
// that has them in that folder (Options.PinPath). They are as exact as its own
// ([Tracer.Counters]), and as little read at one instant.
//
// It takes what [PinnedGauges] takes, and returns the same errors.
func PinnedCounts(path string) (*Counts, error) { return readPinned(path, readPinnedCounts) }

// readPinned reads maps that a tracer has pinned, with what it says of them. It
// returns an error unless one tracer kept them right all the while.
func readPinned[T any](path string, read func(path string, info *pinnedInfo) (*T, error)) (*T, error) {
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
	result, err := read(path, &before)
	if err != nil {
		return nil, err
	}
	after, err := readPinnedInfo(path)
	if err != nil || after.Epoch != before.Epoch || after.Epoch == 0 {
		return nil, fmt.Errorf("%w: one is about to take over in %s", ErrNotPinned, path)
	}
	if err := pinsInUse(path); err != nil {
		return nil, err
	}
	return result, nil
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

func readPinnedGauges(path string, info *pinnedInfo) (*Gauges, error) {
	gauges, corrections, err := openPinned(path, pinGauges, pinCorrections)
	if err != nil {
		return nil, err
	}
	defer gauges.Close()
	defer corrections.Close()
	by, err := readCorrections(corrections)
	if err != nil {
		return nil, err
	}
	g, err := readGauges(gauges, func(cookie uint64) correction { return by[cookie] })
	if err != nil {
		return nil, err
	}
	g.MissedNetns = int(info.Missed)
	return g, nil
}

func readPinnedCounts(path string, info *pinnedInfo) (*Counts, error) {
	matrix, endings, err := openPinned(path, "matrix", "endings")
	if err != nil {
		return nil, err
	}
	defer matrix.Close()
	defer endings.Close()
	c := &Counts{Time: time.Now().UTC(), Since: time.Unix(0, int64(info.SinceNs)).UTC()}
	if c.Counters, err = readCounters(matrix); err != nil {
		return nil, err
	}
	if c.Endings, err = readEndings(endings); err != nil {
		return nil, err
	}
	return c, nil
}

// openPinned opens two of the pinned maps, which the caller closes.
func openPinned(path, one, other string) (a, b *ebpf.Map, err error) {
	readOnly := &ebpf.LoadPinOptions{ReadOnly: true}
	if a, err = ebpf.LoadPinnedMap(filepath.Join(path, one), readOnly); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotPinned, err)
	}
	if b, err = ebpf.LoadPinnedMap(filepath.Join(path, other), readOnly); err != nil {
		a.Close()
		return nil, nil, fmt.Errorf("%w: %w", ErrNotPinned, err)
	}
	return a, b, nil
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
