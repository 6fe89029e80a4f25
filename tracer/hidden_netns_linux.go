//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// addHiddenNetns adds to spaces the network namespaces that no process is in
// and that are mounted nowhere, but that an open file keeps: the namespace
// itself, or a socket. One that has ended meanwhile is left out.
func (t *Tracer) addHiddenNetns(spaces []netns) ([]netns, error) {
	t.findRun++
	if err := t.coll.Variables["netns_run"].Set(t.findRun); err != nil {
		return spaces, err
	}
	out, err := t.runIter(findProgram)
	if err != nil {
		return spaces, err
	}
	for ; len(out) >= int(unsafe.Sizeof(bpfFinwaitNetnsFile{})); out = out[unsafe.Sizeof(bpfFinwaitNetnsFile{}):] {
		var file bpfFinwaitNetnsFile
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&file)), unsafe.Sizeof(file)), out)
		known := func(n netns) bool { return n.inode == file.Netns }
		if slices.ContainsFunc(spaces, known) {
			continue
		}
		if n, err := openNetnsFile(&file); err == nil {
			spaces = append(spaces, n)
		}
	}
	return spaces, nil
}

// openNetnsFile opens the network namespace that another process's file keeps.
func openNetnsFile(file *bpfFinwaitNetnsFile) (netns, error) {
	if file.Socket != 0 {
		return netnsOfSocket(file)
	}
	n, err := openNetns(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/fd/%d", file.Pid, file.Fd))
	if err != nil {
		return n, err
	}
	kind, err := unix.IoctlRetInt(n.fd, unix.NS_GET_NSTYPE)
	return n.checked(file.Netns, err == nil && kind == unix.CLONE_NEWNET)
}

func netnsOfSocket(file *bpfFinwaitNetnsFile) (netns, error) {
	process, err := unix.PidfdOpen(int(file.Pid), 0)
	if err != nil {
		return netns{}, err
	}
	defer unix.Close(process)
	socket, err := unix.PidfdGetfd(process, int(file.Fd), 0)
	if err != nil {
		return netns{}, err
	}
	defer unix.Close(socket)
	fd, err := unix.IoctlRetInt(socket, unix.SIOCGSKNS)
	if err != nil {
		return netns{}, err
	}
	unix.CloseOnExec(fd)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	n := netns{fd: fd, inode: uint32(st.Ino)}
	return n.checked(file.Netns, err == nil)
}

// checked returns n if it is what it was taken for: the file may be another by
// now.
func (n netns) checked(inode uint32, ok bool) (netns, error) {
	if ok && n.inode == inode {
		return n, nil
	}
	n.close()
	return netns{}, unix.ESTALE
}
