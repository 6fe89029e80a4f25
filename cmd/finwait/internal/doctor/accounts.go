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

// account is how the connections of one party have ended.
type account struct {
	party
	ended   uint64
	endings map[tracer.Ending]uint64
	// clients is how many have ended for each reason that the process has opened itself.
	clients map[tracer.Reason]uint64
	// services are how many have ended of each.
	services map[string]int
}

// party is a process, or the service of one that is not known.
type party struct {
	netns   uint32
	owner   observe.Process
	role    tracer.Role
	service netip.AddrPort
}

// ofProcess has all flows of a process together.
func ofProcess(f *observe.Flow) party {
	if f.Owner.PID == 0 {
		return ofService(f)
	}
	return party{netns: f.Netns, owner: f.Owner}
}

// ofService has all flows of a service together, whichever processes they are of.
func ofService(f *observe.Flow) party {
	return party{netns: f.Netns, role: f.Role, service: f.Service}
}

// ofFlow has one flow alone.
func ofFlow(f *observe.Flow) party { return party{f.Netns, f.Owner, f.Role, f.Service} }

// accounts returns how connections have ended by parties, those of most first.
func accounts(t *observe.Traffic, by func(*observe.Flow) party) []*account {
	all := map[party]*account{}
	for i := range t.Flows {
		f := &t.Flows[i]
		k := by(f)
		a := all[k]
		if a == nil {
			a = &account{party: k, endings: map[tracer.Ending]uint64{}, clients: map[tracer.Reason]uint64{}, services: map[string]int{}}
			all[k] = a
		}
		a.add(f)
	}
	sorted := make([]*account, 0, len(all))
	for _, a := range all {
		sorted = append(sorted, a)
	}
	slices.SortFunc(sorted, func(a, b *account) int {
		return cmp.Or(
			cmp.Compare(b.ended, a.ended), cmp.Compare(a.netns, b.netns), cmp.Compare(a.owner.PID, b.owner.PID),
			cmp.Compare(a.owner.Comm, b.owner.Comm), cmp.Compare(a.role, b.role), a.service.Compare(b.service),
		)
	})
	return sorted
}

func (a *account) add(f *observe.Flow) {
	ended := f.TimeWait // for the process it is over then
	for way, n := range f.Endings {
		a.endings[way] += n
		if wasConnection(way.Old) && way.Old != tracer.StateTimeWait {
			ended += n
		}
		if f.Role == tracer.RoleClient && wasConnection(way.Old) {
			a.clients[way.Reason] += n
		}
	}
	a.ended += ended
	if f.Service.IsValid() && ended > 0 {
		a.services[f.Service.String()] += int(ended)
	}
}

// wasConnection tells that what ended in that state was a connection.
func wasConnection(old tracer.State) bool {
	switch old {
	case tracer.StateNewSynRecv, tracer.StateSynSent, tracer.StateListen, tracer.StateClose:
		return false
	}
	return true
}

// accountOfAll is how all connections have ended, if nothing tells them apart. What ends
// with TIME_WAIT is counted at the end of that.
func accountOfAll(t *observe.Traffic) *account {
	a := &account{endings: map[tracer.Ending]uint64{}}
	for way, n := range t.Endings.All() {
		a.endings[way] = n
		if wasConnection(way.Old) {
			a.ended += n
		}
	}
	return a
}

// reset returns how many have ended for that reason, by the state that they were in.
func (a *account) reset(reason tracer.Reason, in func(tracer.State) bool) (n uint64, states map[string]int) {
	states = map[string]int{}
	for way, count := range a.endings {
		if way.Reason == reason && in(way.Old) {
			n += count
			states[way.Old.String()] += int(count)
		}
	}
	return n, states
}

// subject says whose the connections are.
func (p party) subject() string {
	switch {
	case p.owner.PID != 0:
		return processName(p.owner)
	case !p.service.IsValid():
		return "an unknown process"
	case p.role == tracer.RoleServer:
		return "an unknown process at " + p.service.String()
	}
	return "an unknown process that connects to " + p.service.String()
}

// withService names the service, if it is known and subject does not.
func (p party) withService() string {
	if p.owner.PID == 0 || !p.service.IsValid() {
		return ""
	}
	return " with " + p.service.String()
}

// facts are those of the process and the service, as far as they are known.
func (p party) facts() []Fact {
	all := processFacts(p.owner)
	if p.service.IsValid() {
		all = append(all, Fact{"role", p.role.String()}, Fact{"service", p.service.String()})
	}
	return all
}

// facts are the numbers, too.
func (a *account) facts() []Fact {
	all := append(a.party.facts(), Fact{"ended", a.ended})
	if len(a.services) > 0 && !a.service.IsValid() {
		all = append(all, Fact{"biggest_services", listBiggest(a.services)})
	}
	return all
}

// netnsOf returns the network namespace of that inode number, nil if it was not looked at.
func netnsOf(h *observe.Host, inode uint32) *observe.Netns {
	for i := range h.Namespaces {
		if h.Namespaces[i].Inode == inode {
			return &h.Namespaces[i]
		}
	}
	return nil
}

// place says in which network namespace a finding is. A log tells of namespaces that
// nobody has looked at: the finding names those itself.
func place(h *observe.Host, f *Finding, inode uint32) {
	if f.Netns = netnsOf(h, inode); f.Netns == nil {
		f.Facts = append(f.Facts, Fact{"netns", uint64(inode)})
		f.Summary = fmt.Sprintf("netns %d: %s", inode, f.Summary)
	}
}

// flowsNow returns the flows of what was seen while the host was watched, nil if nothing
// told them apart. A log may be of another time, and does not bear on the sockets of now.
func flowsNow(h *observe.Host) []observe.Flow {
	if isLogged(h) {
		return nil
	}
	return flowsOf(h)
}

// isLogged tells that what happened to connections was read in a log.
func isLogged(h *observe.Host) bool {
	return h.Traffic != nil && h.Traffic.Source == observe.SourceLog
}

// foldByNetns is fold for the findings of each network namespace.
func foldByNetns(all []Finding, of string) (folded []Finding) {
	byNetns := map[*observe.Netns][]Finding{}
	var order []*observe.Netns
	for _, f := range all {
		if byNetns[f.Netns] == nil {
			order = append(order, f.Netns)
		}
		byNetns[f.Netns] = append(byNetns[f.Netns], f)
	}
	for _, n := range order {
		folded = append(folded, fold(byNetns[n], of)...)
	}
	return folded
}

// share returns how many of a hundred: "12 %", "0.3 %".
func share(n, of uint64) string { return prose.Rate(percent(n, of)) + " %" }

// percent returns how many of a hundred.
func percent(n, of uint64) float64 {
	if of == 0 {
		return 0
	}
	return 100 * float64(n) / float64(of)
}

// ratio is a number and what it is a part of, in words.
func ratio(n, of uint64) string {
	return fmt.Sprintf("%s of %s (%s)", prose.Number(n), prose.Number(of), share(n, of))
}
