package measure

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Self returns what the calling process has cost so far.
func Self() Process {
	var p Process
	var usage unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &usage) == nil {
		p.User = time.Duration(usage.Utime.Nano())
		p.System = time.Duration(usage.Stime.Nano())
		p.CPUKnown = true
	}
	// Not ru_maxrss: that begins with what the process had before execve.
	if status, err := os.ReadFile("/proc/self/status"); err == nil {
		p.readStatus(string(status))
	}
	return p
}

// readStatus takes the memory from the text of /proc/self/status.
func (p *Process) readStatus(status string) {
	now, nowKnown := statusSize(status, "VmRSS")
	peak, peakKnown := statusSize(status, "VmHWM")
	if nowKnown && peakKnown {
		p.Resident, p.Peak, p.MemoryKnown = now, peak, true
	}
}

// statusSize returns the bytes that a line says in kB.
func statusSize(status, name string) (bytes uint64, known bool) {
	for line := range strings.Lines(status) {
		rest, found := strings.CutPrefix(line, name+":")
		if !found {
			continue
		}
		kb, unit := strings.CutSuffix(strings.TrimSpace(rest), " kB")
		n, err := strconv.ParseUint(kb, 10, 54)
		return n << 10, unit && err == nil
	}
	return 0, false
}
