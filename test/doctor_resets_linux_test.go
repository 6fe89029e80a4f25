package test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

// The peers of these sockets are this process's too, and are reset.
var resetConditions = []condition{
	{
		name: "data that is not read", finds: []string{"rst-unread-data"},
		plant: func(p *patient) {
			p.endAgainAndAgain(20100, func(c *closings, pair pair) {
				c.write(pair.server, 1)
				c.awaitUnread(pair.client)
				c.close(pair.client)
			})
		},
		check: func(t *testing.T, d *diagnosis) { checkResets(t, d, "rst-unread-data", "ESTABLISHED") },
	},
	{
		name: "SO_LINGER 0", finds: []string{"linger-zero"},
		plant: func(p *patient) {
			p.endAgainAndAgain(20101, func(c *closings, pair pair) {
				c.linger(pair.client)
				c.close(pair.client)
			})
		},
		check: func(t *testing.T, d *diagnosis) { checkResets(t, d, "linger-zero", "ESTABLISHED") },
	},
	{
		name: "data after the close", finds: []string{"late-data", "peer-resets"},
		plant: func(p *patient) {
			p.endAgainAndAgain(20102, func(c *closings, pair pair) {
				c.orphan(pair.client, pair.server)
				c.write(pair.server, 1)
			})
		},
		check: func(t *testing.T, d *diagnosis) { checkResets(t, d, "late-data", "FIN_WAIT2") },
	},
	{
		name: "resets of peers", finds: []string{"peer-resets"},
		plant: func(p *patient) {
			p.endAgainAndAgain(20103, func(c *closings, pair pair) {
				disconnect(pair.client.fd)
				c.close(pair.client)
			})
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "peer-resets")
			checkFacts(t, f, map[string]any{"role": "server", "service": "127.0.0.1:20103", "resets_percent": 100.0})
			qt.Check(t, qt.Equals(f.Subject, "127.0.0.1:20103"))
		},
	},
}

// endAgainAndAgain makes connections one after the other, whose servers are reset by what
// end does.
func (p *patient) endAgainAndAgain(port uint16, end func(*closings, pair)) {
	p.t.Helper()
	c := p.closingsAt(port)
	p.meanwhile(func() {
		pair := c.connect(0)
		end(c, pair)
		c.awaitState(pair.server, tracer.StateClose)
		c.close(pair.server)
		time.Sleep(2 * time.Millisecond) // not too many
	})
}

// checkResets holds the resets to those that the other ends of the connections got, where
// these are told too.
func checkResets(t *testing.T, d *diagnosis, id, state string) {
	t.Helper()
	f := d.find(t, id)
	sent := f.Facts["resets"].(float64)
	qt.Check(t, qt.IsTrue(sent >= 20), qt.Commentf("%v", f.Facts))
	if slices.Contains(d.ids(), "peer-resets") {
		received := d.find(t, "peer-resets").Facts["resets"].(float64)
		qt.Check(t, qt.IsTrue(sent-received <= 1 && received-sent <= 1), qt.Commentf("%v sent, %v received", sent, received))
	}
	qt.Check(t, qt.Equals(f.Facts["pid"], any(float64(os.Getpid()))))
	qt.Check(t, qt.StringContains(f.Facts["in_states"].(string), state+" ("))
	qt.Check(t, qt.IsTrue(f.Facts["ended"].(float64) >= sent))
}
