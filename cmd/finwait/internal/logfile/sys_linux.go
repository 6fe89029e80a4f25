package logfile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// openFlags keep a symbolic link from being followed.
	openFlags = unix.O_NOFOLLOW
	// fifoFlags have the opening of a FIFO that nobody reads fail.
	fifoFlags = unix.O_NONBLOCK
)

// lock makes sure that no other process writes the log. A file system that has
// no locks has none here.
func lock(f *os.File) error {
	err := control(f, func(fd int) error {
		for {
			err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return errLocked
	case errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return nil
	}
	return err
}

// writable waits that long for room in a pipe, a socket or a terminal, and tells
// whether there is some, or an error to be had by writing.
func writable(f *os.File, wait time.Duration) (bool, error) {
	ready := false
	err := control(f, func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, int(wait.Milliseconds()))
		ready = n > 0
		if errors.Is(err, unix.EINTR) {
			return nil
		}
		return err
	})
	return ready, err
}

// resemble gives f the mode and the owner of the file that info is of, as far as
// this process may: those who may read one file of a log may read the next.
func resemble(f *os.File, info fs.FileInfo) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
	_ = f.Chmod(info.Mode().Perm())
}

// removed tells whether the file that info is of has no name any more.
func removed(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 0
}

// isFull tells whether err is that of a file system, or file, with no room. The
// open file is as good as another one.
func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// isPassing tells whether err, of opening a file, is likely to go away by itself.
// All others are mistakes of whoever has chosen the file.
func isPassing(err error) bool {
	for _, passing := range []error{
		unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.ESTALE, unix.ETIMEDOUT, unix.EINTR,
		unix.ENXIO, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EHOSTDOWN, unix.EHOSTUNREACH,
	} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = do(int(fd)) }); err != nil {
		return err
	}
	return failure
}
