package observe

import (
	"cmp"
	"slices"

	"github.com/finwait/finwait/tracer"
)

// queued returns what is in the buffers of the sockets, by who holds them.
func (c *comparison) queued() []Queued {
	type holder struct {
		owner  Process
		orphan bool
	}
	sums := map[holder]*Queued{}
	for i := range c.after.sockets {
		s := &c.after.sockets[i]
		if s.State == tracer.StateListen || s.State == tracer.StateSynRecv || s.Mini {
			continue // its queues are none, or not of data
		}
		unread, unsent := dataOf(s)
		if unread == 0 && unsent == 0 {
			continue
		}
		k := holder{c.owner(s), s.Inode == 0}
		q := sums[k]
		if q == nil {
			q = &Queued{Owner: k.owner, Orphan: k.orphan}
			sums[k] = q
		}
		q.Sockets++
		q.Unread += uint64(unread)
		q.Unsent += uint64(unsent)
	}
	all := make([]Queued, 0, len(sums))
	for _, q := range sums {
		all = append(all, *q)
	}
	slices.SortFunc(all, func(a, b Queued) int {
		return cmp.Or(
			cmp.Compare(b.Unread+b.Unsent, a.Unread+a.Unsent), cmp.Compare(a.Owner.PID, b.Owner.PID),
			cmp.Compare(a.Owner.Comm, b.Owner.Comm), cmp.Compare(b.Sockets, a.Sockets),
		)
	})
	return all
}
