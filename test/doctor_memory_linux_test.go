package test

import (
	"fmt"
	"os"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/oracle"
)

// What is short is the whole host's: TestDoctorHostLimits.
var memoryConditions = []condition{}

// TestDoctorHostLimits lowers limits of the host so far that what a process does is too
// much, and disturbs others as little as can be.
func TestDoctorHostLimits(t *testing.T) {
	onlyInGuest(t)
	t.Run("memory", func(t *testing.T) {
		p := &patient{t, inhabited(t)}
		c := p.closingsAt(20200)
		var clients []end
		for _, pair := range c.connectMany(connections) {
			clients = append(clients, pair.client)
			c.closeLate(pair.client)
			c.closeLate(pair.server)
		}
		c.fillAll(clients)
		text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_mem")
		qt.Assert(t, qt.IsNil(err))
		var least, pressure, most uint64
		_, err = fmt.Sscan(string(text), &least, &pressure, &most)
		qt.Assert(t, qt.IsNil(err))
		c.limit("tcp_mem", fmt.Sprint(0, 1, most))
		d := p.diagnose()
		d.check(t, condition{finds: []string{"tcp-memory"}})
		f := d.find(t, "tcp-memory")
		qt.Check(t, qt.Equals(f.Severity, "warning"))
		page := uint64(os.Getpagesize())
		checkFacts(t, f, map[string]any{"pressure_bytes": float64(page), "max_bytes": float64(most * page), "resets": 0.0})
		// What is counted of the connections' buffers, and each of them has 64 kB.
		qt.Check(t, qt.IsTrue(f.Facts["memory_bytes"].(float64) > connections<<16), qt.Commentf("%v", f.Facts))
		holders := f.Facts["holders"].(string)
		qt.Check(t, qt.StringContains(holders, fmt.Sprintf(" (%d): ", os.Getpid())))
		qt.Check(t, qt.StringContains(holders, fmt.Sprintf("(sockets: %d)", 2*connections)))
	})
	t.Run("orphans", func(t *testing.T) {
		p := &patient{t, inhabited(t)}
		p.vanishInFinWait1(20201)
		c := &closings{loop: &loop{t: t, ns: p.ns}}
		// Earlier tests have left some too, which go meanwhile. None is reset as long as
		// there are not more than that.
		stat, err := oracle.Sockstat(p.ns)
		qt.Assert(t, qt.IsNil(err))
		limit := stat["TCP"]["orphan"] * 3 / 2
		c.limit("tcp_max_orphans", fmt.Sprint(limit))
		d := p.diagnose()
		d.check(t, condition{finds: []string{"fin-wait1-pileup", "orphan-limit"}})
		f := d.find(t, "orphan-limit")
		qt.Check(t, qt.Equals(f.Severity, "warning"))
		checkFacts(t, f, map[string]any{"tcp_max_orphans": float64(limit), "resets": 0.0, "biggest_peers": "127.0.0.1:20201 (23)"})
		qt.Check(t, qt.IsTrue(f.Facts["orphans"].(float64) >= connections), qt.Commentf("%v", f.Facts))
	})
}
