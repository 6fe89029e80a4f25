package sysctl

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// linkTo as the content of a planted file makes it a link.
const linkTo = "-> "

// plant makes a root with these files, each by its path. A path that ends in a slash is
// a folder.
func plant(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, path := range slices.Sorted(maps.Keys(files)) {
		content, outside := files[path], filepath.Join(root, path)
		if strings.HasSuffix(path, "/") {
			qt.Assert(t, qt.IsNil(os.MkdirAll(outside, 0o755)))
			continue
		}
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(outside), 0o755)))
		if target, ok := strings.CutPrefix(content, linkTo); ok {
			qt.Assert(t, qt.IsNil(os.Symlink(target, outside)))
			continue
		}
		qt.Assert(t, qt.IsNil(os.WriteFile(outside, []byte(content), 0o644)))
	}
	return root
}

// readPlanted reads planted files.
func readPlanted(t testing.TB, files map[string]string) *Files {
	t.Helper()
	f, err := ReadFiles(plant(t, files))
	qt.Assert(t, qt.IsNil(err))
	return f
}

// show is a line as FILE:NUMBER.
func show(lines ...Line) []string {
	var shown []string
	for _, l := range lines {
		shown = append(shown, fmt.Sprintf("%s:%d", l.File, l.Number))
	}
	return shown
}

func showProblems(f *Files) []string {
	var shown []string
	for _, p := range f.Problems {
		shown = append(shown, showProblem(p))
	}
	return shown
}

func showProblem(p Problem) string {
	if p.Number == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.Why())
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Number, p.Why())
}

