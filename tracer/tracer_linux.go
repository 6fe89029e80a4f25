//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// SweepInterval is how often the tracer looks for transitions of mini-sockets
// that no tracepoint shows, as long as there are mini-sockets of which it must.
// So much later, at most, their events come, with the time they happened. With
// EvidenceProbe there are none.
const SweepInterval = 200 * time.Millisecond

// A Tracer follows the state of every TCP socket of the host, in all network
// namespaces, from New to Detach or Close.
//
// Its methods may be called from several goroutines at a time, except for the
// iterators of Events, of which one may run at a time. A Tracer holds kernel
// objects that nothing else keeps: when the process ends, in whatever way, the
// kernel removes them.
type Tracer struct {
	coll    *ebpf.Collection
	tier    tier
	profile *ProfileOptions // nil if none is kept
	events  *ring           // of transitions
	conns   *ring           // of connections that have ended
	decode  atomic.Uint64

	countersOnly, reloadable bool
	filtering                sync.Mutex // one SetFilter at a time

	// watching is the kernel's count of mini-sockets that need a sweep.
	watching *ebpf.Variable
	iters    map[string]*link.Iter // by program
	findRun  uint64                // number of the last run of findProgram; guarded by auditor.auditing
	failed   atomic.Uint64         // runs of those
	auditor  auditor
	pins     *pins // nil if nothing is pinned
	began    time.Time

	links []link.Link
	ctx   context.Context // done when the goroutines of the tracer are to end
	stop  context.CancelFunc
	work  sync.WaitGroup

	detachOnce sync.Once
	detachErr  error
	detached   atomic.Bool // Events is to end when the ring is empty

	closing sync.RWMutex // guards closed: the reader must not look into a ring that is gone
	closed  bool
}

// New loads the programs into the kernel and attaches them. A nil opts is the
// same as the zero value.
//
// It returns an error that wraps [ErrNotSupported] if the kernel lacks what it
// needs, one that wraps [os.ErrPermission] if the caller does, and a
// [*OptionsError] for options that cannot be.
func New(opts *Options) (*Tracer, error) {
	if opts == nil {
		opts = &Options{}
	}
	if err := opts.validate(); err != nil {
		return nil, &OptionsError{err}
	}
	k, err := readKernel()
	if err != nil {
		return nil, diagnose(err)
	}
	p, err := openPins(opts.PinPath)
	if err != nil {
		return nil, err
	}
	usable, refused := usableTiers(opts.Evidence, k)
	for _, tier := range usable {
		t, err := start(opts, tier, k, p)
		if err == nil {
			return t, nil
		}
		refused = andAlso(refused, fmt.Errorf("evidence by %v: %w", tier.evidence, err))
	}
	return nil, errors.Join(diagnose(refused), p.close())
}

