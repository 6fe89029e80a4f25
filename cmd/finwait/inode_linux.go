package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// inodeOf returns the inode number of a file, which for a network namespace
// and on 64-bit systems for a cgroup is its id in the kernel.
func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Ino, nil
}
