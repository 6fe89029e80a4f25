package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
)

var listenerRules = []*Rule{slowAccept, acceptQueueOverflow, listenBacklogSmall, synFlood, synBacklogSmall, halfOpenResets}

const (
	// manyWaiting is more connections than wait by chance while nobody accepts one.
	manyWaiting = 10
	// fewWaiting are not worth a word even if the queue has room for no more.
	fewWaiting = 2
	// pause is what a process may take off from accept, in seconds, and busyListener the
	// connections a second from which that matters.
	pause        = 0.05
	busyListener = 100
	// manyOverflows a second, if they are that share of what comes, are critical.
	manyOverflows = 10
	overflowShare = 0.1
	// defaultSomaxconn is net.core.somaxconn as the kernel has it since Linux 5.4.
	defaultSomaxconn = 4096
)

const raiseBacklog = "Raise the backlog that the application gives to listen: listen 80 backlog=4096 in nginx, ListenBackLog in Apache, SOMAXCONN in your own code. The kernel cuts it to net.core.somaxconn."

var longerBacklog = Setting{"net.core.somaxconn = 4096", "the default since Linux 5.4 (before: 128). It only bounds what the application asks for, and holds for sockets that call listen after it: restart the service. A connection that waits costs some kilobytes"}

var slowAccept = &Rule{
	ID:    "slow-accept",
	Title: "A process does not accept its connections fast enough",
	Worst: Critical,
	When: `the accept queue of a listener was at least half full both when the watch began and when it ended, with 2
		connections or more; or it had at least 10 both times and none was accepted in between (as far as that is known).
		Critical if it was full both times. The queue has room for one more than the backlog.`,
	Why: `The kernel finishes handshakes by itself and queues them for accept. A queue that stays full says that the process
		is busy, blocked or stopped, or out of descriptors (EMFILE). Those who wait believe that they are connected, have
		sent their request, and get no answer. When the queue is full, SYNs and the last ACKs of handshakes are dropped:
		new clients see their connect hang for seconds.`,
	Application: []string{
		"See what the process does instead of accept: its threads' stacks, a blocked event loop, a pool of workers that is used up, and whether it has a descriptor left (ls /proc/PID/fd | wc -l beside Max open files in /proc/PID/limits).",
		"Accept in a thread of its own, in a loop until EAGAIN; add workers or listeners (SO_REUSEPORT); answer 503 early rather than queue.",
	},
	Useless: []string{
		"A longer backlog (net.core.somaxconn): a queue that does not drain fills up again, and who is at its end waits longer.",
		"net.ipv4.tcp_abort_on_overflow = 1: clients then get resets instead of a second chance.",
		"net.ipv4.tcp_max_syn_backlog: it is not about this queue.",
	},
	Check: "ss -ltn: Recv-Q of the listener stays far below Send-Q.",
	References: []string{
		"listen(2), accept(2): EMFILE", "Documentation/networking/snmp_counter.rst: TcpExtListenOverflows",
		"Documentation/networking/ip-sysctl.rst: somaxconn, tcp_abort_on_overflow",
	},
	find: eachNetns(findSlowAccept),
}

func findSlowAccept(h *observe.Host, n *observe.Netns) []Finding {
	var all []ranked
	for _, e := range entrancesOf(h, n) {
		var slow []*observe.Listener
		for _, l := range e.listeners {
			if isSlow(h, n, e, l) {
				slow = append(slow, l)
			}
		}
		if len(slow) > 0 {
			all = append(all, slowAcceptAt(h, n, e, slow))
		}
	}
	return fold(worstFirst(all), "listeners")
}

// isSlow is the rule for one listener.
func isSlow(h *observe.Host, n *observe.Netns, e *entrance, l *observe.Listener) bool {
	least := min(l.Queue, l.QueueBefore)
	if !l.Before || least < fewWaiting {
		return false
	}
	return 2*uint64(least) >= room(l) || least >= manyWaiting && acceptsNone(h, n, e, l)
}

