//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	defaultAuditInterval = 30 * time.Second
	// thoroughEvery is how often among audits each socket is looked at, and
	// not only the kernel's totals.
	thoroughEvery = 10
	// A difference counts if it is there as often as that, so far apart: what
	// a socket does takes microseconds, but is in one number before the other.
	confirmations = 3
	confirmPause  = 20 * time.Millisecond
)

// auditor claims the sockets that are older than the tracer, and then holds
// the gauges to the kernel.
type auditor struct {
	t         *Tracer
	claimed   chan struct{} // closed when what was there has been claimed
	claimErr  error         // valid when claimed is closed
	missed    int           // network namespaces in which nothing could be claimed; the same
	corrected atomic.Uint64

	auditing sync.Mutex // one audit, one walk at a time

	mu          sync.Mutex            // guards what follows
	corrections map[uint64]correction // by the cookies of network namespaces
	last        Audit
	deleted     uint64              // rows of gauges
	idle        map[uint64]gaugeRow // rows that were empty when last looked at
}

func (a *auditor) init(t *Tracer) {
	a.t = t
	a.claimed = make(chan struct{})
	a.corrections = map[uint64]correction{}
	a.idle = map[uint64]gaugeRow{}
}

// refuse has all that asks for gauges get the error. There is no run then.
func (a *auditor) refuse(err error) {
	a.claimErr = err
	close(a.claimed)
}

// run claims what is there and then audits at every interval.
func (a *auditor) run(ctx context.Context, interval time.Duration) {
	a.claimErr = a.begin(ctx)
	close(a.claimed)
	if interval < 0 {
		return
	}
	if interval == 0 {
		interval = defaultAuditInterval
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := a.audit(ctx, n%thoroughEvery == 0); err != nil && ctx.Err() == nil {
				a.t.failed.Add(1)
			}
		}
	}
}

// begin makes the gauges right, and lets others read them.
func (a *auditor) begin(ctx context.Context) error {
	if err := a.claim(ctx); err != nil {
		return err
	}
	if err := a.countUnfollowed(ctx); err != nil {
		return fmt.Errorf("count the mini-sockets that are there: %w", err)
	}
	return a.t.pins.publishGauges(a.t.coll, a.missed)
}

// countUnfollowed has an audit find out how many mini-sockets there are that could not
// be claimed for want of room, if there are any.
func (a *auditor) countUnfollowed(ctx context.Context) error {
	l, err := a.t.Ledger()
	if err != nil || l.Unfollowed == 0 {
		return err
	}
	_, err = a.audit(ctx, false)
	return err
}

// await waits until what was there has been claimed.
func (a *auditor) await(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.claimed:
		return a.claimErr
	}
}

func (a *auditor) correction(cookie uint64) correction {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.corrections[cookie]
}

// claim puts every socket that is older than the tracer into the gauges, and
// gives it the owner that has it open.
func (a *auditor) claim(ctx context.Context) error {
	a.auditing.Lock()
	defer a.auditing.Unlock()
	_, err := a.t.runIter(holdersProgram)
	if err == nil {
		var missed CensusMissed
		err = a.eachNetns(ctx, &missed, func(*netns) error {
			_, err := a.walk()
			return err
		})
		a.missed = len(missed.Netns)
	}
	if err != nil {
		return fmt.Errorf("count the sockets that are there: %w", err)
	}
	vars := a.t.coll.Variables
	return errors.Join(vars["settled"].Set(true), vars["settled_ns"].Set(uint64(now(unix.CLOCK_MONOTONIC))))
}

// eachNetns calls visit in every network namespace of the host. What cannot be
// visited goes into missed.
func (a *auditor) eachNetns(ctx context.Context, missed *CensusMissed, visit func(*netns) error) error {
	spaces, err := findNetns(missed)
	if err != nil {
		return err
	}
	defer func() { closeAllNetns(spaces) }()
	if spaces, err = a.t.addHiddenNetns(spaces); err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() {
		failed <- enterEach(ctx, queue(spaces), visit, func(n *netns, err error) {
			if err != nil {
				missed.Netns = append(missed.Netns, MissedNetns{Netns: n.inode, Name: n.name, Err: err})
			}
		})
	}()
	return errors.Join(<-failed, ctx.Err())
}

