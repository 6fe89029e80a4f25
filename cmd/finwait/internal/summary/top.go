package summary

import (
	"cmp"
	"slices"

	"github.com/finwait/finwait/tracer"
)

// Top counts keys, in room for so many of them. When there are more, the one with
// the least count makes room for a new one and leaves it its count: the sum stays
// right, no frequent key is missed, and each count is at most Over too high ("space
// saving", Metwally, Agrawal and El Abbadi, 2005).
type Top[K cmp.Ordered] struct {
	room   int
	places map[K]int // in rows
	rows   []Row[K]  // a heap, the least first
	total  uint64
}

// Row is a key and how often it was there.
type Row[K cmp.Ordered] struct {
	Key   K
	Count uint64
	// Over is how much Count may be too high, 0 if it is exact.
	Over uint64
}

func newTop[K cmp.Ordered](room int) Top[K] {
	return Top[K]{room: room, places: map[K]int{}}
}

// add counts a key, and returns the one that made room for it, if one did.
func (t *Top[K]) add(key K) (gone K, replaced bool) {
	t.total++
	place, known := t.places[key]
	switch {
	case known:
	case len(t.rows) < t.room:
		place = len(t.rows)
		t.rows = append(t.rows, Row[K]{Key: key})
		t.places[key] = place
		place = t.up(place)
	default:
		least := &t.rows[0]
		gone, replaced = least.Key, true
		delete(t.places, gone)
		least.Key, least.Over = key, least.Count
		t.places[key] = 0
	}
	t.rows[place].Count++
	t.down(place)
	return gone, replaced
}

// up moves a row to where it belongs, if it has become less.
func (t *Top[K]) up(i int) int {
	for i > 0 && t.rows[i].Count < t.rows[(i-1)/2].Count {
		t.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	return i
}

// down moves a row to where it belongs, if it has become more.
func (t *Top[K]) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(t.rows); child++ {
			if t.rows[child].Count < t.rows[least].Count {
				least = child
			}
		}
		if least == i {
			return
		}
		t.swap(i, least)
		i = least
	}
}

func (t *Top[K]) swap(i, j int) {
	t.rows[i], t.rows[j] = t.rows[j], t.rows[i]
	t.places[t.rows[i].Key], t.places[t.rows[j].Key] = i, j
}

// First returns the n rows with the highest counts, and what all others count
// together.
func (t *Top[K]) First(n int) (rows []Row[K], others uint64) {
	rows = slices.Clone(t.rows)
	slices.SortFunc(rows, func(a, b Row[K]) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Key, b.Key))
	})
	rows = rows[:min(n, len(rows))]
	others = t.total
	for _, r := range rows {
		others -= r.Count
	}
	return rows, others
}

// maxOwners is how many names are kept, and maxPIDs how many processes of all of
// them.
const (
	maxOwners = 4096
	maxPIDs   = 1 << 16
)

// Owners counts records by the name of the owner.
type Owners struct {
	Top[string]
	// Unknown is the number of records whose owner is not known.
	Unknown uint64

	processes map[string]*processes
	kept      int // process ids in all of processes
}

// processes are those of one name.
type processes struct {
	name string
	pids map[uint32]struct{}
	more bool // there may be some that found no room
}

func newOwners(room int) Owners {
	return Owners{Top: newTop[string](room), processes: map[string]*processes{}}
}

func (o *Owners) add(owner *tracer.Owner) {
	if owner.Origin == tracer.OriginUnknown {
		o.Unknown++
		return
	}
	p := o.processes[string(owner.Comm())]
	if p == nil {
		p = &processes{name: string(owner.Comm()), pids: map[uint32]struct{}{}}
	}
	if gone, replaced := o.Top.add(p.name); replaced {
		o.kept -= len(o.processes[gone].pids)
		delete(o.processes, gone)
		p.more = true // it may have been here before
	}
	o.processes[p.name] = p
	o.note(p, owner.PID)
}

// note remembers that the process is one of p.
func (o *Owners) note(p *processes, pid uint32) {
	if _, known := p.pids[pid]; known || pid == 0 {
		return
	}
	if o.kept >= maxPIDs {
		p.more = true
		return
	}
	p.pids[pid] = struct{}{}
	o.kept++
}

// Processes returns how many processes have that name; exact is false if there
// may be more.
func (o *Owners) Processes(name string) (n int, exact bool) {
	p := o.processes[name]
	if p == nil {
		return 0, false
	}
	return len(p.pids), !p.more
}
