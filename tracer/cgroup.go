package tracer

import "strings"

// Cgroup is a version 2 cgroup and what its path gives away. What it does not
// give away is empty.
type Cgroup struct {
	// ID is the kernel's number for it, the one in [Owner.CgroupID].
	ID uint64
	// Path is its path below the root of the file system's mount that was
	// asked, such as "/system.slice/sshd.service"; the root is "/".
	Path string
	// ContainerID and PodUID are what ParseCgroupPath finds in Path.
	ContainerID, PodUID string
}

// ParseCgroupPath returns the container that processes in the cgroup of that
// path are in, and the pod, each empty if there is none or if the path does not
// say. It knows the paths that Docker, containerd, CRI-O, Podman, nerdctl, ECS,
// the kubelet and LXC make, with systemd or without.
//
// Where one container is inside another, the innermost counts, and a pod inside
// a container (the node of a nested cluster) hides the container around it.
// The processes that watch a container (conmon, lxc monitor) are not in it.
//
// A container's id is 64 lower-case hexadecimal digits, but for LXC, which has
// names. A pod's uid is written as in the Kubernetes API, with dashes; that of a
// static pod has none: it is 32 digits.
//
// Whoever may make cgroups chooses their names, in a container that was given
// its cgroup too, so a name of LXC may hold any byte, and a process in such a
// container can claim to be in another one inside.
func ParseCgroupPath(path string) (containerID, podUID string) {
	parent, depth := "", 0
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if uid := podOf(name, parent); uid != "" {
			containerID, podUID = "", uid
		}
		if id := containerOf(name); id != "" {
			containerID = id
		} else if depth == 1 && parent == "lxc" { // LXC up to 3.0, and Proxmox VE
			containerID = name
		}
		parent, depth = name, depth+1
	}
	return containerID, podUID
}

// containerOf returns the id of the container that a cgroup of that name holds:
// docker-ID.scope and crio-ID of systemd, system.slice:docker:ID of runc where it
// takes systemd's notation for a path, lxc.payload.NAME, and the bare id of the
// other drivers, below whatever parent the user gave them.
func containerOf(name string) string {
	if isContainerID(name) {
		return name
	}
	if payload, ok := strings.CutPrefix(name, "lxc.payload."); ok {
		return payload
	}
	name = strings.TrimSuffix(name, ".scope")
	i := strings.LastIndexAny(name, "-:")
	if i < 0 {
		return ""
	}
	engine, id := name[:i], name[i+1:]
	if name[i] == ':' {
		_, engine, _ = strings.Cut(engine, ":")
	}
	if !isEngine(engine) || !isContainerID(id) {
		return ""
	}
	return id
}

// isEngine says whether name is what an engine puts before the id of a
// container. crio-conmon and libpod-conmon stand before the id of one that the
// process watches from outside.
func isEngine(name string) bool {
	switch name {
	case "docker", "cri-containerd", "nerdctl", "crio", "libpod", "libpod-payload":
		return true
	}
	return false
}

func isContainerID(s string) bool { return len(s) == 64 && isHex(s) }

// podOf returns the uid of the pod whose cgroup has that name and that parent:
// kubepods-burstable-podUID.slice of the kubelet's systemd driver, which writes
// underscores for dashes, or podUID in burstable of the other. The first may be
// followed by a colon and the rest of runc's notation.
func podOf(name, parent string) string {
	name, _, _ = strings.Cut(name, ":")
	if slice, ok := strings.CutSuffix(name, ".slice"); ok {
		i := strings.LastIndex(slice, "-pod")
		if i < 0 || !isKubepods(slice[:i]) {
			return ""
		}
		return podUID(strings.ReplaceAll(slice[i+len("-pod"):], "_", "-"))
	}
	uid, ok := strings.CutPrefix(name, "pod")
	if !ok || !holdsPods(parent) {
		return ""
	}
	return podUID(uid)
}

// holdsPods says whether the cgroup of that name holds pods, or may: in a cgroup
// namespace the path need not say.
func holdsPods(name string) bool {
	switch name {
	case "kubepods", "burstable", "besteffort", "", "..":
		return true
	}
	return false
}

// isKubepods says whether the slice of that name holds pods. The kubelet's
// --cgroup-root stands before: kubelet-kubepods in kind.
func isKubepods(slice string) bool {
	slice = strings.TrimSuffix(slice, "-burstable")
	slice = strings.TrimSuffix(slice, "-besteffort")
	return slice == "kubepods" || strings.HasSuffix(slice, "-kubepods")
}

// podUID returns s if it is the uid of a pod, or "".
func podUID(s string) string {
	if len(s) == 32 && isHex(s) {
		return s
	}
	if len(s) != 36 {
		return ""
	}
	for i := range len(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (s[i] == '-') || !dash && !isHex(s[i:i+1]) {
			return ""
		}
	}
	return s
}

// isHex says whether s is all lower-case hexadecimal digits.
func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }
