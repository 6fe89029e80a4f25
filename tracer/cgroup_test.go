package tracer

import (
	"regexp"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

const (
	cgroupID1 = "ae2a4e6a9ca1c1d2a8f0d7b1f6a2c6a1b27d6c1ac5a0e8c8f1e5d3b0c9a87654"
	cgroupID2 = "0b1c2d3e4f5061728394a5b6c7d8e9f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
	cgroupUID = "7d5f3b1e-0c4a-4f3e-9a51-2b6c8d9e0f12"
	// The kubelet takes a hash for the uid of a static pod.
	cgroupStaticUID = "f0a1b2c3d4e5f60718293a4b5c6d7e8f"
)

// cgroupPaths are paths as engines make them. ID1, ID2, UID, U_ID (with
// underscores) and STATIC stand for the constants.
var cgroupPaths = []struct{ path, container, pod string }{
	// Docker.
	{"/system.slice/docker-ID1.scope", "ID1", ""},
	{"/docker/ID1", "ID1", ""},
	{"/docker-ID1.scope", "ID1", ""},
	{"/system.slice/docker-ID1.scope/init.scope", "ID1", ""},
	{"/system.slice/docker-ID1.scope/system.slice/nginx.service", "ID1", ""},
	{"/user.slice/user-1000.slice/user@1000.service/app.slice/docker-ID1.scope", "ID1", ""},
	{"/actions_job/ID1", "ID1", ""}, // --cgroup-parent
	{"/nomad.slice/share.slice/docker-ID1.scope", "ID1", ""},
	{"/system.slice/docker.service/system.slice:docker:ID1", "ID1", ""},
	{"/docker/buildkit/k3vbk5o6d2y0v1zq3w0n4f9ru", "", ""},
	// containerd, nerdctl.
	{"/system.slice/nerdctl-ID1.scope", "ID1", ""},
	{"/default/ID1", "ID1", ""},
	{"/k8s.io/ID1", "ID1", ""},
	{"/system.slice/containerd.service/system.slice:cri-containerd:ID1", "ID1", ""},
	{"/system.slice/cri-containerd-ID1.scope", "ID1", ""},
	// Podman.
	{"/machine.slice/libpod-ID1.scope", "ID1", ""},
	{"/machine.slice/libpod-ID1.scope/container", "ID1", ""},
	{"/machine.slice/machine-libpod_pod_ID2.slice/libpod-ID1.scope/container", "ID1", ""},
	{"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID1.scope/container", "ID1", ""},
	{"/system.slice/web.service/libpod-payload-ID1", "ID1", ""}, // --cgroups=split
	{"/libpod_parent/libpod-ID1", "ID1", ""},
	{"/machine.slice/libpod-conmon-ID1.scope", "", ""},
	{"/libpod_parent/conmon", "", ""},
	// The kubelet's systemd driver.
	{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice/cri-containerd-ID1.scope", "ID1", "UID"},
	{"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_ID.slice/docker-ID1.scope", "ID1", "UID"},
	{"/kubepods.slice/kubepods-podU_ID.slice/crio-ID1.scope", "ID1", "UID"},
	{"/kubepods.slice/kubepods-podU_ID.slice/crio-ID1.scope/container", "ID1", "UID"},
	{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice/crio-conmon-ID1.scope", "", "UID"},
	{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice", "", "UID"},
	{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSTATIC.slice/cri-containerd-ID1.scope", "ID1", "STATIC"},
	{"/system.slice/containerd.service/kubepods-burstable-podU_ID.slice:cri-containerd:ID1", "ID1", "UID"},
	{"/kubepods-besteffort-podUID.slice:cri-containerd:ID1", "ID1", "UID"},
	{"/tenants.slice/tenants-kubepods.slice/tenants-kubepods-podU_ID.slice/crio-ID1.scope", "ID1", "UID"},
	// The kubelet's cgroupfs driver.
	{"/kubepods/besteffort/podUID/ID1", "ID1", "UID"},
	{"/kubepods/burstable/podUID/ID1", "ID1", "UID"},
	{"/kubepods/podUID/ID1", "ID1", "UID"},
	{"/kubepods/burstable/podUID", "", "UID"},
	{"/kubepods/burstable/podSTATIC/ID1", "ID1", "STATIC"},
	{"/kubepods/burstable/podUID/crio-ID1", "ID1", "UID"},
	{"/kubepods/burstable/podUID/crio-conmon-ID1", "", "UID"},
	{"/k8s/kubepods/burstable/podUID/ID1", "ID1", "UID"},
	// As a cgroup namespace shows them.
	{"/podUID/ID1", "ID1", "UID"},
	{"/../../podUID/ID1", "ID1", "UID"},
	{"/../cri-containerd-ID1.scope", "ID1", ""},
	// ECS.
	{"/ecs/4d0b4e62f3d94d6f9a5f3b2c1d0e9f8a/ID1", "ID1", ""},
	{"/ecs/UID/ID1", "ID1", ""},
	{"/ecstasks.slice/ecstasks-4d0b4e62f3d94d6f9a5f3b2c1d0e9f8a.slice/docker-ID1.scope", "ID1", ""},
	// Containers in containers: kind, k3d, Docker in a pod, Docker in LXC.
	{"/system.slice/docker-ID2.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/" +
		"kubelet-kubepods-besteffort-podU_ID.slice/cri-containerd-ID1.scope", "ID1", "UID"},
	{"/docker/ID2/kubelet/kubepods/burstable/podUID/ID1", "ID1", "UID"},
	{"/docker/ID2/kubelet/kubepods/burstable/podUID", "", "UID"},
	{"/docker/ID2/kubepods/burstable/podUID/ID1", "ID1", "UID"},
	{"/system.slice/docker-ID2.scope/kubelet.slice/kubelet.service", "ID2", ""},
	{"/kubepods/burstable/podUID/ID2/docker/ID1", "ID1", "UID"},
	{"/lxc.payload.web/docker/ID1", "ID1", ""},
	{"/lxc.payload.outer/lxc.payload.inner", "inner", ""},
	// LXC.
	{"/lxc.payload.web-1", "web-1", ""},
	{"/lxc.payload.web-1/system.slice/nginx.service", "web-1", ""},
	{"/lxc/web", "web", ""},
	{"/lxc/101/ns/init.scope", "101", ""},
	{"/lxc.monitor.web-1", "", ""},
	{"/lxc.monitor/101", "", ""},
	{"/lxc", "", ""},
	{"/system.slice/lxc/web", "", ""},
	// No containers.
	{"", "", ""},
	{"/", "", ""},
	{"/init.scope", "", ""},
	{"/system.slice/docker.service", "", ""},
	{"/system.slice/containerd.service", "", ""},
	{"/kubepods.slice", "", ""},
	{"/kubepods/burstable", "", ""},
	{"/user.slice/user-1000.slice/session-2.scope", "", ""},
	{`/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator`, "", ""},
	// Almost.
	{"/docker/ID1f", "", ""},
	{"/system.slice/docker-ID1f.scope", "", ""},
	{"/system.slice/docker-" + strings.ToUpper(cgroupID1) + ".scope", "", ""},
	{"/system.slice/run-ID1.scope", "", ""},
	{"/system.slice/docker:ID1", "", ""},
	{"/system.slice/docker-ID1.mount", "", ""},
	{"/burstable/podnot-a-uid/x", "", ""},
	{"/other/podUID", "", ""},
	{"/other.slice/other-podU_ID.slice", "", ""},
	{"/kubepods/pod7d5f3b1e_0c4a_4f3e_9a51_2b6c8d9e0f12", "", ""},
	{"/kubepods/pod7d5f3b1e-0c4a-4f3e-9a512-b6c8d9e0f12", "", ""},
	{"/kubepods/pod7D5F3B1E-0C4A-4F3E-9A51-2B6C8D9E0F12", "", ""},
}

// cgroupNames puts the constants in the place of their names.
var cgroupNames = strings.NewReplacer("ID1", cgroupID1, "ID2", cgroupID2, "STATIC", cgroupStaticUID,
	"UID", cgroupUID, "U_ID", strings.ReplaceAll(cgroupUID, "-", "_"))

func TestParseCgroupPath(t *testing.T) {
	for _, tt := range cgroupPaths {
		container, pod := ParseCgroupPath(cgroupNames.Replace(tt.path))
		qt.Check(t, qt.Equals(container, cgroupNames.Replace(tt.container)), qt.Commentf("%s", tt.path))
		qt.Check(t, qt.Equals(pod, cgroupNames.Replace(tt.pod)), qt.Commentf("%s", tt.path))
	}
}

var (
	containerIDForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
	podUIDForm      = regexp.MustCompile(`^([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$`)
)

// FuzzParseCgroupPath expects that what is found stands in the path, in its one
// form.
func FuzzParseCgroupPath(f *testing.F) {
	for _, tt := range cgroupPaths {
		f.Add(cgroupNames.Replace(tt.path))
	}
	f.Fuzz(func(t *testing.T, path string) {
		container, pod := ParseCgroupPath(path)
		if container != "" {
			lxc := strings.Contains(path, "lxc.payload."+container) || strings.Contains("/"+path, "/lxc/"+container)
			qt.Assert(t, qt.IsTrue(lxc || containerIDForm.MatchString(container)), qt.Commentf("%q", container))
			qt.Assert(t, qt.StringContains(path, container))
			qt.Assert(t, qt.IsFalse(strings.Contains(container, "/")))
		}
		if pod != "" {
			qt.Assert(t, qt.IsTrue(podUIDForm.MatchString(pod)), qt.Commentf("%q", pod))
			qt.Assert(t, qt.StringContains(strings.ReplaceAll(path, "_", "-"), pod))
		}
	})
}