// isAlwaysFull is true of a listener that was full at both looks.
func isAlwaysFull(l *observe.Listener) bool {
	return isFull(l) && wasFull(l) && l.Queue >= fewWaiting
}

// acceptsNone reports whether it is known that next to nothing was taken off a queue:
// all that has come is still in it.
func acceptsNone(h *observe.Host, n *observe.Netns, e *entrance, l *observe.Listener) bool {
	added := int64(l.Queue) - int64(l.QueueBefore)
	if isExact(h.Traffic) && len(e.listeners) == 1 {
		// The looks and the traffic do not begin at the same instant.
		return 20*(int64(e.opened)-added) <= int64(e.opened)
	}
	opened, known := n.Counted["Tcp.PassiveOpens"] // of all listeners: at least those of this one
	return known && added >= int64(opened)
}

// slowAcceptAt tells of the listeners of an entrance that are slow, by the fullest.
func slowAcceptAt(h *observe.Host, n *observe.Netns, e *entrance, slow []*observe.Listener) ranked {
	l := slices.MaxFunc(slow, byFill)
	f := Finding{
		Severity: Warning,
		Subject:  e.local.String(),
		Summary:  fmt.Sprintf("%s at %s: %s of %s wait", acceptsHow(h, n, e, l), e.local, prose.Number(uint64(l.Queue)), prose.Number(room(l))),
		Facts:    []Fact{{"waiting", uint64(l.Queue)}, {"waiting_before", uint64(l.QueueBefore)}, {"backlog", uint64(l.Backlog)}},
	}
	if isAlwaysFull(l) {
		f.Severity = Critical
		sayDrops(&f, h, n, e)
	}
	if files, ok := h.Files[l.Owner.PID]; ok && uint64(files.Open) >= files.Limit {
		f.Summary += "; the process has no descriptor left (EMFILE)"
		f.Facts = append(f.Facts, Fact{"open_files", uint64(files.Open)}, Fact{"open_files_limit", files.Limit})
	}
	if isExact(h.Traffic) && len(e.listeners) == 1 {
		f.Facts = append(f.Facts, Fact{"opened", e.opened})
	}
	if len(e.listeners) > 1 {
		f.Facts = append(f.Facts, Fact{"slow_listeners", len(slow)}, Fact{"listeners", len(e.listeners)})
	}
	f.Facts = append(f.Facts, processFacts(l.Owner)...)
	return ranked{f, uint64(l.Queue)}
}

// acceptsHow says who accepts, and how slowly as far as that is known.
func acceptsHow(h *observe.Host, n *observe.Netns, e *entrance, l *observe.Listener) string {
	who := listenerName(l)
	switch {
	case !acceptsNone(h, n, e, l):
		return who + " does not keep up with accept"
	case h.Watched() > 0:
		return who + " accepted none in " + prose.Rate(h.Watched().Seconds()) + " s"
	}
	return who + " accepted none"
}

func listenerName(l *observe.Listener) string {
	if l.Owner.PID == 0 {
		return "a process that is not known"
	}
	return processName(l.Owner)
}

// sayDrops adds what was dropped at an entrance that is full: the kernel counts that of
// all listeners of the namespace together.
func sayDrops(f *Finding, h *observe.Host, n *observe.Netns, e *entrance) {
	overflows, known := n.Counted["TcpExt.ListenOverflows"]
	if !known {
		f.Summary += ", as many as fit"
		return
	}
	f.Facts = append(f.Facts, Fact{"listen_overflows", overflows})
	if overflows == 0 {
		f.Summary += ", as many as fit"
		return
	}
	f.Summary += fmt.Sprintf("; %s dropped, %s a second", prose.Count(overflows, "SYN or ACK", "SYNs or ACKs"), prose.Rate(h.PerSecond(overflows)))
	isElsewhere := func(l *observe.Listener) bool { return l.Local != e.local }
	if slices.ContainsFunc(mayOverflow(h, n), isElsewhere) {
		f.Summary += ", here and at other listeners"
	}
}

