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
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// pinLayout is to be raised whenever one of the pinned maps means something else
// than before, and its sizes are the same.
const pinLayout = 1

// What is pinned besides the counters.
const (
	pinInfo        = "info"
	pinGauges      = "gauges"
	pinCorrections = "corrections"
	// pinLive is a folder that is locked as long as the gauges are right.
	pinLive = "live"
)

// pinnedCounters are the maps that go on where the tracer before has left off. The
// gauges do not, since nobody counts between two tracers; nor does the ledger, which
// is in part the kernel's, and in part each tracer's own.
var pinnedCounters = []string{"matrix", "endings", profileMap}

// pinnedInfo is the only element of the map that says whose the others are.
type pinnedInfo struct {
	Layout  uint64 // pinLayout and the sizes, hashed
	Profile uint64 // what the histograms are about, or noProfile
	Epoch   uint64 // another for each tracer; 0 as long as the gauges are not right
	SinceNs uint64 // when the counters began, in Unix time

	ProfileSinceNs uint64 // and the histograms
	PID            uint32
	Missed         uint32 // network namespaces of which the gauges may not have all
}

// noProfile says that the histograms are not to go on.
const noProfile = 1<<64 - 1

// ourLayout returns a hash of what must be the same for one version to understand
// the maps of another.
func ourLayout() uint64 {
	const fnvOffset, fnvPrime = 14695981039346656037, 1099511628211
	hash := uint64(fnvOffset)
	for _, n := range []uintptr{
		pinLayout, numStates, uintptr(ebpf.MustPossibleCPU()),
		unsafe.Sizeof(Counters{}.cells), unsafe.Sizeof(bpfFinwaitEndings{}), unsafe.Sizeof(bpfFinwaitProfileKey{}),
		unsafe.Sizeof(bpfFinwaitProfileRow{}), unsafe.Sizeof(bpfFinwaitGauge{}),
	} {
		hash = (hash ^ uint64(n)) * fnvPrime
	}
	return hash
}

// pins is the folder in which the counters of a tracer are pinned. All methods may be
// called on nil, which pins nothing.
type pins struct {
	dir         *os.File // locked as long as the tracer lives, however that ends
	live        *os.File // pinLive, once it is locked
	info        *ebpf.Map
	corrections *ebpf.Map
	says        pinnedInfo // what is in info
	inherited   bool
	before      Counters // what was inherited
}

// openPins takes the folder, and has nobody read the gauges there any more: they are
// of a tracer that is no more. It returns nil for no path.
func openPins(path string) (p *pins, err error) {
	if path == "" {
		return nil, nil
	}
	if err := CheckPinPath(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("pin counters: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("pin counters: %w", err)
	}
	p = &pins{dir: dir}
	if err := lockPins(dir); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	if err := errors.Join(p.amend(func(info *pinnedInfo) { info.Epoch, info.PID = 0, uint32(os.Getpid()) }), p.makeMaps()); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// makeMaps makes the maps that the kernel side does not have.
func (p *pins) makeMaps() (err error) {
	if p.info, err = newPinMap(pinInfo, ebpf.Array, 4, uint32(binary.Size(pinnedInfo{})), 1); err != nil {
		return err
	}
	p.corrections, err = newPinMap(pinCorrections, ebpf.Hash, 8, uint32(binary.Size(correction{})), 2*maxNetns)
	return err
}

func newPinMap(name string, typ ebpf.MapType, key, value, entries uint32) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: typ, KeySize: key, ValueSize: value, MaxEntries: entries})
	if err != nil {
		return nil, fmt.Errorf("pin counters: make %s: %w", name, err)
	}
	return m, nil
}

// CheckPinPath returns an error if the folder (Options.PinPath) is not on a BPF file
// system, or would not be if it were made. It does not look whether another tracer has
// it.
func CheckPinPath(path string) error {
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

// amend changes what the pinned info says, of another tracer or of this. If there is
// none, or one of another version, which says nothing to anybody, it does nothing.
func (p *pins) amend(change func(*pinnedInfo)) error {
	info, err := readPinnedInfo(p.dir.Name())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errLayout) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.dir.Name(), pinInfo), nil)
	if err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	defer m.Close()
	change(&info)
	if err := m.Put(uint32(0), &info); err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	return nil
}

