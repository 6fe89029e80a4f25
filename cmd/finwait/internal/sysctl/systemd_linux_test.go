package sysctl

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// requireRoot skips the test without privileges, unless CI_PRIVILEGED=1 says that
// they are there.
func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI_PRIVILEGED") == "1" {
		t.Fatal("CI_PRIVILEGED=1 and not root")
	}
	t.Skip("needs root")
}

const systemdSysctl = "/usr/lib/systemd/systemd-sysctl"

// mounted are the folders that a root has instead of the host.
var mounted = []string{"/etc", "/run", "/usr/local/lib", "/usr/lib/sysctl.d"}

// requireSystemd skips the test if there is no systemd-sysctl to compare with.
func requireSystemd(t testing.TB) {
	t.Helper()
	requireRoot(t)
	for _, path := range append([]string{systemdSysctl}, mounted...) {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("needs systemd-sysctl (Debian package systemd): %v", err)
		}
	}
}

// inRoot runs a script in a mount namespace where the folders that systemd-sysctl reads
// are those of root, and in a network namespace of its own.
func inRoot(t testing.TB, root, script string, args ...string) string {
	t.Helper()
	for _, dir := range mounted {
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Join(root, dir), 0o755)))
	}
	script = `for dir in ` + strings.Join(mounted, " ") + `; do mount --bind "$0$dir" $dir; done; ` + script
	cmd := exec.CommandContext(t.Context(), "unshare", append([]string{"--mount", "--net", "sh", "-euc", script, root}, args...)...)
	cmd.Dir = "/"
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", &stderr))
	return string(out)
}

// TestOrderOfSystemd compares the files that are read with those that systemd-sysctl
// reads.
func TestOrderOfSystemd(t *testing.T) {
	requireSystemd(t)
	const line = "net.ipv4.tcp_fin_timeout = 23\n"
	root := plant(t, map[string]string{
		"/etc/sysctl.conf":                  line,
		"/etc/sysctl.d/99-sysctl.conf":      linkTo + "../sysctl.conf",
		"/etc/sysctl.d/10.conf":             linkTo + "/dev/null",
		"/etc/sysctl.d/20.conf":             "",
		"/etc/sysctl.d/30-a.conf":           linkTo + "/etc/other",
		"/etc/other":                        line,
		"/etc/sysctl.d/.hidden.conf":        line,
		"/etc/sysctl.d/a.conf~":             line,
		"/etc/sysctl.d/a.conf.dpkg-old":     line,
		"/etc/sysctl.d/README":              line,
		"/etc/sysctl.d/B.conf":              line,
		"/etc/sysctl.d/a b.conf":            line,
		"/etc/sysctl.d/a.conf":              line,
		"/etc/sysctl.d/é.conf":              line,
		"/run/sysctl.d/10.conf":             line,
		"/run/sysctl.d/9.conf":              line,
		"/run/sysctl.d/50.conf":             line,
		"/usr/local/lib/sysctl.d/50.conf":   line,
		"/usr/local/lib/sysctl.d/60.conf":   line,
		"/usr/lib/sysctl.d/60.conf":         line,
		"/usr/lib/sysctl.d/20.conf":         line,
		"/usr/lib/sysctl.d/00.conf":         line,
		"/usr/lib/sysctl.d/99-sysctl.conf":  line,
		"/usr/lib/sysctl.d/99-sysctl-.conf": line,
	})
	out := inRoot(t, root, systemdSysctl+" --cat-config --no-pager")
	var want []string
	for _, header := range regexp.MustCompile(`(?m)^# (/.*\.conf)$`).FindAllStringSubmatch(out, -1) {
		want = append(want, header[1])
	}
	r := &reader{root: root, files: &Files{}}
	qt.Check(t, qt.DeepEquals(r.list(), want))
	qt.Check(t, qt.HasLen(want, 13), qt.Commentf("%s", out))
}

// keepalives are sysctls of a network namespace that take any small number.
var keepalives = []string{"net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes"}

