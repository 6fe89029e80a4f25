// Package sysctl reads what sets the kernel's settings when a host starts, in the
// order of systemd-sysctl, and the values with which the kernel runs.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Files is what sets sysctls when the host starts. Nothing writes to it once it is
// read.
type Files struct {
	// Lines are in the order in which they are read: those of the kernel's command
	// line, then those of each file. What becomes of a key is not the last line
	// alone, for there are globs: [Files.All] and [Files.Last] know.
	Lines []Line
	// Replaced are the files of the folders that are not read.
	Replaced []Replaced
	// Problems are the lines that nobody understands and the files that cannot be
	// read. What they would set is unknown.
	Problems []Problem
	// Conf is what becomes of /etc/sysctl.conf.
	Conf Conf
	// Systemd says that systemd runs the host (sd_booted(3)). What starts hosts without it
	// reads other files, /etc/sysctl.conf as a rule.
	Systemd bool
}

// Line is a line that sets a sysctl, or that keeps one from being set.
type Line struct {
	// Key has the dots of sysctl(8): net.ipv4.tcp_tw_reuse. It may be a glob, and a
	// slash in it is a dot of an interface's name: net.ipv4.conf.eth0/100.rp_filter.
	Key string
	// Value is as it is written, without whitespace around it.
	Value string
	// File is the path inside the root, of a link if it is one, or [Cmdline].
	File string
	// Number is the line's in the file, from 1. In [Cmdline] it is 0.
	Number int
	// IgnoreFailure says that the key has a "-" before it.
	IgnoreFailure bool
	// Exclude says that the line is "-key" without a value: no glob sets the key, and
	// earlier lines for it are void.
	Exclude bool
}

// Replaced is a file that is not read, because a file of the same name is in a folder
// that comes first.
type Replaced struct {
	// File is the one that is not read, By the one that is instead.
	File, By string
	// Masked says that By has nothing in it: it is empty, or a link to /dev/null.
	Masked bool
}

// Conf is /etc/sysctl.conf. systemd-sysctl does not read it by itself, but Debian
// before 13 and others link to it from /etc/sysctl.d. "sysctl --system" reads it in
// any case, once more and after all others (sysctl(8)).
type Conf struct {
	// Exists says that there is such a file.
	Exists bool
	// Read says that it is read when the host starts, because a file of the folders,
	// Via, leads to it. Its lines are among [Files.Lines] then, with Via as the file.
	Read bool
	Via  string
	// Lines are what it says if it is not read.
	Lines []Line
}

// Problem is something that cannot be read or understood.
type Problem struct {
	File   string
	Number int    // the line's, from 1; 0 is the file as a whole
	Text   string // the line, at most [MaxText] bytes of it, as they are: quote them
	Err    error  // what is wrong; [fs.ErrPermission] if privileges are
}

// MaxText is how much of a line a [Problem] has.
const MaxText = 200

// Why says what is wrong, with the text if there is one.
func (p Problem) Why() string {
	if p.Text == "" {
		return p.Err.Error()
	}
	return fmt.Sprintf("%v: %q", p.Err, p.Text)
}

// folders are those of sysctl.d(5), the one whose files replace those of all others
// first. /lib is systemd's on hosts that have it apart from /usr/lib.
var folders = []string{
	"/etc/sysctl.d",
	"/run/sysctl.d",
	"/usr/local/lib/sysctl.d",
	"/usr/lib/sysctl.d",
	"/lib/sysctl.d",
}

const (
	confFile = "/etc/sysctl.conf"
	nullFile = "/dev/null"
	// credential is read after all files (systemd-sysctl.service(8)). This is where
	// systemd keeps it for the service, for as long as that is active
	// (systemd.exec(5)).
	credential = "/run/credentials/systemd-sysctl.service/sysctl.extra"
)

