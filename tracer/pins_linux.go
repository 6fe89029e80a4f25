//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// pinLayout is to be raised whenever one of the pinned maps means something else
// than before, and its sizes are the same.
const pinLayout = 1

// What is pinned besides the maps of bpf/maps.h.
const (
	pinInfo        = "info"
	pinCorrections = "corrections"
)

// pinnedCounters are the maps that go on where the tracer before has left off. The
// gauges do not, since nobody counts between two tracers; nor does the ledger, which
// is in part the kernel's, and in part each tracer's own.
var pinnedCounters = []string{"matrix", "endings", profileMap}

// pinnedInfo is the only element of the map that says whose the others are.
type pinnedInfo struct {
	Layout  uint64 // pinLayout and the sizes, hashed
	Profile uint64 // what the histograms are about
	Epoch   uint64 // another for each tracer, 0 while one takes over
	SinceNs uint64 // when the counters began, in Unix time

	ProfileSinceNs uint64 // and the histograms
	PID            uint32
	_              uint32
}

// pins is the folder in which the counters of a tracer are pinned.
type pins struct {
	dir         *os.File // locked as long as the tracer lives, however that ends
	info        *ebpf.Map
	corrections *ebpf.Map
	inherited   bool
	before      Counters  // what was inherited
	since       time.Time // when the counters began
	dwellSince  time.Time // and the histograms
}

// openPins takes the folder. Nothing in it changes yet. It returns nil for no path,
// of which all methods may be called.
func openPins(path string) (*pins, error) {
	if path == "" {
		return nil, nil
	}
	if err := onBPFFS(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("pin counters: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("pin counters: %w", err)
	}
	if err := lockPins(dir); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	now := time.Now()
	return &pins{dir: dir, since: now, dwellSince: now}, nil
}

// CheckPinPath returns an error if counters cannot be pinned in that folder
// (Options.PinPath). It does not look whether another tracer has it.
func CheckPinPath(path string) error { return onBPFFS(path) }

// onBPFFS returns an error if the folder is not on a BPF file system, or would not
// be if it were made.
func onBPFFS(path string) error {
	var stat unix.Statfs_t
	for {
		err := unix.Statfs(path, &stat)
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != filepath.Dir(path):
			path = filepath.Dir(path)
		case err != nil:
			return fmt.Errorf("pin counters: statfs %s: %w", path, err)
		case stat.Type != unix.BPF_FS_MAGIC:
			return &OptionsError{fmt.Errorf("pin counters: %s is not on a BPF file system (mount -t bpf bpf /sys/fs/bpf)", path)}
		default:
			return nil
		}
	}
}

// lockPins waits as long as somebody may ask whether the folder is locked, which
// takes microseconds.
func lockPins(dir *os.File) error {
	const tries, pause = 10, 10 * time.Millisecond
	for range tries {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("pin counters: lock %s: %w", dir.Name(), err)
		}
		time.Sleep(pause)
	}
	held := &PinHeldError{Path: dir.Name()}
	if info, err := readPinnedInfo(dir.Name()); err == nil {
		held.PID = info.PID
	}
	return held
}

// inherit gives the counts of the tracer before to the maps of coll, if there was
// one that this version understands.
func (p *pins) inherit(coll *ebpf.Collection, profile *ProfileOptions) error {
	if p == nil {
		return nil
	}
	info, err := readPinnedInfo(p.dir.Name())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errLayout) {
		return nil
	}
	if err != nil {
		return err
	}
	sameProfile := info.Profile == uint64(profile.constant())
	for _, name := range pinnedCounters {
		if name == profileMap && !sameProfile {
			continue
		}
		if err := p.copyMap(name, coll.Maps[name]); err != nil {
			return fmt.Errorf("go on with the pinned %s: %w", name, err)
		}
	}
	if p.before, err = readCounters(coll.Maps["matrix"]); err != nil {
		return err
	}
	p.inherited, p.since = true, time.Unix(0, int64(info.SinceNs))
	if sameProfile {
		p.dwellSince = time.Unix(0, int64(info.ProfileSinceNs))
	}
	return nil
}

// inheritedTotal returns how many transitions others have counted.
func (p *pins) inheritedTotal() uint64 {
	if p == nil {
		return 0
	}
	return p.before.Total()
}

