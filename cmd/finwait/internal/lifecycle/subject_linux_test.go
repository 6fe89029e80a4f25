package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/finwait/finwait/tracer"
)

// subjectKeeps makes this binary one that starts to trace, keeps these
// capabilities alone, does what the agent does, and says what came of it.
// subjectCgroup is a cgroup to look up.
const (
	subjectKeeps  = "FINWAIT_TEST_KEEPS"
	subjectCgroup = "FINWAIT_TEST_CGROUP"

	keepAll  = "all"
	keepKept = "kept" // what Drop keeps
)

// findings are what became of what the agent does.
type findings struct {
	Left   []string          // capabilities
	Failed map[string]string // errors by what was done
	Netns  []uint32          // whose sockets Stuck found
	Census []uint32          // whose sockets TakeCensus counted
	Owners []uint32          // pids that it found to own sockets
	Walks  bool              // cgroups are found by walking
}

// subject runs what the agent does.
type subject struct {
	findings
	t *tracer.Tracer
}

func (s *subject) try(what string, err error) {
	if err != nil {
		s.Failed[what] = err.Error()
	}
}

func beSubject(keeps string) error {
	s := &subject{findings: findings{Failed: map[string]string{}}}
	connect, netns, err := elsewhere()
	if err != nil {
		return err
	}
	s.t, err = tracer.New(&tracer.Options{
		Conns: &tracer.ConnOptions{}, Profile: &tracer.ProfileOptions{}, AuditInterval: -1,
	})
	if err != nil {
		return err
	}
	if err := s.drop(keeps); err != nil {
		return err
	}
	s.stream(connect, netns)
	s.read()
	s.look()
	s.try("Detach", s.t.Detach())
	counters, err := s.t.Counters()
	if err == nil && counters.Total() == 0 {
		err = errors.New("nothing counted")
	}
	s.try("Counters after Detach", err)
	s.try("Close", s.t.Close())
	return json.NewEncoder(os.Stdout).Encode(&s.findings)
}

func (s *subject) drop(keeps string) (err error) {
	switch keeps {
	case keepAll:
		return nil
	case keepKept:
		s.Left, err = Drop()
		return err
	}
	var values []cap.Value
	for name := range strings.SplitSeq(keeps, ",") {
		if name == "" {
			continue
		}
		value, err := cap.FromName(strings.ToLower(name))
		if err != nil {
			return err
		}
		values = append(values, value)
	}
	s.Left, err = dropTo(values)
	return err
}

// stream has a connection made and waits for its end in both streams.
func (s *subject) stream(connect func() error, netns uint32) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.try("connect", connect())
	s.try("Events", await(s.t.Events(ctx), func(ev *tracer.Event) bool { return ev.Netns == netns && ev.New == tracer.StateClose }))
	s.try("Conns", await(s.t.Conns(ctx), func(c *tracer.Conn) bool { return c.Netns == netns }))
}

// elsewhere returns what makes a connection in another network namespace, where it
// may, and the namespace's number. To connect there takes no privilege.
func elsewhere() (connect func() error, netns uint32, err error) {
	ready, begin, done := make(chan error), make(chan struct{}), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread stays in its namespace
		fd, err := newNetns(&netns)
		ready <- err
		<-begin
		done <- errors.Join(connectHere(false), unix.Close(fd))
	}()
	if err := <-ready; errors.Is(err, os.ErrPermission) {
		var st unix.Stat_t
		err := unix.Stat("/proc/self/ns/net", &st)
		return func() error { return connectHere(false) }, uint32(st.Ino), err
	} else if err != nil {
		return nil, 0, err
	}
	return func() error { close(begin); return <-done }, netns, nil
}

func await[T any](items iter.Seq2[*T, error], wanted func(*T) bool) error {
	for item, err := range items {
		if err != nil {
			return err
		}
		if wanted(item) {
			return nil
		}
	}
	return errors.New("nothing came")
}

// read reads what is counted.
func (s *subject) read() {
	_, err := s.t.Counters()
	s.try("Counters", err)
	ledger, err := s.t.Ledger()
	if err == nil && ledger.SweepFailed > 0 {
		err = fmt.Errorf("%d sweeps failed", ledger.SweepFailed)
	}
	s.try("Ledger", err)
	_, err = s.t.Profile()
	s.try("Profile", err)
	stats, err := s.t.Stats()
	if err == nil && (len(stats.Maps) == 0 || len(stats.Programs) == 0) {
		err = errors.New("no maps, or no programs")
	}
	s.try("Stats", err)
	_, err = s.t.Gauges(context.Background())
	s.try("Gauges", err)
}

