package observe

import "golang.org/x/sys/unix"

// netnsCookie returns the number of the thread's network namespace that no other ever
// has, 0 if the kernel has none: it does since Linux 5.14.
func netnsCookie() uint64 {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

// namedPath returns where ip netns has the namespace of that name, "" if it has not.
func namedPath(name string, inode uint32) string {
	path := "/run/netns/" + name
	var st unix.Stat_t
	if name == "" || unix.Stat(path, &st) != nil || st.Ino != uint64(inode) {
		return ""
	}
	return path
}
