package doctor

import (
	"fmt"
	"slices"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// legacy judges a sysctl that has been without effect since a version.
func legacy(since string) func(world, string) opinion {
	return func(world, string) opinion {
		return opinion{verdict: VerdictNoEffect, why: "It has had no effect since Linux " + since + ", and is kept for scripts alone."}
	}
}

func judgeRecycle(world, string) opinion {
	return opinion{
		verdict: VerdictNoEffect, rule: sysctlRecycle, severity: Warning, gone: true, instead: []Setting{},
		says: "sets what does not exist since Linux 4.12",
		why: `It does not exist since Linux 4.12. Before that it dropped connections from behind a NAT, whose hosts have
			timestamps that do not agree.`,
	}
}

// manyOrphans is from how many orphans in FIN_WAIT2, by default, a lower tcp_fin_timeout
// serves them.
const manyOrphans = 50

func judgeFinTimeout(w world, value string) opinion {
	seconds, ok := sysctl.ParseInt(value)
	if !ok || seconds == 60 {
		return opinion{}
	}
	orphans := 0
	for _, l := range w.netns.Lasting {
		if l.State == tracer.StateFinWait2 && l.Orphan {
			orphans += l.Sockets + l.New
		}
	}
	o := opinion{verdict: VerdictEffective, facts: []Fact{{"fin_wait2_orphans", orphans}}}
	const what = "It is how long an orphan in FIN_WAIT2 waits for the peer to close; TIME_WAIT is 60 s whatever it says."
	running, known := w.netns.Sysctls.Int("net.ipv4.tcp_fin_timeout")
	if !known {
		running = seconds
	}
	// As it runs, it has made them fewer than they would be by default.
	if seconds > 60 || int64(orphans)*60 >= manyOrphans*max(running, 1) {
		o.why = fmt.Sprintf("%s There are %s such orphans now.", what, prose.Number(uint64(orphans)))
		return o
	}
	o.verdict, o.rule, o.severity = VerdictNoEffect, sysctlFinTimeout, Info
	o.says = "does not shorten TIME_WAIT"
	o.why = what + " There are none now, so there is nothing for it to do."
	if orphans > 0 {
		o.why = fmt.Sprintf("%s There are few now: %d.", what, orphans)
	}
	return o
}

func judgeReuse(w world, value string) opinion {
	if off, by := timestampsOff(w); off && (sysctl.Equal(value, "1") || w.inFile && sysctl.Equal(value, "2")) {
		return opinion{
			verdict: VerdictNoEffect, rule: sysctlReuseNoTimestamps, severity: Warning,
			says:    "does nothing without timestamps: net.ipv4.tcp_timestamps is 0, " + by,
			why:     "It goes by the timestamps of the old connection, and net.ipv4.tcp_timestamps is 0, " + by + ".",
			instead: []Setting{{"net.ipv4.tcp_timestamps = 1", "the kernel's default"}},
		}
	}
	if !sysctl.Equal(value, "1") {
		if sysctl.Equal(value, "0") {
			return opinion{verdict: VerdictEffective, why: "connect does not take ports in TIME_WAIT, not even on loopback, which it does by default (2)."}
		}
		return opinion{}
	}
	const what = "It lets connect take a port that is in TIME_WAIT to the same destination; it is for outgoing connections alone."
	var outgoing int
	for i := range w.netns.Outgoing {
		// The default, 2, is for those on loopback.
		if o := &w.netns.Outgoing[i]; !o.Remote.Addr().IsLoopback() && !o.Local.IsLoopback() {
			outgoing += len(o.TimeWait)
		}
	}
	inbound := w.netns.TimeWaitInbound
	switch {
	case outgoing > 0:
		return opinion{verdict: VerdictEffective, why: fmt.Sprintf("%s There are %s such ports now, to other hosts.", what, prose.Number(uint64(outgoing)))}
	case inbound == 0:
		return opinion{verdict: VerdictEffective, why: what + " There are none to other hosts in TIME_WAIT now."}
	}
	return opinion{
		verdict: VerdictNoEffect, rule: sysctlReuseInbound, severity: Info,
		says: fmt.Sprintf("does nothing for the %s sockets in TIME_WAIT here, which are of inbound connections", prose.Number(uint64(inbound))),
		why:  fmt.Sprintf("%s There are none to other hosts in TIME_WAIT now, and %s of inbound connections.", what, prose.Number(uint64(inbound))),
		facts: []Fact{
			{"time_wait_inbound", inbound}, {"time_wait_to_other_hosts", outgoing},
			{"time_wait_sockets", w.netns.States[tracer.StateTimeWait]},
		},
	}
}

// timestampsOff reports whether timestamps are off in a world, and by what. What runs by
// no file is gone when the host starts.
func timestampsOff(w world) (off bool, by string) {
	const key = "net.ipv4.tcp_timestamps"
	if !w.next {
		return w.is(key, "0"), "as it runs"
	}
	line, set := w.host.Settings.Last(key)
	return set && sysctl.Equal(line.Value, "0"), "by " + where(line)
}

func judgeMaxTimeWait(w world, value string) opinion {
	limit, ok := sysctl.ParseInt(value)
	def, known := w.share(2, 0)
	if !ok || !known || limit >= def {
		return opinion{}
	}
	return opinion{
		verdict: VerdictHarmful, rule: sysctlMaxTimeWait, severity: Warning,
		says: fmt.Sprintf("is lower than the default, %s: it breaks TIME_WAIT rather than sparing it", prose.Number(uint64(def))),
		why: fmt.Sprintf(`It is lower than the default, %s. Beyond it connections end without TIME_WAIT, and without what TIME_WAIT
			protects from; a socket in TIME_WAIT is some 250 bytes.`, prose.Number(uint64(def))),
		facts: []Fact{{"time_wait_sockets", w.netns.States[tracer.StateTimeWait]}},
	}
}

func judgeRFC1337(_ world, value string) opinion {
	if sysctl.Equal(value, "0") {
		return opinion{}
	}
	return opinion{
		verdict: VerdictEffective, rule: sysctlRFC1337, severity: Info,
		says: "has TIME_WAIT ignore resets; it does not lessen TIME_WAIT",
		why:  "A RST no longer ends TIME_WAIT early. It makes TIME_WAIT last, and does not lessen it.",
	}
}

func judgeAbortOnOverflow(_ world, value string) opinion {
	if sysctl.Equal(value, "0") {
		return opinion{}
	}
	return opinion{
		verdict: VerdictHarmful, rule: sysctlAbortOnOverflow, severity: Warning,
		says: "resets clients whose next try would have worked",
		why:  "A client that finds the accept queue full is reset, where the kernel would otherwise try again and let it in a moment later.",
	}
}

func judgeSyncookies(_ world, value string) opinion {
	switch {
	case sysctl.Equal(value, "0"):
		return opinion{
			verdict: VerdictHarmful, rule: sysctlSyncookiesOff, severity: Warning,
			says: "lets a flood of SYNs shut clients out",
			why:  "Once a listener has as many half-open connections as its backlog, further SYNs are dropped, whoever they are from.",
		}
	case sysctl.Equal(value, "2"):
		return opinion{
			verdict: VerdictHarmful, rule: sysctlSyncookiesAlways, severity: Warning,
			says: "answers every SYN with a cookie, without need",
			why: `Every connection begins with a cookie, without need: SYN-ACKs are never sent again, and clients without timestamps
				get no window scaling and no SACK.`,
		}
	}
	return opinion{}
}

func judgeTimestamps(_ world, value string) opinion {
	if !sysctl.Equal(value, "0") {
		return opinion{}
	}
	return opinion{
		verdict: VerdictHarmful, rule: sysctlTimestampsOff, severity: Warning,
		says: "takes PAWS, tcp_tw_reuse and good round-trip times away",
		why:  "Without timestamps there is no PAWS, tcp_tw_reuse does nothing, and connections from SYN cookies have no window scaling.",
	}
}

func judgeSynBacklog(w world, value string) opinion {
	limit, ok := sysctl.ParseInt(value)
	cookies, known := w.value("net.ipv4.tcp_syncookies")
	if !ok || !known {
		return opinion{}
	}
	if sysctl.Equal(cookies, "0") {
		return opinion{
			verdict: VerdictEffective,
			why: `As net.ipv4.tcp_syncookies is 0, a listener with more half-open connections than three quarters of it takes no more
				from hosts that it does not know.`,
		}
	}
	def, hasDefault := w.share(128, 128)
	if !hasDefault || limit == def {
		return opinion{}
	}
	o := opinion{
		verdict: VerdictNoEffect,
		why: `The kernel looks at it only if net.ipv4.tcp_syncookies is 0 (tcp_conn_request). What bounds half-open connections is
			the listener's backlog, which net.core.somaxconn bounds.`,
	}
	if w.inFile && limit > def {
		o.rule, o.severity, o.instead = sysctlSynBacklog, Info, []Setting{}
		o.says = "does nothing, as net.ipv4.tcp_syncookies is not 0"
		o.facts = []Fact{{"tcp_syncookies", cookies}}
		if most, ok := w.value("net.core.somaxconn"); ok {
			o.facts = append(o.facts, Fact{"somaxconn", most})
		}
	}
	return o
}

// The default of ip_local_port_range, in which who listens has asked for any port.
const firstChosen, lastChosen = 32768, 60999

func judgePortRange(w world, value string) opinion {
	ends, ok := sysctl.Values{"": value}.Ints("")
	if !ok || len(ends) != 2 {
		return opinion{}
	}
	reserved, _ := w.value("net.ipv4.ip_local_reserved_ports")
	kept, ok := sysctl.Values{"": reserved}.Ports("")
	if !ok {
		return opinion{}
	}
	taken := exposedPorts(w.netns, ends[0], ends[1], kept)
	if len(taken) == 0 {
		return opinion{}
	}
	ports := portList(slices.Clone(taken))
	note := "outgoing connections leave these ports alone, and whoever asks for them by number gets them"
	if line, set := setLine(w, "net.ipv4.ip_local_reserved_ports"); set {
		note += "; in place of " + where(line)
	}
	return opinion{
		verdict: VerdictEffective, rule: sysctlPortRange, severity: Info,
		says: fmt.Sprintf("has the ports of %s in it, which outgoing connections may take before they start", prose.Count(uint64(len(taken)), "service", "services")),
		why: fmt.Sprintf(`It gives outgoing connections %s ports, and among them those of services: %s. One that is taken when its service
			starts makes it fail.`, prose.Number(uint64(max(ends[1]-ends[0]+1, 0))), ports),
		facts:   []Fact{{"ports", ports}, {"services", len(taken)}},
		instead: []Setting{{"net.ipv4.ip_local_reserved_ports = " + portList(slices.Concat(kept, taken)), note}},
	}
}

// setLine returns the line of the host's files that sets a sysctl of the namespace.
func setLine(w world, key string) (sysctl.Line, bool) {
	if !w.netns.Host || w.host.Settings == nil {
		return sysctl.Line{}, false
	}
	return w.host.Settings.Last(key)
}

// exposedPorts returns the ports that somebody listens on and that an outgoing
// connection could have, in order. Those of the default range are not among them: there
// the kernel has chosen them for whoever asked for any.
func exposedPorts(n *observe.Netns, first, last int64, kept []sysctl.PortRange) (exposed []sysctl.PortRange) {
	var ports []uint16
	for i := range n.Listeners {
		port := n.Listeners[i].Local.Port()
		isKept := slices.ContainsFunc(kept, func(r sysctl.PortRange) bool { return port >= r.First && port <= r.Last })
		if at := int64(port); at < first || at > last || at >= firstChosen && at <= lastChosen || isKept {
			continue
		}
		ports = append(ports, port)
	}
	slices.Sort(ports)
	for _, port := range slices.Compact(ports) {
		exposed = append(exposed, sysctl.PortRange{First: port, Last: port})
	}
	return exposed
}

func judgeEstablishedTimeout(w world, value string) opinion {
	timeout, ok := sysctl.ParseInt(value)
	idle, known := w.int("net.ipv4.tcp_keepalive_time")
	if !ok || !known || timeout >= idle || w.netns.Conntrack == nil || w.netns.Conntrack.Entries == 0 {
		return opinion{}
	}
	return opinion{
		verdict: VerdictHarmful, rule: sysctlKeepaliveConntrack, severity: Info,
		says: fmt.Sprintf("is over before the first keepalive probe, after %d s", idle),
		why: fmt.Sprintf(`Connection tracking forgets a connection that is idle for so long, and keepalive's first probe comes after
			%d s: it cannot keep it there.`, idle),
		facts: []Fact{{"timeout_seconds", timeout}, {"tcp_keepalive_time_seconds", idle}, {"conntrack_entries", w.netns.Conntrack.Entries}},
		instead: []Setting{
			{fmt.Sprintf("net.ipv4.tcp_keepalive_time = %d", max(timeout/2, 1)), "half the table's time; for sockets with SO_KEEPALIVE, whose application can set TCP_KEEPIDLE instead"},
			{"net.netfilter.nf_conntrack_tcp_timeout_established = 432000", "the kernel's default, 5 days: entries of peers that have vanished stay as long"},
		},
	}
}