func TestReadFiles(t *testing.T) {
	const line = "vm.swappiness = 1\n"
	for _, test := range []struct {
		name     string
		files    map[string]string
		read     []string // the lines of those that are read, in order
		replaced []Replaced
		problems []string
	}{
		{name: "nothing", files: map[string]string{"/etc/": ""}},
		{
			name: "by name over all folders",
			files: map[string]string{
				"/etc/sysctl.d/50-c.conf":           line,
				"/run/sysctl.d/10-b.conf":           line,
				"/usr/local/lib/sysctl.d/90-d.conf": line,
				"/usr/lib/sysctl.d/00-a.conf":       line + line,
				"/lib/sysctl.d/99-e.conf":           line,
				"/etc/sysctl.d/9.conf":              line,
				"/etc/sysctl.d/Z.conf":              line,
				"/etc/sysctl.d/a.conf":              line,
			},
			read: []string{
				"/usr/lib/sysctl.d/00-a.conf:1", "/usr/lib/sysctl.d/00-a.conf:2", "/run/sysctl.d/10-b.conf:1", "/etc/sysctl.d/50-c.conf:1",
				"/etc/sysctl.d/9.conf:1", "/usr/local/lib/sysctl.d/90-d.conf:1", "/lib/sysctl.d/99-e.conf:1", "/etc/sysctl.d/Z.conf:1", "/etc/sysctl.d/a.conf:1",
			},
		},
		{
			name: "other names",
			files: map[string]string{
				"/etc/sysctl.d/README.sysctl": "text", "/etc/sysctl.d/a.conf.dpkg-old": line, "/etc/sysctl.d/a.conf~": line,
				"/etc/sysctl.d/.hidden.conf": line, "/etc/sysctl.d/.conf": line, "/etc/sysctl.d/a.CONF": line, "/etc/sysctl.d/conf": line,
				"/etc/sysctl.d/a b.conf": line,
			},
			read: []string{"/etc/sysctl.d/a b.conf:1"},
		},
		{
			name: "the first of a name replaces the others whole",
			files: map[string]string{
				"/etc/sysctl.d/10.conf": line, "/run/sysctl.d/10.conf": line + line, "/usr/lib/sysctl.d/10.conf": line,
				"/run/sysctl.d/20.conf": line, "/usr/local/lib/sysctl.d/20.conf": line,
				"/usr/lib/sysctl.d/30.conf": line, "/lib/sysctl.d/30.conf": line,
			},
			read: []string{"/etc/sysctl.d/10.conf:1", "/run/sysctl.d/20.conf:1", "/usr/lib/sysctl.d/30.conf:1"},
			replaced: []Replaced{
				{File: "/run/sysctl.d/10.conf", By: "/etc/sysctl.d/10.conf"},
				{File: "/usr/local/lib/sysctl.d/20.conf", By: "/run/sysctl.d/20.conf"},
				{File: "/usr/lib/sysctl.d/10.conf", By: "/etc/sysctl.d/10.conf"},
				{File: "/lib/sysctl.d/30.conf", By: "/usr/lib/sysctl.d/30.conf"},
			},
		},
		{
			name: "masks",
			files: map[string]string{
				"/etc/sysctl.d/10.conf": linkTo + "/dev/null", "/usr/lib/sysctl.d/10.conf": line,
				"/etc/sysctl.d/20.conf": "", "/usr/lib/sysctl.d/20.conf": line,
				"/etc/sysctl.d/30.conf": "# nothing\n", "/usr/lib/sysctl.d/30.conf": line,
				"/etc/sysctl.d/40.conf": linkTo + "../../dev/./null", "/usr/lib/sysctl.d/40.conf": line,
				"/etc/sysctl.d/50.conf": linkTo + "/dev/null",
			},
			replaced: []Replaced{
				{File: "/usr/lib/sysctl.d/10.conf", By: "/etc/sysctl.d/10.conf", Masked: true},
				{File: "/usr/lib/sysctl.d/20.conf", By: "/etc/sysctl.d/20.conf", Masked: true},
				{File: "/usr/lib/sysctl.d/30.conf", By: "/etc/sysctl.d/30.conf"},
				{File: "/usr/lib/sysctl.d/40.conf", By: "/etc/sysctl.d/40.conf", Masked: true},
			},
		},
		{
			name: "a link that leads nowhere replaces too",
			files: map[string]string{
				"/etc/sysctl.d/10.conf": linkTo + "/etc/gone.conf", "/usr/lib/sysctl.d/10.conf": line,
				"/etc/sysctl.d/20.conf": linkTo + "20.conf", "/etc/sysctl.d/30.conf": linkTo + "/etc/gone/../30",
			},
			replaced: []Replaced{{File: "/usr/lib/sysctl.d/10.conf", By: "/etc/sysctl.d/10.conf"}},
			problems: []string{
				"/etc/sysctl.d/10.conf: no such file or directory",
				"/etc/sysctl.d/20.conf: too many levels of symbolic links",
				"/etc/sysctl.d/30.conf: no such file or directory",
			},
		},
		{
			name: "links stay inside",
			files: map[string]string{
				"/etc/sysctl.d/10.conf": linkTo + "/opt/ten", "/opt/ten": line,
				"/etc/sysctl.d/20.conf": linkTo + "../../../../../../../../opt/ten",
				"/etc/sysctl.d/30.conf": linkTo + "/opt/link", "/opt/link": linkTo + "./ten",
			},
			read: []string{"/etc/sysctl.d/10.conf:1", "/etc/sysctl.d/20.conf:1", "/etc/sysctl.d/30.conf:1"},
		},
		{
			name: "/lib is /usr/lib",
			files: map[string]string{
				"/lib": linkTo + "usr/lib", "/usr/lib/sysctl.d/10.conf": line,
				"/run/sysctl.d": linkTo + "/opt/run", "/opt/run/20.conf": line,
			},
			read: []string{"/usr/lib/sysctl.d/10.conf:1", "/run/sysctl.d/20.conf:1"},
		},
		{
			name: "the service's credential is the last",
			files: map[string]string{
				"/run/credentials/systemd-sysctl.service/sysctl.extra": line,
				"/etc/sysctl.d/zz.conf":                                line,
			},
			read: []string{"/etc/sysctl.d/zz.conf:1", credential + ":1"},
		},
		{
			name:     "folders that are none",
			files:    map[string]string{"/etc/sysctl.d": "a file", "/run/sysctl.d/a.conf/": "", "/usr/lib/sysctl.d/a.conf": line},
			replaced: []Replaced{{File: "/usr/lib/sysctl.d/a.conf", By: "/run/sysctl.d/a.conf"}},
			problems: []string{"/etc/sysctl.d: not a directory", "/run/sysctl.d/a.conf: not a regular file"},
		},
		{
			name:  "lines that are none",
			files: map[string]string{"/etc/sysctl.d/a.conf": "\n# text\n  ; text\nvm.swappiness 1\n" + line + "= 1\nnet.ipv4.tcp\u00a0= 1\n"},
			read:  []string{"/etc/sysctl.d/a.conf:5"},
			problems: []string{
				`/etc/sysctl.d/a.conf:4: neither a comment nor an assignment: "vm.swappiness 1"`,
				`/etc/sysctl.d/a.conf:6: not the name of a sysctl: "= 1"`,
				`/etc/sysctl.d/a.conf:7: not the name of a sysctl: "net.ipv4.tcp\u00a0= 1"`,
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := readPlanted(t, test.files)
			qt.Check(t, qt.DeepEquals(show(f.Lines...), test.read))
			qt.Check(t, qt.DeepEquals(f.Replaced, test.replaced))
			qt.Check(t, qt.DeepEquals(showProblems(f), test.problems))
		})
	}
}

