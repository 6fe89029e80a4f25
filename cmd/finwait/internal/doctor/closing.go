package doctor

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

var closingRules = []*Rule{closeWaitLeak, slowClose, finWait2Orphans, finWait2Held, finWait1PileUp, lastAckPileUp}

const (
	// leakedCloseWait is more than one error path that runs now and then leaves behind in
	// the time of a watch.
	leakedCloseWait = 10
	// heldFinWait2 is more than a few long answers that are awaited after shutdown.
	heldFinWait2 = 20
	// slowCloses is how many times make a median.
	slowCloses = 20
	// lasts is how long the host must be watched for a state in which sockets were all the
	// time to be more than one that they pass.
	lasts = 2500 * time.Millisecond
)

// allTheTime makes the find of a rule about sockets that do not leave a state, in one
// network namespace at a time.
func allTheTime(find func(*observe.Host, *observe.Netns) []Finding) func(*observe.Host) []Finding {
	return eachNetns(func(h *observe.Host, n *observe.Netns) []Finding {
		if h.Watched() < lasts {
			return nil
		}
		return find(h, n)
	})
}

var closeWaitLeak = &Rule{
	ID:    "close-wait-leak",
	Title: "A process does not close connections that its peers have closed",
	Worst: Critical,
	When: `a process holds at least 10 sockets that were in CLOSE_WAIT all the time, which was 2.5 seconds or more, with
		nothing left to send. It is critical if four fifths of the files that the process may open are open. It is info if the
		host was watched for less than 10 seconds, they do not become more, and the process has read all that has come on
		half of them or more: it may be at work. Connections that have not been accepted are not counted.`,
	Why: `The peer has closed, the kernel has acknowledged that and told the process, and nothing but the process ends
		CLOSE_WAIT. Each such socket holds a descriptor, kernel memory, and whatever the process keeps for the connection.
		When the descriptors are used up, accept, connect and open fail with EMFILE. A pool that has such connections
		hands them out, and the request that gets one fails.`,
	Application: slices.Concat(closeForgotten, endUnseen, leakRestart),
	Useless: []string{
		"net.ipv4.tcp_fin_timeout: it is for orphans in FIN_WAIT2, which is what the peer has. CLOSE_WAIT has no timer.",
		`net.ipv4.tcp_keepalive_time and its like: they are for sockets with SO_KEEPALIVE, and end CLOSE_WAIT only once the
			peer's socket or host is gone. Even then the process keeps the descriptor, of a socket in CLOSE, which no list of
			connections shows: the leak goes on unseen.`,
		"ss -K: the same. The connection ends, and the descriptor stays open.",
		"net.ipv4.tcp_tw_reuse, tcp_max_tw_buckets: they are for TIME_WAIT.",
		"More files for the process (LimitNOFILE=): it puts off the end.",
	},
	Check:      "ss -tnp state close-wait lists no connection that stays; ls /proc/PID/fd | wc -l does not grow.",
	References: []string{"RFC 9293 section 3.6", "RFC 1122 section 4.2.2.13", "accept(2): EMFILE", "tcp(7): SO_KEEPALIVE"},
	find:       allTheTime(findCloseWaitLeak),
}

// What to change goes by whether the process has read the end of the stream.
var (
	// closeForgotten does not claim that it has: the number of a FIN that came with data is
	// taken as read with the data (tcp_recvmsg_locked: found_fin_ok), and read has not
	// returned 0 yet.
	closeForgotten = []string{`Where the process has read all that has come: it does not close on some path, or does not
		read again and so does not see the end, which read tells by 0. Read until then and close, on every path, errors and
		timeouts too (defer, with, using, try-with-resources). The peers and the local port tell which code it is.`}
	endUnseen = []string{`Where the end of the stream has not been read, nobody looks at these connections. In a pool, check
		a connection before it is used, close idle ones sooner than the server does, and watch idle ones for the end. Else
		look for threads that hang, and give them timeouts, and for an event loop that does not watch its idle connections.`}
	leakRestart = []string{"Restarting the process closes them, until there are as many again."}
)

func findCloseWaitLeak(h *observe.Host, n *observe.Netns) (all []Finding) {
	leaked := func(l *observe.Lasting) int {
		if l.State != tracer.StateCloseWait || l.Orphan {
			return 0
		}
		return l.Sockets - l.Unsent
	}
	for _, p := range pileUp(n, byProcess, leaked) {
		if p.count >= leakedCloseWait {
			all = append(all, leakOf(h, n, p))
		}
	}
	return fold(all, "processes")
}

func leakOf(h *observe.Host, n *observe.Netns, p *pile) Finding {
	growth := leastGrowth(h, n, p)
	f := Finding{
		Severity:    Warning,
		Subject:     p.subject(),
		Summary:     leakSummary(h, p, growth),
		Application: prose.Lines(slices.Concat(closeForgotten, leakRestart)),
		Facts: append(processFacts(p.owner), []Fact{
			{"sockets", p.sum.Sockets}, {"new", p.sum.New}, {"unread_end", p.sum.UnreadEnd}, {"unread_data", p.sum.Unread},
			{"unsent_data", p.sum.Unsent}, {"biggest_locals", listBiggest(p.locals)},
			{"peers", len(p.peers)}, {"biggest_peers", listBiggest(p.peers)},
		}...),
	}
	if growth > 0 {
		f.Facts = append(f.Facts, Fact{"grown_per_second", growth})
	}
	mayWork := mayBeAtWork(h, growth)
	if 2*p.sum.UnreadEnd > p.sum.Sockets {
		mayWork = false // it does not even look
		f.Application = prose.Lines(slices.Concat(endUnseen, leakRestart))
	}
	if f.addFiles(h, p.owner, growth) {
		f.Severity = Critical
	} else if mayWork {
		f.Severity = Info
		f.Summary += watchLonger
	}
	return f
}