// inherit gives the counts of the tracer before to the maps of coll, if there was
// one that this version understands.
func (p *pins) inherit(coll *ebpf.Collection, profile *ProfileOptions) error {
	if p == nil {
		return nil
	}
	now := uint64(time.Now().UnixNano())
	p.says = pinnedInfo{Layout: ourLayout(), Profile: uint64(profile.constant()), SinceNs: now, ProfileSinceNs: now, PID: uint32(os.Getpid())}
	p.inherited, p.before = false, Counters{}
	info, err := readPinnedInfo(p.dir.Name())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errLayout) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range pinnedCounters {
		if name == profileMap && info.Profile != p.says.Profile {
			continue
		}
		if err := p.copyMap(name, coll.Maps[name]); err != nil {
			return fmt.Errorf("go on with the pinned %s: %w", name, err)
		}
	}
	if p.before, err = readCounters(coll.Maps["matrix"]); err != nil {
		return err
	}
	p.inherited, p.says.SinceNs = true, info.SinceNs
	if info.Profile == p.says.Profile {
		p.says.ProfileSinceNs = info.ProfileSinceNs
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

// publishCounters pins the counters in place of those before, whose counts they have.
// Whoever goes on with them, should the process be killed in between, finds some of
// these and some of those; of histograms it is not known then what they are about.
func (p *pins) publishCounters(coll *ebpf.Collection) error {
	if p == nil {
		return nil
	}
	if err := p.amend(func(info *pinnedInfo) { info.Profile = noProfile }); err != nil {
		return err
	}
	if err := p.info.Put(uint32(0), &p.says); err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	for _, name := range pinnedCounters {
		if err := p.pin(name, coll.Maps[name]); err != nil {
			return err
		}
	}
	return p.pin(pinInfo, p.info)
}

// publishGauges pins the gauges, which are right from now on, but for sockets in so
// many network namespaces that could not be looked into.
func (p *pins) publishGauges(coll *ebpf.Collection, missed int) error {
	if p == nil {
		return nil
	}
	if err := errors.Join(p.pin(pinGauges, coll.Maps["gauges"]), p.pin(pinCorrections, p.corrections)); err != nil {
		return err
	}
	var epoch [8]byte
	_, _ = rand.Read(epoch[:]) // never fails
	p.says.Epoch, p.says.Missed = binary.NativeEndian.Uint64(epoch[:])|1, uint32(missed)
	if err := p.info.Put(uint32(0), &p.says); err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	return p.goLive()
}

// goLive has others read the gauges.
func (p *pins) goLive() error {
	path := filepath.Join(p.dir.Name(), pinLive)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("pin counters: %w", err)
	}
	live, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("pin counters: %w", err)
	}
	p.live = live
	return lockPins(live)
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
	if p == nil {
		return nil
	}
	if err := p.corrections.Put(cookie, by[:]); err != nil {
		return fmt.Errorf("pin corrections: %w", err)
	}
	return nil
}

func (p *pins) forget(cookie uint64) {
	if p != nil {
		_ = p.corrections.Delete(cookie) // most have none
	}
}

// withdraw takes away what nobody is going to keep right any more.
func (p *pins) withdraw() error {
	if p == nil {
		return nil
	}
	var err error
	if p.live != nil {
		err = p.live.Close()
	}
	return errors.Join(err, p.amend(func(info *pinnedInfo) { info.Epoch = 0 }), p.remove(pinGauges), p.remove(pinCorrections))
}

// close leaves the counters to the next tracer.
func (p *pins) close() error {
	if p == nil {
		return nil
	}
	return errors.Join(p.info.Close(), p.corrections.Close(), p.dir.Close())
}