// ReadFiles reads what sets sysctls on the host whose file system is at root, which is
// "/" as a rule: no link leads out of it. The kernel's command line is read only if
// root is "/", or that of process 1. It fails if there is no such folder; whatever else cannot be read is
// among [Files.Problems].
func ReadFiles(root string) (*Files, error) {
	info, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s: not a directory", root)
	}
	r := &reader{root: root, files: &Files{}}
	if clean := filepath.Clean(root); clean == "/" || clean == "/proc/1/root" {
		r.readCmdline()
	}
	paths := r.list()
	for _, path := range paths {
		r.files.Lines = append(r.files.Lines, r.read(path)...)
	}
	if _, err := resolve(root, credential); !errors.Is(err, fs.ErrNotExist) {
		r.files.Lines = append(r.files.Lines, r.read(credential)...)
	}
	r.readConf(paths)
	_, err = resolve(root, "/run/systemd/system")
	r.files.Systemd = err == nil
	return r.files, nil
}

// reader fills files with what is below root.
type reader struct {
	root  string
	files *Files
}

func (r *reader) problem(file string, err error) {
	// The path in the error is the one outside the root.
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	r.files.Problems = append(r.files.Problems, Problem{File: file, Err: err})
}

// list returns the files that are read, in order: "All configuration files are sorted
// by their filename in lexicographic order, regardless of which of the directories
// they reside in" (sysctl.d(5)), and the first of each name replaces the others.
func (r *reader) list() []string {
	chosen := map[string]string{} // paths by name
	var listed []string           // folders, where links lead to
	for _, folder := range folders {
		inside, entries, err := r.entries(folder)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				r.problem(folder, err)
			}
			continue
		}
		if slices.Contains(listed, inside) { // /lib is /usr/lib
			continue
		}
		listed = append(listed, inside)
		for _, entry := range entries {
			name := entry.Name()
			// systemd takes files that begin with a dot for those of an editor
			// (hidden_or_backup_file).
			if !strings.HasSuffix(name, ".conf") || strings.HasPrefix(name, ".") {
				continue
			}
			path := folder + "/" + name
			if by, ok := chosen[name]; ok {
				r.files.Replaced = append(r.files.Replaced, Replaced{File: path, By: by, Masked: r.isMask(by)})
				continue
			}
			chosen[name] = path
		}
	}
	var paths []string
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		paths = append(paths, chosen[name])
	}
	return paths
}

// entries lists a folder and tells where it is.
func (r *reader) entries(folder string) (inside string, entries []fs.DirEntry, err error) {
	if inside, err = resolve(r.root, folder); err != nil {
		return "", nil, err
	}
	entries, err = os.ReadDir(filepath.Join(r.root, inside))
	return inside, entries, err
}

// isMask reports whether the file is there only to replace another.
func (r *reader) isMask(path string) bool {
	inside, err := resolve(r.root, path)
	if inside == nullFile {
		return true
	}
	if err != nil {
		return false
	}
	info, err := os.Stat(filepath.Join(r.root, inside))
	return err == nil && info.Mode().IsRegular() && info.Size() == 0
}

// read returns the lines of a file. It is a problem if there is none, for something
// has said that there is: a link that leads nowhere, as a rule.
func (r *reader) read(path string) []Line {
	inside, err := resolve(r.root, path)
	if inside == nullFile { // which an image need not have
		return nil
	}
	var text []byte
	if err == nil {
		text, err = readText(filepath.Join(r.root, inside))
	}
	if err != nil {
		r.problem(path, err)
	}
	lines, problems := parse(path, text)
	r.files.Problems = append(r.files.Problems, problems...)
	return lines
}

// readConf finds out whether one of the paths, which are read, is /etc/sysctl.conf.
func (r *reader) readConf(paths []string) {
	inside, err := resolve(r.root, confFile)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.problem(confFile, err)
		}
		return
	}
	conf := &r.files.Conf
	conf.Exists = true
	for _, path := range paths {
		if other, err := resolve(r.root, path); err == nil && other == inside {
			conf.Read, conf.Via = true, path
			return
		}
	}
	conf.Lines = r.read(confFile)
}
