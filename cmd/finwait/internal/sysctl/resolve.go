package sysctl

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// maxLinks is how many links a path may lead through, as in the kernel (MAXSYMLINKS).
const maxLinks = 40

// maxFile is how much of a file is read. Those that there are have some hundred lines.
const maxFile = 1 << 20

var (
	errLoop       = errors.New("too many levels of symbolic links")
	errNotRegular = errors.New("not a regular file")
	errTooLarge   = fmt.Errorf("larger than %d bytes: only the lines that are whole until there are read", maxFile)
)

// resolve follows the links in a path as if root were "/". os.Root does not: it refuses
// links that are absolute, as those to /dev/null are. It returns the path inside root,
// also with the error if nothing is there.
func resolve(root, name string) (string, error) {
	inside, rest, links := "/", strings.Split(name, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			inside = path.Dir(inside)
			continue
		}
		next := path.Join(inside, part)
		outside := filepath.Join(root, next)
		info, err := os.Lstat(outside)
		if err != nil {
			return path.Join(next, path.Join(rest...)), err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			inside = next
			continue
		}
		if links++; links > maxLinks {
			return next, errLoop
		}
		target, err := os.Readlink(outside)
		if err != nil {
			return next, err
		}
		if path.IsAbs(target) {
			inside = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return inside, nil
}

// readText reads a file. If it is too large, the lines that are whole are returned with
// the error.
func readText(name string) ([]byte, error) {
	// A pipe would keep the one who opens it waiting.
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		text, err = text[:bytes.LastIndexByte(text[:maxFile], '\n')+1], errTooLarge
	}
	return text, err
}