// leakSummary says how many sockets a process does not close, and where.
func leakSummary(h *observe.Host, p *pile, growth float64) string {
	text := fmt.Sprintf("%s: %s not closed for all of %s",
		p.where(), prose.Count(uint64(p.count), "connection", "connections"), prose.Duration(h.Watched()))
	if now := p.sum.Sockets + p.sum.New; now > p.count {
		text += fmt.Sprintf(", %s in CLOSE_WAIT now", prose.Number(uint64(now)))
	}
	if growth > 0 {
		text += fmt.Sprintf(", %s more a second", prose.Rate(growth))
	}
	return text
}

// addFiles says how many files a process has open that opens so many more a second, if that
// is known, and reports whether few are left.
func (f *Finding) addFiles(h *observe.Host, p observe.Process, growth float64) (few bool) {
	open, limit, known := filesOf(h, p)
	if !known {
		return false
	}
	f.Facts = append(f.Facts, Fact{"files_open", open}, Fact{"files_limit", limit})
	ratio := fmt.Sprintf("%s of %s", prose.Number(open), prose.Number(limit))
	switch {
	case open >= limit:
		f.Summary += fmt.Sprintf("; out of descriptors (%s open)", ratio)
	case growth > 0:
		left := math.Round(float64(limit-open) / growth)
		f.Facts = append(f.Facts, Fact{"limit_reached_in_seconds", left})
		f.Summary += fmt.Sprintf("; out of descriptors in %s (%s open)", prose.Duration(toDuration(left)), ratio)
	default:
		f.Summary += fmt.Sprintf("; %s descriptors open", ratio)
	}
	return float64(open) >= nearLimit*float64(limit)
}

// leastGrowth returns by how many sockets a second a pile has grown at least. Of those
// that have left the state meanwhile it is not known whose they were, but how many.
func leastGrowth(h *observe.Host, n *observe.Netns, p *pile) float64 {
	gone := int(n.StatesBefore[p.sum.State])
	for i := range n.Lasting {
		if n.Lasting[i].State == p.sum.State {
			gone -= n.Lasting[i].Sockets
		}
	}
	return h.PerSecond(uint64(max(p.sum.New-max(gone, 0), 0)))
}

// filesOf returns how many files a process has open and may have open, if that is known
// and there is a limit.
func filesOf(h *observe.Host, p observe.Process) (open, limit uint64, known bool) {
	files, known := h.Files[p.PID]
	return uint64(files.Open), files.Limit, known && p.PID != 0 && files.Limit != math.MaxUint64
}

var slowClose = &Rule{
	ID:    "slow-close",
	Title: "A process takes long to close after its peer",
	Worst: Info,
	When: `half of a process's connections with a service that left CLOSE_WAIT while the host was watched had been in it for
		a second or longer. There must be at least 20 of which the time is known: those that have come into it meanwhile.`,
	Why: `Meanwhile the connection takes a descriptor and memory here, and the peer has a socket in FIN_WAIT2. A process
		that answers a peer which has half-closed the connection has a reason. One that has not read the end of the stream
		yet is busy elsewhere, or looks at its connections only now and then.`,
	Application: []string{
		"Close when read returns 0, if there is nothing left to send.",
		"In a pool, watch idle connections for the end rather than checking them by a timer. Do what takes long elsewhere than in the loop that reads.",
	},
	Useless:    []string{"Any sysctl: CLOSE_WAIT has no timer."},
	Check:      "finwait profile --by service: CLOSE_WAIT.",
	References: []string{"RFC 9293 section 3.6.1", "RFC 1122 section 4.2.2.13"},
	find:       findSlowClose,
}

func findSlowClose(h *observe.Host) []Finding {
	var all []ranked
	flows := flowsOf(h)
	for i := range flows {
		f := &flows[i]
		median, count := f.CloseWait.Quantile(0.5), f.CloseWait.Count()
		if !h.Traffic.Enough(count, slowCloses) || median.Seconds() < 1 {
			continue
		}
		p := ofFlow(f)
		slow := Finding{
			Severity: Info,
			Subject:  p.subject(),
			Summary: fmt.Sprintf("%s takes some %.1f s to close what its peer has closed: half of %s%s connections%s took longer",
				p.subject(), median.Seconds(), about(h.Traffic), prose.Number(count), p.withService()),
			Facts: append(p.facts(), []Fact{
				{"closes", count}, {"closes_of_unknown_time", f.CloseWait.Unknown}, {"median_seconds", median.Seconds()},
				{"most_seconds", f.CloseWait.Max.Seconds()},
			}...),
		}
		place(h, &slow, f.Netns)
		all = append(all, ranked{slow, count})
	}
	return foldByNetns(worstFirst(all), "services")
}