func TestReadFilesOfNoFolder(t *testing.T) {
	root := plant(t, map[string]string{"/file": ""})
	_, err := ReadFiles(filepath.Join(root, "gone"))
	qt.Check(t, qt.ErrorIs(err, fs.ErrNotExist))
	_, err = ReadFiles(filepath.Join(root, "file"))
	qt.Check(t, qt.ErrorMatches(err, ".*file: not a directory"))
}

// TestConf has /etc/sysctl.conf as distributions have it.
func TestSystemd(t *testing.T) {
	qt.Check(t, qt.IsFalse(readPlanted(t, map[string]string{"/run/systemd/other/": ""}).Systemd))
	qt.Check(t, qt.IsTrue(readPlanted(t, map[string]string{"/run/systemd/system/": ""}).Systemd))
}

func TestConf(t *testing.T) {
	const line = "net.ipv4.tcp_tw_recycle = 1\n"
	for _, test := range []struct {
		name  string
		files map[string]string
		want  Conf
	}{
		{name: "none", files: map[string]string{"/etc/sysctl.d/99-sysctl.conf": line}},
		{
			name:  "Debian 12",
			files: map[string]string{"/etc/sysctl.conf": line, "/etc/sysctl.d/99-sysctl.conf": linkTo + "../sysctl.conf"},
			want:  Conf{Exists: true, Read: true, Via: "/etc/sysctl.d/99-sysctl.conf"},
		},
		{
			name:  "Debian 13",
			files: map[string]string{"/etc/sysctl.conf": "# mine\n" + line, "/etc/sysctl.d/": ""},
			want: Conf{Exists: true, Lines: []Line{
				{Key: "net.ipv4.tcp_tw_recycle", Value: "1", File: "/etc/sysctl.conf", Number: 2},
			}},
		},
		{
			name: "a link of another folder, absolute",
			files: map[string]string{
				"/etc/sysctl.conf": line, "/usr/lib/sysctl.d/zz.conf": linkTo + "/opt/link", "/opt/link": linkTo + "/etc/sysctl.conf",
			},
			want: Conf{Exists: true, Read: true, Via: "/usr/lib/sysctl.d/zz.conf"},
		},
		{
			name:  "a link itself",
			files: map[string]string{"/etc/sysctl.conf": linkTo + "sysctl.d/10-mine.conf", "/etc/sysctl.d/10-mine.conf": line},
			want:  Conf{Exists: true, Read: true, Via: "/etc/sysctl.d/10-mine.conf"},
		},
		{
			name: "the link is replaced",
			files: map[string]string{
				"/etc/sysctl.conf": line, "/etc/sysctl.d/99-sysctl.conf": "# empty\n",
				"/usr/lib/sysctl.d/99-sysctl.conf": linkTo + "/etc/sysctl.conf",
			},
			want: Conf{Exists: true, Lines: []Line{
				{Key: "net.ipv4.tcp_tw_recycle", Value: "1", File: "/etc/sysctl.conf", Number: 1},
			}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := readPlanted(t, test.files)
			qt.Check(t, qt.DeepEquals(f.Conf, test.want))
			_, set := f.Last("net.ipv4.tcp_tw_recycle")
			qt.Check(t, qt.Equals(set, test.want.Read || !test.want.Exists))
		})
	}
}