// walked is what a walk through the sockets of a namespace has found.
type walked struct {
	seen    [numStates]uint64
	claimed StateCounts
}

// walk goes through the sockets of the calling thread's namespace.
func (a *auditor) walk() (w walked, err error) {
	vars := a.t.coll.Variables
	err = errors.Join(vars["walk_seen"].Set(&w.seen), vars["walk_claimed"].Set(&w.claimed))
	if err == nil {
		_, err = a.t.runIter(claimProgram)
	}
	return w, errors.Join(err, vars["walk_seen"].Get(&w.seen), vars["walk_claimed"].Get(&w.claimed))
}

// Audit compares the gauges with the kernel, socket by socket, and puts them
// right where they differ, which [Ledger.Corrected] counts. A tracer does the
// same by itself at Options.AuditInterval, with the kernel's own totals
// (/proc/net/sockstat, snmp), and looks at each socket where those differ, and
// at every tenth time.
//
// It needs Linux 5.14, and CAP_SYS_ADMIN for network namespaces other than its
// own. While sockets come and go, a gauge is right if it can have been at any
// moment of the audit.
func (t *Tracer) Audit(ctx context.Context) (*Audit, error) {
	if err := t.auditor.await(ctx); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	audit, err := t.auditor.audit(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return audit, nil
}

// LastAudit returns the result of the last audit, the zero Audit before the
// first.
func (t *Tracer) LastAudit() Audit {
	t.auditor.mu.Lock()
	defer t.auditor.mu.Unlock()
	return t.auditor.last
}

func (a *auditor) audit(ctx context.Context, thorough bool) (*Audit, error) {
	a.auditing.Lock()
	defer a.auditing.Unlock()
	a.t.sweep()
	result := &Audit{Time: time.Now().UTC()}
	var err error
	if thorough {
		if result.Stale, err = a.removeStale(); err != nil {
			return nil, err
		}
	}
	err = a.eachNetns(ctx, &result.Missed, func(n *netns) error {
		result.Netns++
		return a.compare(ctx, n.inode, thorough, result)
	})
	if err != nil {
		return nil, err
	}
	a.corrected.Add(result.Claimed.Total())
	if err := a.removeSuperseded(result); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = *result
	return result, nil
}

// removeSuperseded deletes the rows of namespaces that are gone for sure. What
// is left in one has not been seen to end.
func (a *auditor) removeSuperseded(result *Audit) error {
	rows, err := a.t.gaugeRows()
	if err != nil {
		return err
	}
	for cookie := range superseded(rows) {
		if err := a.t.coll.Maps["gauges"].Delete(cookie); err != nil {
			return fmt.Errorf("delete gauges: %w", err)
		}
		a.forget(cookie, rows[cookie], result)
	}
	return nil
}

func (a *auditor) forget(cookie uint64, row *gaugeRow, result *Audit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	by := a.corrections[cookie]
	for _, s := range States() {
		if n := row.of(s, by); n != 0 {
			result.Gone = append(result.Gone, Difference{Netns: row.netns, State: s, Gauge: n})
			a.corrected.Add(uint64(max(n, -n)))
		}
	}
	a.drop(cookie)
}

// drop forgets a namespace whose row is deleted. Called with mu held.
func (a *auditor) drop(cookie uint64) {
	delete(a.corrections, cookie)
	a.t.pins.forget(cookie)
	a.deleted++
}

// removeStale takes out of the maps what the kernel no longer has.
func (a *auditor) removeStale() (uint64, error) {
	before, err := a.t.Ledger()
	if err != nil {
		return 0, err
	}
	for program := range auditPrograms {
		if _, err := a.t.runIter(program); err != nil {
			return 0, err
		}
	}
	after, err := a.t.Ledger()
	return after.Stale - before.Stale, err
}

// compare holds the gauges of the calling thread's namespace to the kernel.
func (a *auditor) compare(ctx context.Context, netns uint32, thorough bool, result *Audit) error {
	cookie, err := netnsCookie()
	if err != nil {
		return err
	}
	if !thorough {
		ok, err := a.compareTotals(cookie)
		if ok || err != nil {
			return err
		}
	}
	result.Walked++
	var wrong correction
	for i := range confirmations {
		off, claimed, err := a.compareSockets(cookie)
		if err != nil {
			return err
		}
		result.Claimed.add(&claimed)
		if i == 0 {
			wrong = off
		}
		if wrong = wrong.both(off); wrong == (correction{}) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(confirmPause):
		}
	}
	return a.correct(netns, cookie, wrong, result)
}