// mayOverflow returns the listeners whose accept queue may have been full while the host
// was watched: those that can have got as many connections. That is half of what fits
// here, as the looks and the traffic do not begin at the same instant.
func mayOverflow(h *observe.Host, n *observe.Netns) (may []*observe.Listener) {
	passive, known := n.Counted["Tcp.PassiveOpens"] // of all listeners
	for _, e := range entrancesOf(h, n) {
		opened, isBounded := passive, known
		if isExact(h.Traffic) {
			opened, isBounded = e.opened, true
		}
		for _, l := range e.listeners {
			if !isBounded || isHalfFull(l) || 2*(uint64(l.QueueBefore)+opened) >= room(l) {
				may = append(may, l)
			}
		}
	}
	return may
}

// byFill compares listeners by the share of their queue that is in use.
func byFill(a, b *observe.Listener) int {
	return cmp.Compare(uint64(max(a.Queue, a.QueueBefore))*room(b), uint64(max(b.Queue, b.QueueBefore))*room(a))
}

var acceptQueueOverflow = &Rule{
	ID:    "accept-queue-overflow",
	Title: "Connections find the accept queue full",
	Worst: Critical,
	When: `ListenOverflows has grown while the host was watched, and no listener was full at both looks: slow-accept tells of
		that, with the number. Critical from 10 a second on if they are a tenth of what comes, or if
		net.ipv4.tcp_abort_on_overflow is 1.`,
	Why: `ListenOverflows counts each SYN, and each last ACK of a handshake, that came while a listener's accept queue was
		full, and was dropped. The client repeats its SYN after a second: its connect is slow. If it was the ACK that was
		dropped, the client believes that it is connected; it sends its request again and again, and one that waits for the
		server to speak first may wait until the SYN-ACK is repeated. A queue that was full at neither look is filled by
		bursts: the backlog is small for what comes while the process does something else. ListenDrops counts these drops
		too, and those for other causes: no room for half-open connections without SYN cookies, no memory, no route.`,
	Application: []string{
		raiseBacklog,
		"Accept in a thread of its own, in a loop until EAGAIN, so that a burst waits in the process.",
	},
	Sysctls: []Setting{longerBacklog},
	Useless: []string{
		"net.ipv4.tcp_max_syn_backlog: it does not bound the accept queue.",
		"net.ipv4.tcp_abort_on_overflow = 1: what would have succeeded a moment later is reset instead.",
		"net.core.netdev_max_backlog: that is packets between the network card and the protocols.",
	},
	Check: "nstat -az TcpExtListenOverflows no longer grows; ss -ltn shows the new limit as Send-Q.",
	References: []string{
		"listen(2)", "Documentation/networking/snmp_counter.rst: TcpExtListenOverflows, TcpExtListenDrops",
		"Documentation/networking/ip-sysctl.rst: somaxconn, tcp_abort_on_overflow",
	},
	find: eachNetns(findAcceptOverflow),
}

