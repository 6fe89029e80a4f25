package otlp

import "golang.org/x/sys/unix"

// kernelVersion returns what uname -r says, and what uname -srvm says.
func kernelVersion() (version, description string) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", ""
	}
	text := func(field [65]byte) string { return unix.ByteSliceToString(field[:]) }
	version = text(u.Release)
	return version, text(u.Sysname) + " " + version + " " + text(u.Version) + " " + text(u.Machine)
}
