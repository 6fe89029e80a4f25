// Package build says what this finwait was built from.
package build

import (
	"runtime/debug"
	"strings"
)

// version is set by the linker where packages are built.
var version string

// Version returns what this build is called: 1.2.0, or what Go knows of it.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return strings.TrimPrefix(info.Main.Version, "v")
}

// Revision returns the commit, "" if it is not known.
func Revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