func findAcceptOverflow(h *observe.Host, n *observe.Netns) []Finding {
	overflows := n.Counted["TcpExt.ListenOverflows"]
	if overflows == 0 || slices.ContainsFunc(pointers(n.Listeners), isAlwaysFull) {
		return nil
	}
	f := Finding{
		Severity: Warning,
		Subject:  "accept queues",
		Facts: []Fact{
			{"listen_overflows", overflows}, {"listen_overflows_per_second", h.PerSecond(overflows)},
			{"listen_overflows_in_all", n.Counters["TcpExt.ListenOverflows"]},
		},
	}
	if drops, ok := n.Counted["TcpExt.ListenDrops"]; ok {
		f.Facts = append(f.Facts, Fact{"other_listen_drops", less(drops, overflows)})
	}
	opened, known := n.Counted["Tcp.PassiveOpens"]
	if known {
		f.Facts = append(f.Facts, Fact{"opened", opened})
	}
	abort, known := n.Sysctls.Int("net.ipv4.tcp_abort_on_overflow")
	if known {
		f.Facts = append(f.Facts, Fact{"tcp_abort_on_overflow", abort})
	}
	if abort == 1 || h.PerSecond(overflows) >= manyOverflows && float64(overflows) >= overflowShare*float64(overflows+opened) {
		f.Severity = Critical
	}
	f.Summary = fmt.Sprintf("%s dropped, %s a second, because ", prose.Count(overflows, "SYN or ACK", "SYNs or ACKs"), prose.Rate(h.PerSecond(overflows)))
	f.Sysctls = moreConnections(n, nameOverflowing(&f, h, n))
	if abort == 1 {
		f.Sysctls = append(f.Sysctls, Setting{"net.ipv4.tcp_abort_on_overflow = 0", "the default: the client tries again instead of being reset"})
	}
	return []Finding{f}
}

// nameOverflowing says which listeners may have overflowed, which the kernel does not
// count: the only one that can have, or those whose queue is full now or was, or else half
// full, or else too small for what comes. It returns the likeliest, nil if none is likely.
func nameOverflowing(f *Finding, h *observe.Host, n *observe.Netns) *observe.Listener {
	may := mayOverflow(h, n)
	likely := likelyOverflowing(h, n, may)
	which := "an accept queue was full"
	if len(likely) == 1 {
		l := likely[0]
		whose := fmt.Sprintf("of %s at %s (backlog %s)", listenerName(l), l.Local, prose.Number(uint64(l.Backlog)))
		which += ", most likely that " + whose
		if len(may) == 1 {
			which = "the accept queue " + whose + " was full"
		}
		f.Subject = l.Local.String()
		f.Facts = append(f.Facts, processFacts(l.Owner)...)
	}
	f.Summary += which
	if !slices.ContainsFunc(pointers(n.Listeners), func(l *observe.Listener) bool { return isFull(l) || wasFull(l) }) {
		f.Summary += ": bursts, which were over at both looks"
	}
	if len(likely) == 0 {
		return nil
	}
	var names []string
	for _, l := range likely[:min(handful, len(likely))] {
		names = append(names, fmt.Sprintf("%s (%d of %d)", l.Local, max(l.Queue, l.QueueBefore), room(l)))
	}
	f.Facts = append(f.Facts, Fact{"likely_listeners", strings.Join(names, ", ")}, Fact{"backlog", uint64(likely[0].Backlog)})
	return likely[0]
}

// likelyOverflowing returns those of the listeners that may have overflowed that are likely
// to have, the fullest first.
func likelyOverflowing(h *observe.Host, n *observe.Netns, may []*observe.Listener) (likely []*observe.Listener) {
	if len(may) == 1 {
		return may
	}
	small := map[*observe.Listener]bool{}
	for _, e := range entrancesOf(h, n) {
		for _, l := range e.listeners {
			small[l] = isSmall(h, e)
		}
	}
	for _, isLikely := range []func(*observe.Listener) bool{
		func(l *observe.Listener) bool { return isFull(l) || wasFull(l) }, isHalfFull,
		func(l *observe.Listener) bool { return small[l] },
	} {
		likely = slices.DeleteFunc(slices.Clone(may), func(l *observe.Listener) bool { return !isLikely(l) })
		if len(likely) > 0 {
			break
		}
	}
	slices.SortStableFunc(likely, func(a, b *observe.Listener) int { return byFill(b, a) })
	return likely
}