// copyMap copies all elements of a pinned map.
func (p *pins) copyMap(name string, to *ebpf.Map) error {
	from, err := ebpf.LoadPinnedMap(filepath.Join(p.dir.Name(), name), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer from.Close()
	if to.Type() == ebpf.PerCPUArray {
		return copyPerCPU(from, to)
	}
	key, value := make([]byte, from.KeySize()), make([]byte, from.ValueSize())
	all := from.Iterate()
	for all.Next(&key, &value) {
		if err := to.Put(key, value); err != nil {
			return err
		}
	}
	return all.Err()
}

// copyPerCPU copies the only element of each CPU.
func copyPerCPU(from, to *ebpf.Map) error {
	var values [][]byte
	if err := from.Lookup(uint32(0), &values); err != nil {
		return err
	}
	return to.Put(uint32(0), values)
}

// ourLayout returns a hash of what must be the same for one version to understand
// the maps of another.
func ourLayout() uint64 {
	const fnvOffset, fnvPrime = 14695981039346656037, 1099511628211
	hash := uint64(fnvOffset)
	for _, n := range []uintptr{
		pinLayout, numStates, uintptr(ebpf.MustPossibleCPU()),
		unsafe.Sizeof(Counters{}.cells), unsafe.Sizeof(bpfFinwaitEndings{}), unsafe.Sizeof(bpfFinwaitLedger{}),
		unsafe.Sizeof(bpfFinwaitProfileKey{}), unsafe.Sizeof(bpfFinwaitProfileRow{}), unsafe.Sizeof(bpfFinwaitGauge{}),
	} {
		hash = (hash ^ uint64(n)) * fnvPrime
	}
	return hash
}

// publish pins the maps in place of those before. Whoever reads them finds another
// epoch in info if that comes in between. Should the process be killed meanwhile, the
// next goes on with some old maps and some new ones, which have the counts of the old.
func (p *pins) publish(coll *ebpf.Collection, profile *ProfileOptions) error {
	if p == nil {
		return nil
	}
	var err error
	if p.info, err = newPinMap(pinInfo, ebpf.Array, 4, uint32(binary.Size(pinnedInfo{})), 1); err != nil {
		return err
	}
	if p.corrections, err = newPinMap(pinCorrections, ebpf.Hash, 8, uint32(binary.Size(correction{})), 2*maxNetns); err != nil {
		return err
	}
	var epoch [8]byte
	_, _ = rand.Read(epoch[:]) // never fails
	info := pinnedInfo{
		Layout: ourLayout(), Profile: uint64(profile.constant()), Epoch: binary.NativeEndian.Uint64(epoch[:]),
		SinceNs: uint64(p.since.UnixNano()), ProfileSinceNs: uint64(p.dwellSince.UnixNano()), PID: uint32(os.Getpid()),
	}
	if err := p.info.Put(uint32(0), &info); err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	if err := p.invalidate(); err != nil {
		return err
	}
	for _, name := range append(slices.Clone(pinnedCounters), "gauges") {
		if err := p.pin(name, coll.Maps[name]); err != nil {
			return err
		}
	}
	if err := p.pin(pinCorrections, p.corrections); err != nil {
		return err
	}
	return p.pin(pinInfo, p.info)
}

// invalidate has nobody read the gauges that are pinned.
func (p *pins) invalidate() error {
	info, err := readPinnedInfo(p.dir.Name())
	if err != nil {
		return p.remove(pinInfo) // there is none, or one that says nothing to us
	}
	path := filepath.Join(p.dir.Name(), pinInfo)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	defer m.Close()
	info.Epoch = 0
	if err := m.Put(uint32(0), &info); err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	return nil
}

func newPinMap(name string, typ ebpf.MapType, key, value, entries uint32) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: typ, KeySize: key, ValueSize: value, MaxEntries: entries})
	if err != nil {
		return nil, fmt.Errorf("pin counters: make %s: %w", name, err)
	}
	return m, nil
}

// pin puts the map in place of what is pinned under that name. The counters of
// the one before stay there until then.
func (p *pins) pin(name string, m *ebpf.Map) error {
	path := filepath.Join(p.dir.Name(), name)
	fresh := path + "_new" // the file system takes no dots
	if err := p.remove(name + "_new"); err != nil {
		return err
	}
	copied, err := m.Clone() // m itself is to forget nothing about pins
	if err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	defer copied.Close()
	if err := copied.Pin(fresh); err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	return nil
}

func (p *pins) remove(name string) error {
	err := os.Remove(filepath.Join(p.dir.Name(), name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin counters: %w", err)
	}
	return nil
}

// correct notes what audits have found about a network namespace.
func (p *pins) correct(cookie uint64, by correction) error {
	if p == nil || p.corrections == nil {
		return nil
	}
	if err := p.corrections.Put(cookie, by[:]); err != nil {
		return fmt.Errorf("pin corrections: %w", err)
	}
	return nil
}

func (p *pins) forget(cookie uint64) {
	if p != nil && p.corrections != nil {
		_ = p.corrections.Delete(cookie) // most have none
	}
}

// withdraw takes away what nobody is going to keep right any more.
func (p *pins) withdraw() error {
	if p == nil || p.info == nil {
		return nil
	}
	return errors.Join(p.remove("gauges"), p.remove(pinCorrections))
}

// close leaves the counters to the next tracer.
func (p *pins) close() error {
	if p == nil {
		return nil
	}
	return errors.Join(p.info.Close(), p.corrections.Close(), p.dir.Close())
}

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
	return g, pinsInUse(path)
}

// pinsInUse returns an error if no tracer has locked the folder.
func pinsInUse(path string) error {
	dir, err := os.Open(path)
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