// TestLimits has files that are larger than any need be.
func TestLimits(t *testing.T) {
	t.Run("a huge file", func(t *testing.T) {
		const line = "net.ipv4.tcp_fin_timeout = 23\n"
		f := readPlanted(t, map[string]string{"/etc/sysctl.d/a.conf": strings.Repeat(line, maxFile/len(line)+23)})
		qt.Check(t, qt.HasLen(f.Lines, maxFile/len(line)))
		qt.Check(t, qt.Equals(f.Lines[len(f.Lines)-1].Value, "23"))
		qt.Check(t, qt.DeepEquals(showProblems(f), []string{"/etc/sysctl.d/a.conf: " + errTooLarge.Error()}))
	})
	t.Run("a file of the largest size", func(t *testing.T) {
		f := readPlanted(t, map[string]string{"/etc/sysctl.d/a.conf": "a=" + strings.Repeat("x", maxFile-2)})
		qt.Check(t, qt.HasLen(f.Lines, 1))
		qt.Check(t, qt.HasLen(f.Problems, 0))
	})
	t.Run("a huge line", func(t *testing.T) {
		f := readPlanted(t, map[string]string{"/etc/sysctl.d/a.conf": strings.Repeat("x", maxFile+1)})
		qt.Check(t, qt.HasLen(f.Lines, 0))
		qt.Check(t, qt.DeepEquals(showProblems(f), []string{"/etc/sysctl.d/a.conf: " + errTooLarge.Error()}))
	})
	t.Run("junk", func(t *testing.T) {
		f := readPlanted(t, map[string]string{"/etc/sysctl.d/a.conf": strings.Repeat(strings.Repeat("\x00\x1b\xff", 100)+"\n", 1000)})
		qt.Check(t, qt.HasLen(f.Lines, 0))
		qt.Assert(t, qt.HasLen(f.Problems, maxProblems+1))
		qt.Check(t, qt.HasLen(f.Problems[0].Text, MaxText))
		qt.Check(t, qt.Equals(showProblem(f.Problems[maxProblems]), "/etc/sysctl.d/a.conf: 980 more lines that cannot be understood"))
	})
}

func TestCmdline(t *testing.T) {
	lines, problems := parseCmdline(`quiet sysctl.net.ipv4.tcp_tw_reuse=1  sysctl/net/ipv4/tcp_mem="1 2	3" "sysctl.net.core.somaxconn=7"` +
		` sysctl.vm.swappiness sysctl.vm.swappiness= sysctl_x=1 sysctl.=2 sysctl.net/ipv4.tcp_rfc1337=0 sysctl.vm.*=1 -- sysctl.vm.swappiness=1` + "\n")
	qt.Check(t, qt.DeepEquals(lines, []Line{
		{Key: "net.ipv4.tcp_tw_reuse", Value: "1", File: Cmdline},
		{Key: "net.ipv4.tcp_mem", Value: "1 2\t3", File: Cmdline},
		{Key: "net.core.somaxconn", Value: "7", File: Cmdline},
		{Key: "net.ipv4.tcp_rfc1337", Value: "0", File: Cmdline},
	}))
	qt.Check(t, qt.DeepEquals(showProblems(&Files{Problems: problems}), []string{
		`/proc/cmdline: has no value, so the kernel does not set it: "sysctl.vm.swappiness"`,
		`/proc/cmdline: has no value, so the kernel does not set it: "sysctl.vm.swappiness="`,
		`/proc/cmdline: not the name of a sysctl: "sysctl.=2"`,
		`/proc/cmdline: not the name of a sysctl: "sysctl.vm.*=1"`,
	}))
}
