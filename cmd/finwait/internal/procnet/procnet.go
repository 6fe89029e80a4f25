// Package procnet reads what the kernel itself says of TCP under /proc: its
// counters, how many sockets there are, connection tracking, what a socket
// takes, and how many files a process may open.
//
// What belongs to a network namespace is read of the calling thread's: a caller
// that has moved its thread to another one must be locked to it
// (runtime.LockOSThread), and no function here reads on another goroutine.
//
// A number that the kernel does not tell is absent. Where there is no such file
// at all, as on systems other than Linux, the error is [io/fs.ErrNotExist].
package procnet

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// threadNet is what the kernel says of the calling thread's network namespace.
// /proc/net is that of the process's first thread.
const threadNet = "/proc/thread-self/net/"

// readNumber reads a file that has one number, such as a sysctl's, which below
// /proc/sys/net is that of the calling thread's namespace too.
func readNumber(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return n, nil
}

// readCount reads a file that has one number which is not negative.
func readCount(path string) (uint64, error) {
	n, err := readNumber(path)
	if err == nil && n < 0 {
		err = fmt.Errorf("read %s: %d is negative", path, n)
	}
	if err != nil {
		return 0, err
	}
	return uint64(n), nil
}
