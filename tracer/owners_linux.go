package tracer

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// FindOwners returns the process that has each of the sockets open, by the
// inode numbers of their files ([Socket.Inode]): the one with the lowest PID if
// there are several. A socket that no process is known to hold is not in the
// map, nor is one that only a thread with a file table of its own holds. It
// takes the sockets of all network namespaces at once.
//
// hidden is the number of processes that the caller was not allowed to look
// into, before all owners were found: the sockets that are not in the map may be
// theirs. To see the processes of other users takes CAP_SYS_PTRACE; those of
// PID namespaces that /proc does not show are not seen at all.
//
// It takes some microseconds for each open file of the host's processes, which is the
// kernel's time for /proc/PID/fd. If ctx is done first, the error is that of ctx. It is
// safe for concurrent use.
func FindOwners(ctx context.Context, inodes []uint32) (owners map[uint32]Process, hidden int, err error) {
	owners = make(map[uint32]Process, len(inodes))
	for _, inode := range inodes {
		owners[inode] = Process{}
	}
	delete(owners, 0) // of a socket that is no file
	if hidden, err = claimSockets(ctx, owners); err != nil {
		return nil, 0, err
	}
	maps.DeleteFunc(owners, func(_ uint32, p Process) bool { return p.PID == 0 })
	return owners, hidden, nil
}

// claimSockets sets the owners of the sockets that are in the map, by inode
// number. Those that it does not find stay zero. It returns the number of
// processes that it could not look into.
func claimSockets(ctx context.Context, owners map[uint32]Process) (hidden int, err error) {
	unclaimed := len(owners)
	if unclaimed == 0 {
		return 0, nil
	}
	pids, err := listProcesses()
	if err != nil {
		return 0, fmt.Errorf("find socket owners: %w", err)
	}
	dir := newDirReader()
	for _, pid := range pids {
		if unclaimed == 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		owner := Process{PID: pid}
		err := eachSocket(pid, dir, func(inode uint32) {
			if before, wanted := owners[inode]; !wanted || before.PID != 0 {
				return
			}
			if owner.Comm == "" {
				owner.Comm = processName(pid)
			}
			owners[inode] = owner
			unclaimed--
		})
		if isDenied(err) {
			hidden++
		}
	}
	return hidden, nil
}

// listProcesses returns the PIDs in /proc, lowest first.
func listProcesses() ([]uint32, error) {
	proc, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc", Err: err}
	}
	defer unix.Close(proc)
	var pids []uint32
	err = newDirReader().each(proc, func(name []byte) {
		if pid, ok := parseUint32(name); ok {
			pids = append(pids, pid)
		}
	})
	slices.Sort(pids)
	return pids, err
}

// eachSocket calls visit with the inode number of every socket that the process
// has open. A process that has ended has none, which is no error.
func eachSocket(pid uint32, dir *dirReader, visit func(inode uint32)) error {
	path := procPath(pid, "fd")
	fds, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fds)
	var link [64]byte
	return dir.each(fds, func(name []byte) {
		if !isNumber(name) {
			return
		}
		n, err := unix.Readlinkat(fds, string(name), link[:])
		if err != nil {
			return // closed meanwhile
		}
		if inode, ok := parseSocketLink(link[:n]); ok {
			visit(inode)
		}
	})
}

// parseSocketLink returns the inode number of "socket:[123]".
func parseSocketLink(link []byte) (uint32, bool) {
	number, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok {
		return 0, false
	}
	number, ok = bytes.CutSuffix(number, []byte("]"))
	if !ok {
		return 0, false
	}
	return parseUint32(number)
}

func parseUint32(b []byte) (uint32, bool) {
	if !isNumber(b) || len(b) > 10 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		n = n*10 + uint64(c-'0')
	}
	return uint32(n), n <= 1<<32-1
}

// processName returns the process's name, or "" if it has ended.
func processName(pid uint32) string {
	name, err := os.ReadFile(procPath(pid, "comm"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(name, []byte("\n")))
}

func procPath(pid uint32, file string) string {
	return "/proc/" + strconv.FormatUint(uint64(pid), 10) + "/" + file
}
