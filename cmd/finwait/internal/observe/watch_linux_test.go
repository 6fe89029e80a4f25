package observe

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

var errNoTracer = errors.New("no tracer here")

// own looks at our own network namespace, which needs no privileges, for an hour that
// ends at once.
func own(t *testing.T) (context.Context, *Options) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, &Options{
		For: time.Hour, Scope: tracer.SelfNetns, PinPath: t.TempDir(), Ready: cancel,
		Open: func(context.Context, *tracer.Options) (*tracer.Tracer, func(), error) { return nil, nil, errNoTracer },
	}
}

// unseen returns why something could not be seen, "" if it could.
func (h *Host) unseen(what string) string {
	for _, u := range h.Unseen {
		if u.What == what {
			return u.Why
		}
	}
	return ""
}

func TestWatchWithoutTracer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	ctx, opts := own(t)
	h, err := Watch(ctx, opts)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsNil(h.Traffic))
	qt.Check(t, qt.StringContains(h.unseen(unseenTraffic), errNoTracer.Error()))
	qt.Check(t, qt.IsTrue(h.Watched() > 0 && h.Watched() < time.Minute))
	qt.Assert(t, qt.HasLen(h.Namespaces, 1))
	n := &h.Namespaces[0]
	qt.Check(t, qt.Equals(n.Inode, netnsOf("self")))
	qt.Check(t, qt.IsTrue(n.States[tracer.StateListen] > 0))
	qt.Check(t, qt.IsTrue(len(n.Counters) > 50))
	qt.Check(t, qt.Equals(len(n.Counted), len(n.Counters)))
	found := false
	for i := range n.Listeners {
		found = found || n.Listeners[i].Local.String() == l.Addr().String() && n.Listeners[i].Before && n.Listeners[i].Owner.PID != 0
	}
	qt.Check(t, qt.IsTrue(found), qt.Commentf("%v is not among %v", l.Addr(), n.Listeners))
	qt.Check(t, qt.IsTrue(n.Member != 0))
}

// Who asks for a source in particular wants no other.
func TestWatchSourceFails(t *testing.T) {
	ctx, opts := own(t)
	opts.Source = SourceKernel
	_, err := Watch(ctx, opts)
	qt.Check(t, qt.ErrorIs(err, errNoTracer))

	ctx, opts = own(t)
	opts.Source = SourceAgent
	_, err = Watch(ctx, opts)
	qt.Check(t, qt.ErrorIs(err, errAgentNetns))

	ctx, opts = own(t)
	opts.Source, opts.Log = SourceLog, func(context.Context) (*Traffic, error) { return nil, errNoTracer }
	_, err = Watch(ctx, opts)
	qt.Check(t, qt.ErrorIs(err, errNoTracer))
}

func TestWatchLog(t *testing.T) {
	want := &Traffic{Source: SourceLog, Since: time.Unix(1, 0), Until: time.Unix(24, 0), Opened: 23}
	ctx, opts := own(t)
	opts.Source = SourceLog
	opts.Log = func(got context.Context) (*Traffic, error) {
		<-got.Done() // who interrupts does not wait for the end of a log, which may be a pipe's
		return want, nil
	}
	h, err := Watch(ctx, opts)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(h.Traffic, want))
	qt.Check(t, qt.HasLen(h.Namespaces, 1))

	opts.LogOnly, opts.Log = true, func(context.Context) (*Traffic, error) { return want, nil }
	h, err = Watch(t.Context(), opts)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.CmpEquals(h, &Host{Traffic: want}, sameTraffic...))
}

// A log without a record says nothing, and not that all is well.
func TestWatchEmptyLog(t *testing.T) {
	_, opts := own(t)
	opts.For, opts.Source = Shortest, SourceLog
	opts.Log = func(context.Context) (*Traffic, error) { return &Traffic{Source: SourceLog}, nil }
	h, err := Watch(t.Context(), opts)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(h.unseen(unseenTraffic), errEmptyLog.Error()))

	opts.LogOnly = true
	_, err = Watch(t.Context(), opts)
	qt.Check(t, qt.ErrorIs(err, errEmptyLog))
}

// Nothing is said of a host that was not looked at.
func TestWatchInterruptedAtOnce(t *testing.T) {
	ctx, opts := own(t)
	opts.Ready()
	_, err := Watch(ctx, opts)
	qt.Check(t, qt.ErrorIs(err, context.Canceled))
}

// A namespace that was asked for and is not there is no reason to see none.
func TestWatchNetnsThatIsNotThere(t *testing.T) {
	ctx, opts := own(t)
	opts.Netns = []uint32{1, netnsOf("self")}
	h, err := Watch(ctx, opts)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(h.Namespaces, 1))
	qt.Check(t, qt.Equals(h.unseen("network namespace 1"), errAbsent().Error()))

	// It has the name that the user has for it.
	for says, words := range map[string][]string{"network namespace 1": nil, `network namespace "blue" (1)`: {"blue"}} {
		ctx, opts = own(t)
		opts.Netns, opts.NetnsWords = []uint32{1}, words
		_, err = Watch(ctx, opts)
		qt.Assert(t, qt.IsNotNil(err))
		qt.Check(t, qt.Equals(err.Error(), says+": "+errAbsent().Error()))
	}
	opts = &Options{Netns: []uint32{1, 2}, NetnsWords: []string{"1", "self"}}
	qt.Check(t, qt.Equals(opts.nameNetns(0), "network namespace 1"))
	qt.Check(t, qt.Equals(opts.nameNetns(1), `network namespace "self" (2)`))
}

// A namespace that has ended may have left its inode number to another: they are not
// compared.
func TestCompareOtherNetns(t *testing.T) {
	qt.Check(t, qt.Equals(netnsCookie(), netnsCookie()))
	h := &Host{}
	of := func(inode uint32, cookie uint64) *space { return &space{inode: inode, cookie: cookie} }
	h.compare(
		&look{spaces: map[uint32]*space{7: of(7, 1), 8: of(8, 2), 9: of(9, 3), 10: of(10, 0)}},
		&look{spaces: map[uint32]*space{7: of(7, 1), 8: of(8, 4), 10: of(10, 0), 11: of(11, 5)}},
	)
	var inodes []uint32
	for i := range h.Namespaces {
		inodes = append(inodes, h.Namespaces[i].Inode)
	}
	qt.Check(t, qt.DeepEquals(inodes, []uint32{7, 10}))
}