// start makes a tracer of that tier, whose pins are p.
func start(opts *Options, with tier, k *kernel, p *pins) (*Tracer, error) {
	coll, err := load(opts, with, k)
	if err != nil {
		return nil, err
	}
	t := &Tracer{coll: coll, tier: with, profile: opts.Profile, countersOnly: opts.CountersOnly, reloadable: opts.Reloadable, watching: coll.Variables["watching"], iters: map[string]*link.Iter{}}
	t.events = &ring{name: "events", used: !opts.NoTransitions && !opts.CountersOnly}
	t.conns = &ring{name: "conns", used: opts.Conns != nil}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.auditor.init(t)
	if opts.CountersOnly {
		t.auditor.refuse(errCountersOnly)
	}
	if err := p.inherit(coll, opts.Profile); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	if err := t.attach(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	if err := p.publishCounters(coll); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	t.pins, t.began = p, time.Now().UTC()
	t.work.Go(t.sweepRegularly)
	if !opts.CountersOnly {
		t.work.Go(func() { t.auditor.run(t.ctx, opts.AuditInterval) })
	}
	return t, nil
}

// Inherited tells whether the counters go on from those that an earlier tracer has
// left in Options.PinPath, and since when they count.
func (t *Tracer) Inherited() (since time.Time, inherited bool) {
	if t.pins == nil || !t.pins.inherited {
		return time.Time{}, false
	}
	return time.Unix(0, int64(t.pins.says.SinceNs)).UTC(), true
}

// attach goes from the reader to the evidence to the tracepoint: the
// tracepoint's word on a closing socket is only right once the tier sees what
// mini-sockets are made.
func (t *Tracer) attach() error {
	var err error
	if err = t.coll.Maps["gauges"].Put(uint64(0), make([]bpfFinwaitGauge, ebpf.MustPossibleCPU())); err != nil {
		return fmt.Errorf("make the row for namespaces without one: %w", err)
	}
	if err = t.profile.makeOthers(t.coll.Maps[profileMap]); err != nil {
		return err
	}
	if err = t.events.open(t.coll.Maps["events"]); err != nil {
		return err
	}
	if err = t.conns.open(t.coll.Maps["ended"]); err != nil {
		return err
	}
	for program, m := range auditPrograms {
		if err := t.attachIter(program, t.coll.Maps[m]); err != nil {
			return err
		}
	}
	if t.tier.evidence == EvidenceTimer {
		if err := t.attachIter(orphanSweep, t.coll.Maps[watchMap]); err != nil {
			return err
		}
	}
	for _, program := range []string{claimProgram, findProgram, holdersProgram, stuckProgram} {
		if err := t.attachIter(program, nil); err != nil {
			return err
		}
	}
	for _, name := range slices.Concat(t.tier.programs, []string{resetProgram, countProgram}, statePrograms) {
		program := t.coll.Programs[name]
		if program == nil {
			continue // there is nothing to attach it to, or no need for it
		}
		l, err := link.AttachTracing(link.TracingOptions{Program: program})
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		t.links = append(t.links, l)
	}
	return t.coll.Variables["attached"].Set(true)
}

func (t *Tracer) attachIter(program string, m *ebpf.Map) (err error) {
	if t.coll.Programs[program] == nil {
		return nil // no need for it
	}
	t.iters[program], err = link.AttachIter(link.IterOptions{Program: t.coll.Programs[program], Map: m})
	if err != nil {
		return fmt.Errorf("attach %s: %w", program, err)
	}
	return nil
}

// Evidence returns what shows mini-sockets and half-open connections to this
// tracer.
func (t *Tracer) Evidence() Evidence { return t.tier.evidence }

// Events yields the transitions that pass the filter, as they happen: at once, or
// some 12 milliseconds late after another.
//
// The event is valid until the next is asked for; copy it to keep it. Events
// come in the order in which they were told, which on several CPUs, and for
// mini-sockets (see [SweepInterval]), is not always the order of their times.
//
// The iterator ends without an error when ctx is done, when Close is called,
// and after Detach when all events before it have been yielded. It may then be
// asked for again, and goes on where it stopped. It yields an error once, with
// a nil event, if the ring buffer cannot be read, and ends.
//
// It does not allocate per event.
func (t *Tracer) Events(ctx context.Context) iter.Seq2[*Event, error] {
	return stream(ctx, t, t.events, decodeEvent)
}

// stream yields what decode makes of the records of a ring buffer.
func stream[T any](ctx context.Context, t *Tracer, reader *ring, decode func(*T, []byte, *clock) bool) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		defer context.AfterFunc(ctx, func() { reader.Flush() })()
		if t.detached.Load() {
			reader.Flush() // an earlier iterator may have used up Detach's
		}
		var (
			record ringbuf.Record
			clock  clock
			item   T
			awake  = true // records may be there of which nobody told
			read   = true // one has been read since the deadline was set
		)
		reader.SetDeadline(time.Now())
		for ctx.Err() == nil {
			err := reader.ReadInto(&record)
			switch {
			case err == nil:
			case errors.Is(err, os.ErrDeadlineExceeded):
				awake, read = read, false
				reader.SetDeadline(lookAgain(awake))
				continue
			case errors.Is(err, ringbuf.ErrFlushed) && t.detached.Load(), errors.Is(err, os.ErrClosed):
				return
			case errors.Is(err, ringbuf.ErrFlushed):
				continue
			default:
				yield(nil, fmt.Errorf("read ring buffer: %w", err))
				return
			}
			if !awake {
				awake = true
				reader.SetDeadline(lookAgain(awake))
			}
			read = true
			reader.took(&record)
			if !decode(&item, record.RawSample, &clock) {
				t.decode.Add(1)
				continue
			}
			if !yield(&item, nil) {
				return
			}
		}
	}
}

// wakeEvery is how often at most each CPU wakes the reader: WAKE_EVERY_NS in
// bpf/transition.h.
const wakeEvery = 10 * time.Millisecond

