//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// kernelFilter returns the filter as bpf/filter.h has it.
func kernelFilter(f *Filter, conns *ConnOptions) bpfFinwaitFilter {
	k := bpfFinwaitFilter{
		SampleBelow: f.sampleBelow(),
		Family:      uint8(f.Family),
		Transition:  f.transitionMasks(),
		ByPort:      oneIf(len(f.Ports) > 0),
		ByLport:     oneIf(len(f.LocalPorts) > 0),
		ByRport:     oneIf(len(f.RemotePorts) > 0),
		ByWho:       oneIf(f.byOwner()),
		Port:        portBits(f.Ports),
		Lport:       portBits(f.LocalPorts),
		Rport:       portBits(f.RemotePorts),
		AddrLen:     uint32(len(f.Addrs)),
		Addr:        padded(f.Addrs, cidr),
		NetnsLen:    uint32(len(f.Netns)),
		Netns:       padded(f.Netns, same[uint32]),
		PidLen:      uint32(len(f.PIDs)),
		Pid:         padded(f.PIDs, same[uint32]),
		UidLen:      uint32(len(f.UIDs)),
		Uid:         padded(f.UIDs, same[uint32]),
		CommLen:     uint32(len(f.Comms)),
		Comm:        padded(f.Comms, comm),
		CgroupLen:   uint32(len(f.Cgroups)),
		Cgroup:      padded(f.Cgroups, same[uint64]),
	}
	conns.choose(&k)
	return k
}

// choose sets what the options say of the connections that are told.
func (o *ConnOptions) choose(k *bpfFinwaitFilter) {
	if o == nil {
		return
	}
	k.AllRecords = oneIf(len(o.Slow) == 0 && len(o.Reasons) == 0)
	for s, d := range o.Slow {
		k.SlowNs[s] = uint64(d.Nanoseconds())
	}
	for _, r := range o.Reasons {
		k.Reasons |= 1 << r
	}
}

func (f *Filter) byOwner() bool { return len(f.PIDs)+len(f.UIDs)+len(f.Comms)+len(f.Cgroups) > 0 }

// sampleBelow returns the share of all hash values of 32 bits that pass.
func (f *Filter) sampleBelow() uint64 {
	if f.Sample == 0 {
		return 1 << 32
	}
	return max(uint64(f.Sample*(1<<32)), 1)
}

func oneIf(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// SetFilter has another filter choose events and connections from now on, those
// that Options gave to New being the first; conns has the Slow and Reasons of
// Options.Conns, and nothing else of it changes. Counters, gauges and histograms
// go on as they are. It needs Options.Reloadable.
//
// A socket is judged by the filter of the moment, event by event: a connection
// that is open meanwhile may be told in part. Filter.Cgroups must be the same as
// before, since a socket is found to be in one of them when its owner is learnt.
//
// It returns a [*OptionsError] for a filter that cannot be, and keeps the one
// before.
func (t *Tracer) SetFilter(f *Filter, conns *ConnOptions) error {
	if err := errors.Join(f.validate(), conns.validate()); err != nil {
		return &OptionsError{err}
	}
	t.filtering.Lock()
	defer t.filtering.Unlock()
	if !t.reloadable {
		return &OptionsError{errors.New("the filter is to stay (Options.Reloadable is not set)")}
	}
	next := kernelFilter(f, conns)
	var now uint32
	filters := t.coll.Variables["filters"]
	var both [2]bpfFinwaitFilter
	if err := errors.Join(t.coll.Variables["filter_now"].Get(&now), filters.Get(&both)); err != nil {
		return fmt.Errorf("read filter: %w", err)
	}
	if was := &both[now&1]; was.CgroupLen != next.CgroupLen || was.Cgroup != next.Cgroup {
		return &OptionsError{errors.New("filter: another set of cgroups takes another tracer")}
	}
	both[(now+1)&1] = next
	if err := filters.Set(both); err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	awaitPrograms() // all CPUs have it before any looks
	if err := t.coll.Variables["filter_now"].Set(now + 1); err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	awaitPrograms() // the next one to come is written over what is still read
	return nil
}

// setFilter sets the first.
func setFilter(variables map[string]*ebpf.Variable, f bpfFinwaitFilter) error {
	if err := variables["filters"].Set([2]bpfFinwaitFilter{f}); err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	return nil
}

func (f *Filter) transitionMasks() (masks [numStates]uint16) {
	for _, from := range States() {
		for _, to := range States() {
			if f.passes(Transition{from, to}) {
				masks[from] |= 1 << to
			}
		}
	}
	return masks
}

func portBits(ranges []PortRange) (bits [65536 / 64]uint64) {
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last); port++ {
			bits[port/64] |= 1 << (port % 64)
		}
	}
	return bits
}

func padded[T, U any](values []T, convert func(T) U) (out [filterMax]U) {
	for i, v := range values {
		out[i] = convert(v)
	}
	return out
}

func same[T any](v T) T { return v }

func comm(name string) (c [16]byte) {
	copy(c[:commMax], name)
	return c
}

// cidr returns the prefix over IPv4-mapped IPv6, the one form in which the
// kernel side has addresses.
func cidr(p netip.Prefix) (c bpfFinwaitCidr) {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	for i := range bits {
		c.Mask[i/8] |= 0x80 >> (i % 8)
	}
	addr := p.Addr().As16()
	for i := range addr {
		c.Addr[i] = addr[i] & c.Mask[i]
	}
	return c
}