// moreConnections returns the setting that lets a listener have a longer backlog, or any
// if it is nil. It is empty, and not nil, if the application alone limits it, or if it is
// not known what would be more.
func moreConnections(n *observe.Netns, l *observe.Listener) []Setting {
	limit, known := n.Sysctls.Int("net.core.somaxconn")
	isBelow := func(l *observe.Listener) bool { return int64(l.Backlog) < limit }
	areBelow := len(n.Listeners) > 0 && !slices.ContainsFunc(pointers(n.Listeners), func(l *observe.Listener) bool { return !isBelow(l) })
	switch {
	case l == nil && known && limit < defaultSomaxconn && !areBelow:
		return []Setting{longerBacklog}
	case l == nil || !known || isBelow(l):
		return []Setting{}
	}
	return []Setting{{
		fmt.Sprintf("net.core.somaxconn = %d", max(4*limit, defaultSomaxconn)),
		"it cuts the backlog of this listener, or the application asks for just as much. It holds for sockets that call listen after it: restart the service",
	}}
}

func pointers[T any](all []T) []*T {
	found := make([]*T, len(all))
	for i := range all {
		found[i] = &all[i]
	}
	return found
}

var listenBacklogSmall = &Rule{
	ID:    "listen-backlog-small",
	Title: "A listener's backlog is small for what comes",
	Worst: Info,
	When: `a listener, or those that share its address and port, takes 100 connections a second or more, and what comes in 50
		milliseconds is more than its backlog. Not if accept queues have overflowed meanwhile (accept-queue-overflow tells),
		nor if bursts have found no room for half-open connections (syn-backlog-small), nor if it does not accept fast enough
		(slow-accept). A log does not tell: it is of another time than the listeners.`,
	Why: `Nothing is wrong as long as the process accepts at once. It need only pause for some milliseconds, in a garbage
		collection, for the disk, or for want of CPU, and the queue is full and drops SYNs: those clients wait a second.`,
	Application: []string{raiseBacklog},
	Sysctls:     []Setting{longerBacklog},
	Useless:     []string{"net.ipv4.tcp_max_syn_backlog: it does not bound the accept queue."},
	Check:       "ss -ltn shows the new limit as Send-Q.",
	References:  []string{"listen(2)", "Documentation/networking/ip-sysctl.rst: somaxconn"},
	find:        eachNetns(findSmallBacklog),
}

// isSmall reports whether what comes fills an entrance's queues in a short pause.
func isSmall(h *observe.Host, e *entrance) bool {
	if h.Traffic == nil || !h.Traffic.Enough(e.opened, busyListener) {
		return false
	}
	perSecond := h.Traffic.Rate(e.opened)
	return perSecond >= busyListener && perSecond*pause > float64(e.backlog)
}

func findSmallBacklog(h *observe.Host, n *observe.Netns) []Finding {
	if n.Counted["TcpExt.ListenOverflows"] > 0 || burstsOverBacklog(h, n) > 0 {
		return nil
	}
	var all []ranked
	for _, e := range entrancesOf(h, n) {
		slow := func(l *observe.Listener) bool { return isSlow(h, n, e, l) }
		if !isSmall(h, e) || slices.ContainsFunc(e.listeners, slow) {
			continue
		}
		perSecond := h.Traffic.Rate(e.opened)
		full := 1000 * float64(e.backlog) / perSecond
		f := Finding{
			Severity: Info,
			Subject:  e.local.String(),
			Summary:  fmt.Sprintf("%s takes %s connections a second, which fill its backlog of %s in %s ms", e.local, about(h.Traffic)+prose.Rate(perSecond), prose.Number(e.backlog), prose.Rate(full)),
			Facts:    []Fact{{"opened_per_second", perSecond}, {"backlog", e.backlog}, {"full_after_ms", full}},
			Sysctls:  moreConnections(n, e.listeners[0]),
		}
		if limit, ok := n.Sysctls.Int("net.core.somaxconn"); ok {
			f.Facts = append(f.Facts, Fact{"somaxconn", limit})
		}
		if len(e.listeners) > 1 {
			f.Facts = append(f.Facts, Fact{"listeners", len(e.listeners)})
		}
		f.Facts = append(f.Facts, processFacts(e.listeners[0].Owner)...)
		all = append(all, ranked{f, e.opened})
	}
	return fold(worstFirst(all), "listeners")
}