// both returns what two comparisons agree on.
func (c correction) both(other correction) correction {
	for s := range c {
		switch {
		case c[s] > 0 && other[s] > 0:
			c[s] = min(c[s], other[s])
		case c[s] < 0 && other[s] < 0:
			c[s] = max(c[s], other[s])
		default:
			c[s] = 0
		}
	}
	return c
}

func (a *auditor) correct(netns uint32, cookie uint64, by correction, result *Audit) error {
	row, err := a.t.gaugeRow(cookie)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	sum := a.corrections[cookie]
	for s, n := range by {
		if n == 0 {
			continue
		}
		gauge := row.of(State(s), sum)
		result.Differences = append(result.Differences, Difference{Netns: netns, State: State(s), Gauge: gauge, Kernel: gauge + n})
		sum[s] += n
		a.corrected.Add(uint64(max(n, -n)))
	}
	a.corrections[cookie] = sum
	return a.t.pins.correct(cookie, sum)
}

// distance returns by how much the kernel's number is off what the gauges of
// the states can have been at any moment between the two readings: 0 if it can.
func distance(kernel int64, before, after *gaugeRow, by correction, states ...State) int64 {
	var low, high int64
	for _, s := range states {
		low += before.of(s, by) - int64(after.left[s]-before.left[s])
		high += before.of(s, by) + int64(after.entered[s]-before.entered[s])
	}
	return kernel - min(max(kernel, low), high)
}

func (a *auditor) compareTotals(cookie uint64) (equal bool, err error) {
	before, err := a.t.gaugeRow(cookie)
	if err != nil {
		return false, err
	}
	totals, err := readTotals()
	if err != nil {
		return false, err
	}
	after, err := a.t.gaugeRow(cookie)
	if err != nil {
		return false, err
	}
	by := a.correction(cookie)
	sockets := slices.DeleteFunc(States(), func(s State) bool { return s == StateNewSynRecv })
	return distance(totals.sockets, before, after, by, sockets...) == 0 &&
		distance(totals.established, before, after, by, StateEstablished, StateCloseWait) == 0, nil
}

// compareSockets returns by how much each gauge is off, and how many sockets
// were not in the gauges. A namespace that has found no room for a row of its
// own cannot be compared.
func (a *auditor) compareSockets(cookie uint64) (off correction, claimed StateCounts, err error) {
	before, err := a.t.gaugeRow(cookie)
	if err != nil {
		return off, claimed, err
	}
	w, err := a.walk()
	if err != nil {
		return off, claimed, err
	}
	after, err := a.t.gaugeRow(cookie)
	if err != nil || !after.found {
		return off, w.claimed, err
	}
	by := a.correction(cookie)
	for _, s := range States() {
		off[s] = distance(int64(w.seen[s]), before, after, by, s)
	}
	return off, w.claimed, nil
}

// makeRoom deletes the rows of namespaces that have had no socket since it was
// last called, if there are many rows. Nobody says when a namespace is gone, and
// one that is not gets another row when it has sockets again. Should it have its
// first in the very moment in which the row is deleted, the next audit claims it.
func (a *auditor) makeRoom() error {
	var inserted uint64
	if err := a.t.coll.Variables["gauge_inserts"].Get(&inserted); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if inserted-a.deleted < maxNetns/4 {
		return nil
	}
	rows, err := a.t.gaugeRows()
	if err != nil {
		return err
	}
	idle := map[uint64]gaugeRow{}
	for cookie, row := range rows {
		if cookie == 0 || !row.empty(a.corrections[cookie]) {
			continue
		}
		before, known := a.idle[cookie]
		if !known || before.entered != row.entered {
			idle[cookie] = *row
			continue
		}
		if err := a.t.coll.Maps["gauges"].Delete(cookie); err != nil {
			return fmt.Errorf("delete gauges: %w", err)
		}
		a.drop(cookie)
	}
	a.idle = idle
	return nil
}
