package tracer

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

func newTestCgroups(t testing.TB) *Cgroups {
	t.Helper()
	c, err := NewCgroups()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { qt.Check(t, qt.IsNil(c.Close())) })
	return c
}

// makeCgroups makes cgroups, each in the one before, and returns their path and
// the id of the last.
func makeCgroups(t testing.TB, c *Cgroups, names ...string) (path string, id uint64) {
	t.Helper()
	requireRoot(t)
	for i, name := range names {
		path += "/" + name
		if err := os.Mkdir(c.root+path, 0o755); err != nil && i == 0 {
			t.Skip(err) // read-only, in a container
		} else if err != nil {
			t.Fatal(err)
		}
		dir := c.root + path
		t.Cleanup(func() { _ = os.Remove(dir) }) // some tests do that
	}
	return path, cgroupInode(t, c.root+path)
}

func cgroupInode(t testing.TB, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	qt.Assert(t, qt.IsNil(unix.Stat(dir, &st)))
	return st.Ino
}

// cgroupWays are the ways to ask the kernel.
var cgroupWays = map[string]bool{"handle": false, "walk": true}

func TestCgroupsLookup(t *testing.T) {
	for way, refused := range cgroupWays {
		t.Run(way, func(t *testing.T) {
			c := newTestCgroups(t)
			c.refused = refused
			scope := "docker-" + cgroupID1 + ".scope"
			path, id := makeCgroups(t, c, "finwait-test a\tb\\c (deleted).slice", scope, "init.scope")

			want := Cgroup{ID: id, Path: path, ContainerID: cgroupID1}
			got, ok := c.Lookup(id)
			qt.Assert(t, qt.IsTrue(ok))
			qt.Assert(t, qt.Equals(got, want))
			qt.Assert(t, qt.Equals(c.refused, refused))

			root, ok := c.Lookup(cgroupInode(t, c.root))
			qt.Assert(t, qt.IsTrue(ok))
			qt.Assert(t, qt.Equals(root.Path, "/"))

			// What was found stays when the cgroup is gone; another asks in vain.
			qt.Assert(t, qt.IsNil(os.Remove(c.root+path)))
			got, ok = c.Lookup(id)
			qt.Assert(t, qt.IsTrue(ok))
			qt.Assert(t, qt.Equals(got, want))
			late := newTestCgroups(t)
			late.refused = refused
			got, ok = late.Lookup(id)
			qt.Assert(t, qt.IsFalse(ok))
			qt.Assert(t, qt.Equals(got, Cgroup{}))
			qt.Assert(t, qt.Equals(late.recent[id].retry.IsZero(), !refused))
		})
	}
}

// TestCgroupsWalkAgain makes a cgroup after the walk: the next one finds it.
func TestCgroupsWalkAgain(t *testing.T) {
	c := newTestCgroups(t)
	c.refused = true
	_, ok := c.Lookup(cgroupInode(t, c.root))
	qt.Assert(t, qt.IsTrue(ok))
	path, id := makeCgroups(t, c, "finwait-test-late")
	_, ok = c.Lookup(id)
	qt.Assert(t, qt.IsFalse(ok))

	_, err := c.pathByWalk(id, c.nextWalk)
	qt.Assert(t, qt.ErrorIs(err, os.ErrNotExist))
	got, err := c.pathByWalk(id, c.nextWalk.Add(time.Second))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(got, path))
}

func TestCgroupsLookupUnknown(t *testing.T) {
	c := newTestCgroups(t)
	for _, id := range []uint64{0, 1 << 63, ^uint64(0)} {
		_, ok := c.Lookup(id)
		qt.Check(t, qt.IsFalse(ok))
	}
	var none *Cgroups
	_, ok := none.Lookup(1)
	qt.Check(t, qt.IsFalse(ok))
	qt.Check(t, qt.IsNil(none.Close()))
}

// TestCgroupsRetry lets an answer that does not stay get old.
func TestCgroupsRetry(t *testing.T) {
	c := newTestCgroups(t)
	id := cgroupInode(t, c.root)
	c.remember(id, cgroupEntry{retry: time.Now().Add(time.Hour)})
	_, ok := c.Lookup(id)
	qt.Assert(t, qt.IsFalse(ok))
	c.remember(id, cgroupEntry{retry: time.Now().Add(-time.Second)})
	_, ok = c.Lookup(id)
	qt.Assert(t, qt.IsTrue(ok))
}

