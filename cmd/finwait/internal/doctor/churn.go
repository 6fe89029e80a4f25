package doctor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

const (
	// churnFrom is how many connections a second are worth a word.
	churnFrom = 50
	// churnShare is the share of the ports from which they are, and churnShareReused the
	// same where ports are used again after a second and nothing leaves the host.
	churnShare, churnShareReused = 0.2, 0.5
)

var clientChurn = &Rule{
	ID:    "client-churn",
	Title: "A process opens connection after connection to one service",
	Worst: Info,
	When: `a process, or several of one name, open 50 connections a second or more to one address and port, close them first, and
		so come to hold a fifth of the local ports that there are towards it; half of them if it is on loopback and connect takes over
		ports in TIME_WAIT (net.ipv4.tcp_tw_reuse). It is not said of a destination that port-exhaustion names. A log,
		which may be of another time, does not count: sockets show it then.`,
	Why: `Each connection costs a handshake of a round trip, and another one or two with TLS, begins with a small congestion
		window, and leaves its port in TIME_WAIT. What that holds is connections per second times 60, or times the second
		after which the port can be taken over. It works until the load is a few times what it is now: then ports run out
		(port-exhaustion).`,
	Application: []string{
		"Keep connections open and use them again: HTTP keep-alive, a connection pool, a persistent connection to the cache or database.",
		`In a proxy: keep-alive towards the upstream as well (nginx: keepalive in the upstream block, proxy_http_version 1.1 and an
		empty Connection header; HAProxy: http-reuse). In HTTP clients: one client object for all requests, and read each
		response to its end, or its connection is not used again.`,
		"Where each request is a process of its own (CGI, cron, shell scripts), put a local proxy or pooler in between.",
	},
	Useless: []string{
		"net.ipv4.tcp_fin_timeout: it is for FIN_WAIT2. TIME_WAIT lasts 60 seconds whatever it says.",
		"A wider net.ipv4.ip_local_port_range: it puts off the end of the ports, and each connection costs what it did.",
	},
	Check:      "finwait conns --rport PORT: fewer connections, of longer duration; finwait count: fewer sockets in TIME_WAIT.",
	References: []string{"RFC 9112 section 9.3", "RFC 6928", "RFC 9293 section 3.6.1", "Documentation/networking/ip-sysctl.rst: tcp_tw_reuse"},
	find:       eachNetns(findClientChurn),
}

// client is the processes of one name that connect to one service.
type client struct {
	to netip.AddrPort
	// first is the process that connects most, one of processes.
	first     observe.Process
	mostly    uint64 // what it opened
	processes int
	// opened and closing are how many a second they open, and close first.
	opened, closing float64
	handshake       tracer.Histogram
}

func findClientChurn(h *observe.Host, n *observe.Netns) []Finding {
	pool, ok := poolOf(n)
	if !ok {
		return nil
	}
	sources, waiting := map[netip.AddrPort]int{}, map[netip.AddrPort]int{}
	for i := range n.Outgoing {
		if u, ok := portUseOf(h, n, &pool, &n.Outgoing[i]); ok {
			sources[u.Remote]++
			waiting[u.Remote] += len(u.waiting)
		}
	}
	scarce := map[netip.AddrPort]bool{}
	for _, s := range scarcitiesOf(h, n, &pool, connectsFailed(h, n)) {
		scarce[s.Remote] = true
	}
	var all []Finding
	for _, c := range clientsOf(h, n, &pool) {
		ports := pool.size() * max(1, sources[c.to]) // each source address has them all
		if f, ok := c.finding(n, ports, waiting[c.to]); ok && !scarce[c.to] {
			all = append(all, f)
		}
	}
	return fold(all, "clients")
}

// clientsOf returns who connects from a network namespace, those that do so most first.
func clientsOf(h *observe.Host, n *observe.Netns, pool *portPool) []*client {
	var all []*client
	if flowsNow(h) != nil {
		all = clientsOfFlows(h.Traffic, n)
	} else {
		all = clientsOfPorts(h, n, pool)
	}
	slices.SortFunc(all, func(a, b *client) int {
		return cmp.Or(cmp.Compare(b.opened, a.opened), a.to.Compare(b.to), cmp.Compare(a.first.Comm, b.first.Comm))
	})
	return all
}

// clientsOfFlows takes workers of one name together: each alone may be slow, or serve one
// request.
func clientsOfFlows(t *observe.Traffic, n *observe.Netns) (all []*client) {
	type key struct {
		to   netip.AddrPort
		comm string
	}
	clients := map[key]*client{}
	for i := range t.Flows {
		f := &t.Flows[i]
		if f.Netns != n.Inode || f.Role != tracer.RoleClient {
			continue
		}
		k := key{f.Service, f.Owner.Comm}
		c := clients[k]
		if c == nil {
			c = &client{to: f.Service}
			clients[k], all = c, append(all, c)
		}
		c.opened += t.Rate(f.Opened)
		c.closing += t.Rate(f.TimeWait)
		c.handshake.Merge(&f.Handshake)
		c.processes++
		if f.Opened >= c.mostly {
			c.first, c.mostly = f.Owner, f.Opened
		}
	}
	return all
}

// clientsOfPorts makes do with what the sockets show: how many ports were taken, and not
// by how many processes.
func clientsOfPorts(h *observe.Host, n *observe.Netns, pool *portPool) (all []*client) {
	for i := range n.Outgoing {
		if u, ok := portUseOf(h, n, pool, &n.Outgoing[i]); ok {
			all = append(all, &client{to: u.Remote, first: u.Owner, opened: h.PerSecond(uint64(u.New)), closing: u.closing})
		}
	}
	return all
}

// finding returns what there is to say of a client to whose service there are so many
// ports, of which so many are in TIME_WAIT now; false if there is nothing.
func (c *client) finding(n *observe.Netns, ports, waiting int) (f Finding, ok bool) {
	loopback := c.to.Addr().Unmap().IsLoopback()
	reuse, ok := reuseOf(n, loopback)
	if !ok || c.opened < churnFrom {
		return f, false
	}
	settled, share := c.closing*reuse.lasts.Seconds(), churnShare
	if loopback && reuse.allowed {
		share = churnShareReused
	}
	if settled < share*float64(ports) {
		return f, false
	}
	settled = min(settled, float64(ports))
	f = Finding{
		Severity: Info,
		Subject:  c.name() + " to " + c.to.String(),
		Summary: fmt.Sprintf("%s opens %s connections a second to %s and closes them: TIME_WAIT holds %s of %s ports now, and %s in the end at this rate",
			c.name(), prose.Rate(c.opened), c.to, prose.Number(uint64(waiting)), prose.Number(uint64(ports)), prose.Number(uint64(settled))),
		Facts: []Fact{
			{"opened_per_second", c.opened}, {"closed_first_per_second", c.closing},
			{"ports_held", waiting}, {"ports_held_in_the_end", int(settled)}, {"ports_in_all", ports},
		},
	}
	if c.handshake.Count() > 0 {
		f.Facts = append(f.Facts, Fact{"handshake_median_seconds", c.handshake.Quantile(0.5).Seconds()})
	}
	if c.processes > 1 && c.first.PID != 0 {
		f.Facts = append(f.Facts, Fact{"processes", c.processes})
	}
	f.Facts = append(f.Facts, processFacts(c.first)...)
	return f, true
}

// name is who connects, as far as that is known.
func (c *client) name() string {
	switch {
	case c.first.PID == 0:
		return "a process that is not known"
	case c.processes > 1:
		return fmt.Sprintf("%s (%d processes)", c.first.Comm, c.processes)
	}
	return processName(c.first)
}
