//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stuckProgram goes through the sockets of a network namespace (bpf/stuck.h).
const stuckProgram = "find_stuck"

// Stuck returns the sockets of the host that have been in their state for too
// long, among those that pass the tracer's filter. A nil opts is the same as the
// zero value.
//
// It works at once, on sockets that are older than the tracer too. Their ages
// are then lower bounds; what the tracer itself saw enter its state has an exact
// one. It needs CAP_SYS_ADMIN for network namespaces other than its own. It must
// not be called after Detach.
func (t *Tracer) Stuck(ctx context.Context, opts *StuckOptions) (*Stuck, error) {
	if err := opts.validate(); err != nil {
		return nil, &OptionsError{fmt.Errorf("stuck: %w", err)}
	}
	if err := t.auditor.await(ctx); err != nil {
		return nil, fmt.Errorf("stuck: %w", err)
	}
	s, err := t.auditor.findStuck(ctx, opts.over())
	if err != nil {
		return nil, fmt.Errorf("stuck: %w", err)
	}
	return s, nil
}

func (a *auditor) findStuck(ctx context.Context, over map[State]time.Duration) (*Stuck, error) {
	a.auditing.Lock()
	defer a.auditing.Unlock()
	a.t.sweep() // an orphan may have moved to TIME_WAIT
	var (
		limits [numStates]uint64
		clock  clock
	)
	at := uint64(now(unix.CLOCK_MONOTONIC))
	s := &Stuck{Time: clock.wall(at)}
	for state, d := range over {
		limits[state] = uint64(d)
	}
	vars := a.t.coll.Variables
	if err := errors.Join(vars["stuck_now"].Set(at), vars["stuck_over"].Set(&limits), vars["stuck_maybe"].Set(&s.Maybe)); err != nil {
		return nil, err
	}
	var found []byte
	err := a.eachNetns(ctx, &s.Missed, func(*netns) error {
		out, err := a.t.runIter(stuckProgram)
		if err == nil {
			s.Namespaces++
		}
		found = append(found, out...)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.Sockets = decodeStuck(found)
	return s, vars["stuck_maybe"].Get(&s.Maybe)
}

// decodeStuck returns what the program has written, the oldest first. A socket
// that was listed twice, as before Linux 6.17 one can be when others come and
// go meanwhile, is in it once.
func decodeStuck(out []byte) (sockets []StuckSocket) {
	seen := map[uint64]bool{}
	var raw bpfFinwaitStuck
	for size := int(unsafe.Sizeof(raw)); len(out) >= size; out = out[size:] {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), size), out)
		if seen[raw.Cookie] || !State(raw.State).valid() {
			continue
		}
		seen[raw.Cookie] = true
		sockets = append(sockets, StuckSocket{
			State:   State(raw.State),
			Age:     time.Duration(raw.AgeNs),
			AtLeast: raw.AtLeast != 0,
			Cookie:  raw.Cookie,
			Netns:   raw.Tuple.Netns,
			Family:  Family(raw.Family),
			Local:   addrPort(raw.Tuple.Laddr, raw.Tuple.Lport),
			Remote:  addrPort(raw.Tuple.Raddr, raw.Tuple.Rport),
			Owner:   decodeOwner(&raw.Who),
			Role:    Role(raw.Who.Role),
		})
	}
	slices.SortStableFunc(sockets, func(a, b StuckSocket) int { return cmp.Compare(b.Age, a.Age) })
	return sockets
}
