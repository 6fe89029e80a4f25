package test

import (
	"encoding/csv"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
)

const (
	containerID = "ae2a4e6a9ca1c1d2a8f0d7b1f6a2c6a1b27d6c1ac5a0e8c8f1e5d3b0c9a87654"
	podUID      = "7d5f3b1e-0c4a-4f3e-9a51-2b6c8d9e0f12"
	podSlice    = "kubepods-burstable-pod7d5f3b1e_0c4a_4f3e_9a51_2b6c8d9e0f12.slice"
)

// transitionsOfActor is how many transitions a run of an actor makes: those of
// a listener and of a connection.
const transitionsOfActor = 2 + 11

// containerTests are cgroups, below one of the test, as engines name them.
var containerTests = []struct {
	name           string
	path           []string
	container, pod string
}{
	{"none", []string{"sshd.service"}, "", ""},
	{"docker", []string{"docker-" + containerID + ".scope", "init.scope"}, containerID, ""},
	{"pod", []string{podSlice, "cri-containerd-" + containerID + ".scope"}, containerID, podUID},
	{"conmon", []string{podSlice, "crio-conmon-" + containerID + ".scope"}, "", podUID},
	{"hostile", []string{"lxc.payload.=c,\"\x1b[2J\r\xff<\u202e"}, "=c,\"\x1b[2J\r\ufffd<\u202e", ""},
}

func newContainer(t testing.TB, names []string) string {
	t.Helper()
	path := newTopCgroup(t)
	for _, name := range names {
		path = filepath.Join(path, name)
		makeCgroup(t, path)
	}
	return path
}

// TestCommandContainers runs a process in each of the cgroups.
func TestCommandContainers(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	p := traceIn(t, ns, "--format", "json")
	ids := make([]string, len(containerTests))
	for i, tt := range containerTests {
		cgroup := newContainer(t, tt.path)
		ids[i] = strconv.FormatUint(cgroupID(t, cgroup), 10)
		runActorIn(t, ns, cgroup)
	}
	p.awaitLines(len(containerTests) * transitionsOfActor)
	of := map[string][]jsonRecord{}
	for _, r := range parseJSON(t, p.stop().stdout) {
		of[r.CgroupID] = append(of[r.CgroupID], r)
	}
	for i, tt := range containerTests {
		t.Run(tt.name, func(t *testing.T) { checkContainer(t, of[ids[i]], tt.container, tt.pod) })
		delete(of, ids[i])
	}
	qt.Check(t, qt.HasLen(of, 0))
}

func checkContainer(t testing.TB, records []jsonRecord, container, pod string) {
	t.Helper()
	qt.Check(t, qt.HasLen(records, transitionsOfActor))
	for _, r := range records {
		qt.Check(t, qt.Equals(r.Container, container))
		qt.Check(t, qt.Equals(r.Pod, pod))
	}
}

// TestCommandContainersUnprivileged runs where a cgroup cannot be opened by its
// id: the tree of cgroups tells.
func TestCommandContainersUnprivileged(t *testing.T) {
	netns.RequireRoot(t)
	cgroup := newContainer(t, []string{podSlice, "cri-containerd-" + containerID + ".scope"})
	ns := netns.New(t)
	p := spawn(t, exec.Command("setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search",
		binary(t), "trace", "--format", "json", "--netns", inodeWord(ns)))
	p.awaitTracing()
	runActorIn(t, ns, cgroup)
	p.awaitLines(transitionsOfActor)
	checkContainer(t, parseJSON(t, p.stop().stdout), containerID, podUID)
}

// TestCommandContainersFormats looks at a name that the formats must escape.
func TestCommandContainersFormats(t *testing.T) {
	netns.RequireRoot(t)
	cgroup := newContainer(t, []string{"lxc.payload.=web 1"})
	ns := netns.New(t)
	asCSV := traceIn(t, ns, "--format", "csv", "--no-header")
	asLogfmt := traceIn(t, ns, "--format", "logfmt")
	runActorIn(t, ns, cgroup)
	asCSV.awaitLines(transitionsOfActor)
	rows, err := csv.NewReader(strings.NewReader(asCSV.stop().stdout)).ReadAll()
	qt.Assert(t, qt.IsNil(err))
	for _, row := range rows {
		qt.Check(t, qt.SliceContains(row, "'=web 1"))
	}
	asLogfmt.awaitLines(transitionsOfActor)
	text := asLogfmt.stop().stdout
	qt.Check(t, qt.Equals(strings.Count(text, ` container_id="=web 1" `), transitionsOfActor), qt.Commentf("%s", text))
}

// TestCommandNoCgroups hides the cgroups in a mount namespace: all else is told.
func TestCommandNoCgroups(t *testing.T) {
	netns.RequireRoot(t)
	cgroup := newContainer(t, []string{"docker-" + containerID + ".scope"})
	ns := netns.New(t)
	const script = `mount --make-rprivate / && mount -t tmpfs none "$0" && exec "$@"`
	cmd := exec.Command("sh", "-c", script, cgroupRoot(t), binary(t), "trace", "--format", "json", "--netns", inodeWord(ns))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	p := spawn(t, cmd)
	p.awaitTracing()
	runActorIn(t, ns, cgroup)
	p.awaitLines(transitionsOfActor)
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
	res := p.wait()
	checkContainer(t, parseJSON(t, res.stdout), "", "")
	qt.Check(t, qt.Equals(ledger(t, res.stderr)[3], 0))
	qt.Check(t, qt.StringContains(res.stderr, "\nfinwait: no container_id and pod_uid: find the cgroup file system: not supported (no version 2 cgroups are mounted)\n"))
}
