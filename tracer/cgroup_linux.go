package tracer

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// cgroupCache is how many cgroups a Cgroups remembers at least; it may be
	// twice as many.
	cgroupCache = 4096
	// cgroupWalk is the largest number of cgroups that it walks over.
	cgroupWalk = 1 << 16
	// cgroupRetry is how long it takes for unknown what it could not find
	// out, and the least time from one walk to the next.
	cgroupRetry = time.Second
	// cgroupWalkShare is how many times as long as a walk took it waits for
	// the next one, so that walks never take more than a twentieth of a CPU.
	cgroupWalkShare = 20

	// fileidKernfs is FILEID_KERNFS of the kernel's enum fid_type: the handle is
	// the 64-bit id of the node, which for a cgroup is the cgroup's.
	fileidKernfs = 0xfe
)

// Cgroups finds the paths of version 2 cgroups by their ids. Each is asked for
// once: the kernel never gives an id again nor renames a cgroup, so what it
// answered stays true when the cgroup is gone. The ids of the last few
// thousand are remembered.
//
// It opens the cgroup by its id (open_by_handle_at), which needs
// CAP_DAC_READ_SEARCH in the initial user namespace. Where that is refused it
// walks over the cgroups and looks at their inode numbers, at most once a
// second; a cgroup that is made between two walks is not known before the
// second.
//
// It is safe for concurrent use. A lookup that asks the kernel holds up the
// others.
type Cgroups struct {
	mount *os.File // the root of the file system
	root  string   // its path

	mu sync.Mutex // protects what follows
	// recent and older are the cache. When recent is full it becomes older,
	// and what has not been looked up since is forgotten.
	recent, older map[uint64]cgroupEntry
	refused       bool              // handles are: walk
	walked        map[uint64]string // the paths that the last walk found
	nextWalk      time.Time
}

// cgroupEntry is the answer to a lookup.
type cgroupEntry struct {
	Cgroup
	known bool
	// retry is when to ask again, zero for an answer that stays.
	retry time.Time
}

// NewCgroups opens the file system of the version 2 cgroups, also where those of
// version 1 are in use next to them. Of several mounts it takes the one that
// shows the most. The error wraps [ErrNotSupported] if there is none.
//
// The caller must call [Cgroups.Close].
func NewCgroups() (*Cgroups, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find the cgroup file system: %w", err)
	}
	for _, point := range cgroupMounts(mountinfo) {
		mount, err := openCgroupMount(point)
		if err == nil {
			return &Cgroups{mount: mount, root: point, recent: map[uint64]cgroupEntry{}}, nil
		}
	}
	return nil, fmt.Errorf("find the cgroup file system: %w (no version 2 cgroups are mounted)", ErrNotSupported)
}

// Close closes the file system. Later lookups find only what is remembered.
func (c *Cgroups) Close() error {
	if c == nil {
		return nil
	}
	c.mu.Lock() // a lookup must not use the descriptor of another file
	defer c.mu.Unlock()
	return c.mount.Close()
}

