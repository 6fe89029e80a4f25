package measure

import (
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

func TestSelf(t *testing.T) {
	before := Self()
	for begin := time.Now(); time.Since(begin) < 50*time.Millisecond; {
	}
	kept := make([]byte, 32<<20)
	for i := range kept {
		kept[i] = 1
	}
	after := Self()
	qt.Assert(t, qt.IsTrue(before.CPUKnown && after.CPUKnown))
	qt.Check(t, qt.IsTrue(after.User+after.System > before.User+before.System))
	qt.Assert(t, qt.IsTrue(before.MemoryKnown && after.MemoryKnown))
	qt.Check(t, qt.IsTrue(after.Resident >= uint64(len(kept))), qt.Commentf("%d bytes", after.Resident))
	qt.Check(t, qt.IsTrue(after.Peak >= uint64(len(kept))), qt.Commentf("%d bytes", after.Peak))
}

func TestReadStatus(t *testing.T) {
	const whole = "Name:\tfinwait\nVmPeak:\t 1262160 kB\nVmHWM:\t   61232 kB\nVmRSS:\t   59004 kB\nRssAnon:\t   20000 kB\n"
	var p Process
	p.readStatus(whole)
	qt.Check(t, qt.Equals(p, Process{Resident: 59004 << 10, Peak: 61232 << 10, MemoryKnown: true}))
	for _, status := range []string{
		"", "Name:\tfinwait\nVmRSS:\t1 kB\n", "VmRSS:\t1\nVmHWM:\t1 kB\n", "VmRSS:\t-1 kB\nVmHWM:\t1 kB\n", "VmRSS:\t18446744073709551615 kB\nVmHWM:\t1 kB\n",
	} {
		var p Process
		p.readStatus(status)
		qt.Check(t, qt.Equals(p, Process{}), qt.Commentf("%q", status))
	}
}