// lookAgain returns until when to wait for events. A CPU that has just woken
// the reader does not do so for wakeEvery, so that one that is awake must look
// once more after that, and one that has then found nothing may sleep.
func lookAgain(awake bool) time.Time {
	if awake {
		return time.Now().Add(wakeEvery + wakeEvery/4)
	}
	return time.Time{}
}

// Pending tells whether Events has more to yield without waiting. Between two
// events it says whether now is the time to flush what has been buffered.
func (t *Tracer) Pending() bool { return t.pending(t.events) }

// PendingConns is the same of Conns.
func (t *Tracer) PendingConns() bool { return t.pending(t.conns) }

func (t *Tracer) pending(reader *ring) bool {
	t.closing.RLock()
	defer t.closing.RUnlock()
	return !t.closed && reader.AvailableBytes() > 0
}

// sweepRegularly does what has to be done every so often.
func (t *Tracer) sweepRegularly() {
	tick := time.NewTicker(SweepInterval)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
		t.sweep()
		if n%roomEvery == 0 {
			if err := t.auditor.makeRoom(); err != nil {
				t.failed.Add(1)
			}
		}
	}
}

// roomEvery is after how many sweeps room is made for new namespaces.
const roomEvery = 5

// sweep has mini-sockets tell what no tracepoint shows.
func (t *Tracer) sweep() {
	if t.tier.evidence != EvidenceTimer {
		return
	}
	var watching int64
	if err := t.watching.Get(&watching); err != nil || watching > 0 {
		if _, err := t.runIter(orphanSweep); err != nil {
			t.failed.Add(1)
		}
	}
}

// runIter runs an iterator to its end, in the calling thread's namespace, and
// returns what it has written.
func (t *Tracer) runIter(program string) ([]byte, error) {
	run, err := t.iters[program].Open()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", program, err)
	}
	defer run.Close()
	var out []byte
	buf := make([]byte, 4096)
	for {
		n, err := run.Read(buf)
		out = append(out, buf[:max(n, 0)]...)
		switch {
		case err == nil, errors.Is(err, unix.EAGAIN): // a million are done; there are more
		case errors.Is(err, io.EOF):
			return out, nil
		default:
			return nil, fmt.Errorf("run %s: %w", program, err)
		}
	}
}

// Detach stops tracing. What was traced can still be read: Events yields what
// is left and ends, Counters and Ledger keep their numbers. It may be called
// more than once, and returns the same each time.
func (t *Tracer) Detach() error {
	t.detachOnce.Do(func() { t.detachErr = t.detach() })
	return t.detachErr
}

func (t *Tracer) detach() error {
	t.stop()
	t.work.Wait()
	if len(t.links) > 0 {
		t.sweep() // what mini-sockets have not told yet
	}
	errs := []error{t.pins.withdraw(), t.coll.Variables["attached"].Set(false)}
	// In reverse, for the reason that attach gives.
	for _, l := range slices.Backward(t.links) {
		errs = append(errs, l.Close())
	}
	for _, it := range t.iters {
		if it != nil {
			errs = append(errs, it.Close())
		}
	}
	awaitPrograms()
	errs = append(errs, t.pins.close())
	t.detached.Store(true)
	for _, reader := range t.readers() {
		errs = append(errs, reader.Flush())
	}
	return errors.Join(errs...)
}

// readers returns those that are open.
func (t *Tracer) readers() []*ring {
	return slices.DeleteFunc([]*ring{t.events, t.conns}, func(r *ring) bool { return r.Reader == nil })
}

// awaitPrograms waits until no program runs that was started before: taking one
// off its tracepoint does not stop it on another CPU. Programs run in RCU
// read-side sections, and this membarrier is a wait for all of those to end.
func awaitPrograms() {
	const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL of linux/membarrier.h
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	if errno != 0 { // refused with nohz_full, and by some sandboxes
		time.Sleep(10 * time.Millisecond)
	}
}

// Close stops tracing, ends a running Events and frees everything. No other
// method may be called after it, but Close itself.
func (t *Tracer) Close() error {
	err := t.Detach()
	t.closing.Lock()
	defer t.closing.Unlock()
	t.closed = true
	for _, reader := range t.readers() {
		err = errors.Join(err, reader.Close())
	}
	t.coll.Close()
	return err
}
