package doctor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
)

// pile is sockets of a network namespace that have not left a state, with what they have
// in common.
type pile struct {
	pileKey
	// sum has the numbers of all of them; what else is in it is that of one of them.
	sum observe.Lasting
	// orphans is how many of sum.Sockets no process holds.
	orphans int
	// peers are those that the rule counts, by their other end, and count how many they are.
	peers map[string]int
	count int
	// locals are the same by their own end, and places by the service that they belong to.
	locals, places map[string]int
}

// pileKey is the process that holds them, or a place if the process is not known: sockets
// of one place are of one service. It is empty for sockets of all processes.
type pileKey struct {
	owner         observe.Process
	local, remote netip.AddrPort
}

// byProcess is the key of sockets that a process holds.
func byProcess(l *observe.Lasting) pileKey {
	switch {
	case l.Owner.PID != 0:
		return pileKey{owner: l.Owner}
	case l.Local.Port() != 0:
		return pileKey{local: l.Local}
	}
	return pileKey{remote: l.Remote}
}

// together is the key of all sockets.
func together(*observe.Lasting) pileKey { return pileKey{} }

// pileUp returns the piles, the biggest first. counted says how many of some sockets the
// rule is about; 0 leaves them out.
func pileUp(n *observe.Netns, key func(*observe.Lasting) pileKey, counted func(*observe.Lasting) int) []*pile {
	piles := map[pileKey]*pile{}
	for i := range n.Lasting {
		l := &n.Lasting[i]
		count := counted(l)
		if count == 0 {
			continue
		}
		k := key(l)
		p := piles[k]
		if p == nil {
			p = &pile{
				pileKey: k, sum: observe.Lasting{State: l.State},
				peers: map[string]int{}, locals: map[string]int{}, places: map[string]int{},
			}
			piles[k] = p
		}
		p.add(l, count)
	}
	all := make([]*pile, 0, len(piles))
	for _, p := range piles {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pile) int {
		return cmp.Or(
			cmp.Compare(b.count, a.count), cmp.Compare(a.owner.PID, b.owner.PID),
			a.local.Compare(b.local), a.remote.Compare(b.remote),
		)
	})
	return all
}

func (p *pile) add(l *observe.Lasting, count int) {
	p.count += count
	p.peers[peerName(l.Remote)] += count
	p.locals[peerName(l.Local)] += count
	p.places[placeName(l)] += count
	if l.Orphan {
		p.orphans += l.Sockets
	}
	p.sum.Sockets += l.Sockets
	p.sum.New += l.New
	p.sum.Unsent += l.Unsent
	p.sum.Unread += l.Unread
	p.sum.UnreadEnd += l.UnreadEnd
	p.sum.Retransmitted += l.Retransmitted
	p.sum.Stalled += l.Stalled
}

// placeName returns the service that sockets belong to: the process's own, or that to which
// it has connected.
func placeName(l *observe.Lasting) string {
	if l.Local.Port() != 0 {
		return "at " + l.Local.String()
	}
	return "to " + l.Remote.String()
}

// peerName returns an address, with its port if it is a service.
func peerName(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

// subject says whose the sockets are, in a line.
func (k pileKey) subject() string {
	switch {
	case k.owner.PID != 0:
		return processName(k.owner)
	case k.local.IsValid():
		return "an unknown process at " + k.local.String()
	}
	return "an unknown process that has connected to " + k.remote.String()
}

// where says whose the sockets are, and of which service the most of them.
func (p *pile) where() string {
	if p.owner.PID == 0 {
		return p.subject() // which has it
	}
	place, _ := biggest(p.places)
	return p.subject() + " " + place
}

// young is the time of a watch up to which a process may be at work with connections that
// were in one state all the time, unless there are more and more of them.
const young = 10 * time.Second

// mayBeAtWork reports whether it takes a longer watch to tell that a process has forgotten
// its sockets.
func mayBeAtWork(h *observe.Host, growth float64) bool { return h.Watched() < young && growth == 0 }

// watchLonger ends a summary of such sockets.
const watchLonger = "; they may be at work still: watch longer (--for 1m)"

// processName names a process that is known, if only by its number.
func processName(p observe.Process) string {
	if p.Comm == "" {
		return fmt.Sprintf("process %d", p.PID)
	}
	return fmt.Sprintf("%s (%d)", p.Comm, p.PID)
}

// biggest returns the name that has the most, and how many.
func biggest(counts map[string]int) (first string, most int) {
	for name, n := range counts {
		if n > most || n == most && name < first {
			first, most = name, n
		}
	}
	return first, most
}

// listBiggest lists the three that have the most: "198.51.100.1 (23), 198.51.100.7 (5)".
func listBiggest(counts map[string]int) string {
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	var list []string
	for _, name := range names[:min(len(names), 3)] {
		list = append(list, fmt.Sprintf("%s (%d)", name, counts[name]))
	}
	return strings.Join(list, ", ")
}

// handful is how many findings of a rule there are for a network namespace, before one
// that stands for the others.
const handful = 5

// fold has one finding stand for those beyond a handful. The first are those to show. of says what their subjects are: "processes".
func fold(all []Finding, of string) []Finding {
	if len(all) <= handful+1 {
		return all
	}
	rest := Finding{
		Subject: "others",
		Summary: fmt.Sprintf("the same is true of %d other %s", len(all)-handful, of),
		Facts:   []Fact{{"others", len(all) - handful}},
		Netns:   all[handful].Netns,
		Sysctls: []Setting{}, // those of the others do
	}
	for _, f := range all[handful:] {
		rest.Severity = max(rest.Severity, f.Severity)
	}
	return append(all[:handful:handful], rest)
}