// TestEffectOfSystemd has systemd-sysctl apply files, and compares what the kernel has
// then with what the files are said to set.
func TestEffectOfSystemd(t *testing.T) {
	requireSystemd(t)
	for _, test := range []struct {
		name  string
		files map[string]string
	}{
		{"an exact key and a glob", map[string]string{"/etc/sysctl.d/a.conf": "net.ipv4.tcp_keepalive_time=11\nnet.ipv4.tcp_keepalive_*=12\n"}},
		{"excludes", map[string]string{"/etc/sysctl.d/a.conf": "-net.ipv4.tcp_keepalive_time\nnet/ipv4/tcp_keepalive_*=12\nnet.ipv4.tcp_keepalive_probes=3\n-net.ipv4.tcp_keepalive_probes\n"}},
		{"the same glob again", map[string]string{"/etc/sysctl.d/a.conf": "net.ipv4.tcp_keepalive_*=11\nnet.ipv4.tcp_keepalive_[ip]*=12\nnet.ipv4.tcp_keepalive_*=11\n"}},
		{"an odd way to write keys", map[string]string{"/etc/sysctl.d/a.conf": " - net..ipv4.tcp_keepalive_time.\t=\t11 \r\n/net//ipv4/./tcp_keepalive_probes = 0x10\n  ; net.ipv4.tcp_keepalive_intvl=12\n"}},
		{"not these characters", map[string]string{"/etc/sysctl.d/a.conf": "net.ipv4.tcp_keepalive_[!t]*=11\nnet.ipv4.tcp_keepalive_??????=12"}},
		{"no wildcard is a separator", map[string]string{"/etc/sysctl.d/a.conf": "net*tcp_keepalive_time=11\nnet.*.tcp_keepalive_intvl=12"}},
		{"a link that leads nowhere", map[string]string{
			"/etc/sysctl.d/a.conf": linkTo + "gone", "/usr/lib/sysctl.d/a.conf": "net.ipv4.tcp_keepalive_time=11",
			"/run/sysctl.d/b.conf": "net.ipv4.tcp_keepalive_intvl=12",
		}},
		{"a mask", map[string]string{"/etc/sysctl.d/a.conf": "", "/usr/lib/sysctl.d/a.conf": "net.ipv4.tcp_keepalive_time=11"}},
		{"/etc/sysctl.conf alone", map[string]string{"/etc/sysctl.conf": "net.ipv4.tcp_keepalive_time=11"}},
		{"/etc/sysctl.conf by a link", map[string]string{
			"/etc/sysctl.conf": "net.ipv4.tcp_keepalive_time=11", "/etc/sysctl.d/99-sysctl.conf": linkTo + "../sysctl.conf",
			"/etc/sysctl.d/98.conf": "net.ipv4.tcp_keepalive_time=12",
		}},
		{"an early name of a late folder", map[string]string{
			"/etc/sysctl.d/10.conf": "net.ipv4.tcp_keepalive_time=11", "/usr/lib/sysctl.d/50.conf": "net.ipv4.tcp_keepalive_time=12\nnet.ipv4.tcp_keepalive_intvl=13",
		}},
	} {
		t.Run(test.name, func(t *testing.T) { checkEffect(t, test.files) })
	}
	const seed = 23
	random := rand.New(rand.NewPCG(seed, seed))
	for i := range 23 {
		t.Run(fmt.Sprintf("any %d of seed %d", i, seed), func(t *testing.T) { checkEffect(t, anyFiles(random)) })
	}
}

// anyFiles makes up some lines that have a lot to do with each other.
func anyFiles(random *rand.Rand) map[string]string {
	keys := append([]string{
		"net.ipv4.tcp_keepalive_*", "net/ipv4/tcp_keepalive_*", "net.ipv4.tcp_keepalive_[ip]*", "net.ipv4.tcp_keep*e_?????",
		"net.*.tcp_keepalive_p*", "net.ipv4.tcp_keepalive_[!p]*",
	}, keepalives...)
	files := map[string]string{}
	for range 1 + random.IntN(12) {
		dir, name := folders[random.IntN(4)], random.IntN(5)
		line := keys[random.IntN(len(keys))]
		switch random.IntN(4) {
		case 0:
			line = "-" + line
		default:
			line += fmt.Sprintf(" = %d", 11+random.IntN(4))
		}
		files[fmt.Sprintf("%s/%d.conf", dir, name)] += line + "\n"
	}
	return files
}

func checkEffect(t *testing.T, files map[string]string) {
	root := plant(t, files)
	f, err := ReadFiles(root)
	qt.Assert(t, qt.IsNil(err))
	var paths []string
	for _, key := range keepalives {
		path, ok := procPath(key)
		qt.Assert(t, qt.IsTrue(ok))
		paths = append(paths, path)
	}
	out := inRoot(t, root, `cat "$@"; `+systemdSysctl+`; cat "$@"`, paths...)
	values := strings.Fields(out)
	qt.Assert(t, qt.HasLen(values, 2*len(keepalives)))
	for i, key := range keepalives {
		want := values[i]
		if last, ok := f.Last(key); ok {
			want = last.Value
		}
		qt.Check(t, qt.IsTrue(Equal(values[len(keepalives)+i], want)), qt.Commentf("%s is %s, not %s, with %v", key, values[len(keepalives)+i], want, files))
	}
}