// Lookup returns the cgroup of that id. ok is false if it is not known: it is
// gone, or outside of what the mount shows (in a cgroup namespace), or it could
// not be found out now. That a cgroup is gone is remembered as long as its path
// would be; all else is asked again after a second.
//
// It allocates nothing for a cgroup that is remembered. A nil Cgroups knows none.
func (c *Cgroups) Lookup(id uint64) (cg Cgroup, ok bool) {
	if c == nil || id == 0 {
		return Cgroup{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e, cached := c.cached(id)
	if !cached || !e.retry.IsZero() && time.Now().After(e.retry) {
		e = c.resolve(id)
		c.remember(id, e)
	}
	return e.Cgroup, e.known
}

func (c *Cgroups) cached(id uint64) (cgroupEntry, bool) {
	e, ok := c.recent[id]
	if ok {
		return e, true
	}
	if e, ok = c.older[id]; ok {
		c.remember(id, e)
	}
	return e, ok
}

func (c *Cgroups) remember(id uint64, e cgroupEntry) {
	if len(c.recent) >= cgroupCache {
		c.recent, c.older = map[uint64]cgroupEntry{}, c.recent
	}
	c.recent[id] = e
}

// errCgroupHidden is a cgroup that is not below the root of the mount.
var errCgroupHidden = errors.New("cgroup is not below the mount")

func (c *Cgroups) resolve(id uint64) cgroupEntry {
	path, err := c.pathOf(id)
	switch {
	case err == nil:
		e := cgroupEntry{Cgroup: Cgroup{ID: id, Path: path}, known: true}
		e.ContainerID, e.PodUID = ParseCgroupPath(path)
		return e
	case errors.Is(err, unix.ESTALE), errors.Is(err, errCgroupHidden):
		return cgroupEntry{}
	}
	return cgroupEntry{retry: time.Now().Add(cgroupRetry)}
}

func (c *Cgroups) pathOf(id uint64) (string, error) {
	if !c.refused {
		path, err := c.pathByHandle(id)
		if !isHandleRefused(err) {
			return path, err
		}
		c.refused = true
	}
	return c.pathByWalk(id, time.Now())
}

// isHandleRefused says whether err means that no cgroup can be opened by its
// handle: for want of CAP_DAC_READ_SEARCH, or in a sandbox.
func isHandleRefused(err error) bool {
	for _, refusal := range []error{unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

func (c *Cgroups) pathByHandle(id uint64) (string, error) {
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.OpenByHandleAt(int(c.mount.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	})
	if err != nil {
		return "", os.NewSyscallError("open_by_handle_at", err)
	}
	defer unix.Close(fd)
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	// The kernel says so if the cgroup is removed in between.
	return c.below(strings.TrimSuffix(path, " (deleted)"))
}

// below returns the path that is below the root of the mount. The kernel gives
// "/" for one that is elsewhere in the file system.
func (c *Cgroups) below(path string) (string, error) {
	rest, ok := strings.CutPrefix(path, c.root)
	switch {
	case ok && rest == "":
		return "/", nil
	case ok && rest[0] == '/':
		return rest, nil
	}
	return "", errCgroupHidden
}

func (c *Cgroups) pathByWalk(id uint64, now time.Time) (string, error) {
	if _, ok := c.walked[id]; !ok && now.After(c.nextWalk) {
		c.walk()
		took := time.Since(now)
		c.nextWalk = now.Add(max(cgroupRetry, cgroupWalkShare*took))
	}
	path, ok := c.walked[id]
	if !ok {
		return "", os.ErrNotExist
	}
	return c.below(path)
}

// walk notes the path of every cgroup. One that is removed meanwhile, or may not
// be read, is left out.
func (c *Cgroups) walk() {
	c.walked = map[uint64]string{}
	_ = filepath.WalkDir(c.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if len(c.walked) == cgroupWalk {
			return fs.SkipAll
		}
		if info, err := d.Info(); err == nil {
			c.walked[info.Sys().(*syscall.Stat_t).Ino] = path
		}
		return nil
	})
}

// cgroupMounts returns where the version 2 cgroups are mounted according to the
// mountinfo file: those first that show the most, which in a cgroup namespace
// may be more than the namespace does.
func cgroupMounts(mountinfo []byte) []string {
	type mount struct {
		point string
		above int
	}
	var mounts []mount
	for line := range bytes.Lines(mountinfo) {
		// 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
		before, after, _ := strings.Cut(string(line), " - ")
		fields := strings.Fields(before)
		if len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			mounts = append(mounts, mount{unescapeMount(fields[4]), levelsAbove(fields[3])})
		}
	}
	slices.SortStableFunc(mounts, func(a, b mount) int { return cmp.Compare(b.above, a.above) })
	points := make([]string, len(mounts))
	for i := range mounts {
		points[i] = mounts[i].point
	}
	return points
}

// levelsAbove returns how many levels a mount's root is above the root of the
// cgroup namespace, negative if it is below: 2 for "/../..", -1 for "/docker".
func levelsAbove(root string) (levels int) {
	for name := range strings.SplitSeq(strings.Trim(root, "/"), "/") {
		switch name {
		case "":
		case "..":
			levels++
		default:
			levels--
		}
	}
	return levels
}

// openCgroupMount opens what is mounted there, which may be another file system
// that hides the one of the cgroups.
func openCgroupMount(point string) (*os.File, error) {
	mount, err := os.Open(point)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	err = unix.Fstatfs(int(mount.Fd()), &st)
	if err == nil && st.Type != unix.CGROUP2_SUPER_MAGIC {
		err = fmt.Errorf("%s: %w", point, ErrNotSupported)
	}
	if err != nil {
		mount.Close()
		return nil, err
	}
	return mount, nil
}