// look looks at the host.
func (s *subject) look() {
	ctx := context.Background()
	_, err := s.t.Audit(ctx)
	s.try("Audit", err)
	stuck, err := s.t.Stuck(ctx, &tracer.StuckOptions{Over: map[tracer.State]time.Duration{
		tracer.StateEstablished: 1, tracer.StateTimeWait: 1,
	}})
	s.try("Stuck", err)
	if err == nil {
		for _, socket := range stuck.Sockets {
			s.Netns = append(s.Netns, socket.Netns)
		}
	}
	census, err := tracer.TakeCensus(ctx, &tracer.CensusOptions{By: tracer.ByNetns})
	s.try("TakeCensus", err)
	if err == nil {
		for _, group := range census.Groups {
			s.Census = append(s.Census, group.Netns)
		}
	}
	census, err = tracer.TakeCensus(ctx, &tracer.CensusOptions{By: tracer.ByProcess})
	s.try("TakeCensus by process", err)
	if err == nil {
		for _, group := range census.Groups {
			s.Owners = append(s.Owners, group.PID)
		}
	}
	s.try("Cgroups", s.lookUp(os.Getenv(subjectCgroup)))
}

func (s *subject) lookUp(path string) error {
	cgroups, err := tracer.NewCgroups()
	if err != nil {
		return err
	}
	defer cgroups.Close()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	cgroup, ok := cgroups.Lookup(st.Ino)
	if !ok || filepath.Base(cgroup.Path) != filepath.Base(path) {
		return fmt.Errorf("%d is %+v", st.Ino, cgroup)
	}
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return err
	}
	mount, err := os.Open(path)
	if err != nil {
		return err
	}
	defer mount.Close()
	fd, err := unix.OpenByHandleAt(int(mount.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if s.Walks = err != nil; err == nil {
		unix.Close(fd)
	}
	return nil
}

// hostUID makes this binary a process of that user that has a network namespace
// of each kind: one that a thread is in, one that an open file keeps, one that a
// socket keeps. It writes their inode numbers, and ends with its input.
const hostUID = "FINWAIT_TEST_HOST_UID"

// hosted are the namespaces of a process.
type hosted struct {
	PID                  uint32
	Thread, File, Socket uint32
}

func beHost(uid string) error {
	runtime.LockOSThread() // never unlocked: the thread stays in its namespace
	h := hosted{PID: uint32(os.Getpid())}
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for _, space := range []struct {
		inode                *uint32
		file, socket, remain bool
	}{
		{inode: &h.Socket, socket: true}, {inode: &h.File, file: true}, {inode: &h.Thread, socket: true, remain: true},
	} {
		fd, err := newNetns(space.inode)
		if err != nil {
			return err
		}
		if err := connectHere(space.socket); err != nil {
			return err
		}
		if !space.file {
			unix.Close(fd)
		}
		if space.remain {
			break
		}
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			return err
		}
	}
	var id int
	if _, err := fmt.Sscan(uid, &id); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgid(id), syscall.Setuid(id)); err != nil {
		return err
	}
	// As if that user had started it: what is in /proc belongs to the user.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(&h); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// newNetns moves the calling thread to a new namespace with loopback.
func newNetns(inode *uint32) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return -1, err
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	*inode = uint32(st.Ino)
	return fd, loopbackUp()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// connectHere makes a connection in the calling thread's namespace, which stays
// open if keep, and is in TIME_WAIT else.
func connectHere(keep bool) error {
	sockets := [3]int{}
	for i := range 2 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		sockets[i] = fd
	}
	listener, client := sockets[0], sockets[1]
	if err := errors.Join(unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(listener, 1)); err != nil {
		return err
	}
	at, err := unix.Getsockname(listener)
	if err != nil {
		return err
	}
	if err := unix.Connect(client, at); err != nil {
		return err
	}
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil || keep {
		return err
	}
	if err := unix.Close(client); err != nil {
		return err
	}
	// The end of the stream has come when the FIN has, and TIME_WAIT follows.
	if _, err := unix.Read(server, make([]byte, 1)); err != nil {
		return err
	}
	return errors.Join(unix.Close(server), unix.Close(listener))
}