// TestCgroupsCache fills the cache many times over: what is in use stays.
func TestCgroupsCache(t *testing.T) {
	c := &Cgroups{recent: map[uint64]cgroupEntry{}}
	used := cgroupEntry{Cgroup: Cgroup{ID: 1, Path: "/used"}, known: true}
	c.remember(1, used)
	for id := range uint64(10 * cgroupCache) {
		c.remember(id+2, cgroupEntry{})
		got, ok := c.Lookup(1)
		qt.Assert(t, qt.IsTrue(ok))
		qt.Assert(t, qt.Equals(got, used.Cgroup))
		qt.Assert(t, qt.IsTrue(len(c.recent)+len(c.older) <= 2*cgroupCache))
	}
	_, ok := c.cached(2)
	qt.Assert(t, qt.IsFalse(ok))
}

func TestCgroupsLookupAllocations(t *testing.T) {
	c := newTestCgroups(t)
	id := cgroupInode(t, c.root)
	c.Lookup(id)
	qt.Assert(t, qt.Equals(testing.AllocsPerRun(100, func() { c.Lookup(id) }), 0))
}

func TestCgroupsConcurrent(t *testing.T) {
	c := newTestCgroups(t)
	id := cgroupInode(t, c.root)
	var wg sync.WaitGroup
	for i := range uint64(8) {
		wg.Go(func() {
			for n := range uint64(100) {
				c.Lookup(1<<40 + i*100 + n)
				_, ok := c.Lookup(id)
				qt.Check(t, qt.IsTrue(ok))
			}
		})
	}
	wg.Wait()
}

// TestCgroupsHidden looks from a mount that shows a part of the file system.
func TestCgroupsHidden(t *testing.T) {
	c := newTestCgroups(t)
	part, _ := makeCgroups(t, c, "finwait-test-part")
	inside, insideID := makeCgroups(t, c, "finwait-test-part/inside")
	_, outsideID := makeCgroups(t, c, "finwait-test-other")
	point := filepath.Join(t.TempDir(), "bind")
	qt.Assert(t, qt.IsNil(os.Mkdir(point, 0o755)))
	qt.Assert(t, qt.IsNil(unix.Mount(c.root+part, point, "", unix.MS_BIND, "")))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(unix.Unmount(point, unix.MNT_DETACH))) })

	mount, err := openCgroupMount(point)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { mount.Close() })
	for way, refused := range cgroupWays {
		bound := &Cgroups{mount: mount, root: point, recent: map[uint64]cgroupEntry{}, refused: refused}
		got, ok := bound.Lookup(insideID)
		qt.Check(t, qt.IsTrue(ok), qt.Commentf("%s", way))
		qt.Check(t, qt.Equals(point+got.Path, point+inside[len(part):]), qt.Commentf("%s", way))
		_, ok = bound.Lookup(outsideID)
		qt.Check(t, qt.IsFalse(ok), qt.Commentf("%s", way))
	}
}

func TestOpenCgroupMountOther(t *testing.T) {
	_, err := openCgroupMount(t.TempDir())
	qt.Assert(t, qt.ErrorIs(err, ErrNotSupported))
	_, err = openCgroupMount(filepath.Join(t.TempDir(), "nosuch"))
	qt.Assert(t, qt.ErrorIs(err, os.ErrNotExist))
}

func TestCgroupMounts(t *testing.T) {
	const mountinfo = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 22 0:28 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro
41 22 0:38 /docker/x /part rw shared:9 - cgroup2 cgroup2 rw,nsdelegate
42 22 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
43 22 0:38 / /with\040space rw,relatime - cgroup2 none rw
44 31 0:39 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
45 22 0:38 /../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw
cut short - cgroup2 cgroup2
`
	want := []string{"/host/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/with space", "/part"}
	qt.Assert(t, qt.DeepEquals(cgroupMounts([]byte(mountinfo)), want))
	qt.Assert(t, qt.HasLen(cgroupMounts(nil), 0))
}
