package logfile

import (
	"strings"
	"time"
)

// rotatedTime is the layout of the time in the name of a rotated file. Such names
// sort as the times do.
const rotatedTime = "20060102T150405.000000000Z"

// tempSuffix ends the name of a file that is being compressed.
const tempSuffix = ".tmp"

// rotatedName is the name of a rotated file: base-TIME, and an extension if it is
// compressed, and tempSuffix if it is not yet.
type rotatedName struct {
	time      time.Time
	extension string // "", ".gz" or ".zst"
	temp      bool
}

// of returns the name where the log is called base.
func (n rotatedName) of(base string) string {
	name := base + "-" + n.time.UTC().Format(rotatedTime) + n.extension
	if n.temp {
		name += tempSuffix
	}
	return name
}

// parseRotated returns what name says. It is not ok unless name is to the letter
// what a log called base gives to a file, since such files are removed.
func parseRotated(base, name string) (n rotatedName, ok bool) {
	rest, found := strings.CutPrefix(name, base+"-")
	if !found || len(rest) < len(rotatedTime) {
		return n, false
	}
	rest, n.temp = strings.CutSuffix(rest, tempSuffix)
	if len(rest) < len(rotatedTime) {
		return n, false
	}
	n.extension = rest[len(rotatedTime):]
	switch n.extension {
	case ".gz", ".zst":
	case "":
		if n.temp {
			return n, false
		}
	default:
		return n, false
	}
	var err error
	n.time, err = time.Parse(rotatedTime, rest[:len(rotatedTime)])
	return n, err == nil && n.of(base) == name
}
