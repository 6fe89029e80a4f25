package test

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// connRecorder keeps the connections of a tracer beside its events.
type connRecorder struct {
	*recorder
	ended chan struct{}

	mu    sync.Mutex // guards conns
	conns []tracer.Conn
}

func recordConns(t testing.TB, conns tracer.ConnOptions) *connRecorder {
	t.Helper()
	r := &connRecorder{recorder: record(t, &tracer.Options{Conns: &conns}), ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		for c, err := range r.tracer.Conns(context.Background()) {
			if !qt.Check(t, qt.IsNil(err)) {
				return
			}
			r.mu.Lock()
			r.conns = append(r.conns, *c)
			r.mu.Unlock()
		}
	}()
	return r
}

// connsIn detaches, and returns the connections of that namespace.
func (r *connRecorder) connsIn(ns *netns.NS) []tracer.Conn {
	r.t.Helper()
	qt.Assert(r.t, qt.IsNil(r.tracer.Detach()))
	<-r.ended
	ledger := r.ledgerNow()
	qt.Check(r.t, qt.Equals(ledger.ConnsLost+ledger.ConnsPartial, 0))
	var in []tracer.Conn
	for i := range r.conns {
		if r.conns[i].Netns == ns.Inode() {
			in = append(in, r.conns[i])
		}
	}
	return in
}

// awaitConnsSeen waits until n connections have ended, chosen or not.
func (r *connRecorder) awaitConnsSeen(n uint64) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); r.ledgerNow().ConnsSeen < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.guards.excuse(r.t)
			r.t.Fatalf("%d connections of %d have ended", r.ledgerNow().ConnsSeen, n)
		}
	}
}

// TestConns holds the record of each connection to its transitions, for
// connections of every kind.
func TestConns(t *testing.T) {
	netns.RequireRoot(t)
	for _, kind := range traffic.Kinds() {
		for _, family := range families {
			t.Run(kind.Name+"/"+family.String(), func(t *testing.T) { testConns(t, kind, family) })
		}
	}
}

func testConns(t *testing.T, kind traffic.Kind, family tracer.Family) {
	ns := netns.New(t)
	rec := recordConns(t, tracer.ConnOptions{AtTimeWait: true})
	res, err := run(ns, kind, family)
	if err != nil {
		t.Skip(err) // TestKinds says whether that is allowed
	}
	rec.await(sum(res.Cells()), 5*time.Second, inNetns(ns.Inode()))
	conns := rec.connsIn(ns)
	events := only(rec.stop(), inNetns(ns.Inode()))
	checkConns(t, conns, events)
}

// checkConns expects one record for each connection that has ended in events,
// or begun its TIME_WAIT, and the same in both.
func checkConns(t *testing.T, conns []tracer.Conn, events []tracer.Event) {
	t.Helper()
	byTime(events)
	walks := map[uint64][][]tracer.Event{}
	for cookie, all := range walksOf(events) {
		for _, walk := range connectionsOf(all) {
			if last := walk[len(walk)-1]; last.New == tracer.StateClose || last.New == tracer.StateTimeWait {
				walks[cookie] = append(walks[cookie], walk)
			}
		}
	}
	for i := range conns {
		c := &conns[i]
		if qt.Check(t, qt.Not(qt.HasLen(walks[c.Cookie], 0)), qt.Commentf("%+v", c)) {
			checkConn(t, c, walks[c.Cookie][0])
			walks[c.Cookie] = walks[c.Cookie][1:]
		}
	}
	for cookie, left := range walks {
		qt.Check(t, qt.HasLen(left, 0), qt.Commentf("no record of %d", cookie))
	}
}

// connectionsOf splits what one socket did into connections: it may connect more
// than once, or listen.
func connectionsOf(all []tracer.Event) (walks [][]tracer.Event) {
	start := 0
	for i, ev := range all {
		if ev.New != tracer.StateClose && i < len(all)-1 {
			continue
		}
		if walk := all[start : i+1]; walk[0].New != tracer.StateListen {
			walks = append(walks, walk)
		}
		start = i + 1
	}
	return walks
}

func checkConn(t *testing.T, c *tracer.Conn, walk []tracer.Event) {
	t.Helper()
	first, last := walk[0], walk[len(walk)-1]
	about := qt.Commentf("%+v\n%v", c, transitions(walk))
	var states []tracer.State
	for i, v := range c.Walk() {
		states = append(states, v.State)
		if i+1 < len(walk) && qt.Check(t, qt.Equals(v.DwellKnown, walk[i+1].DwellKnown), about) {
			qt.Check(t, qt.Equals(v.Dwell, walk[i+1].Dwell), about)
		}
	}
	var want []tracer.State
	for _, ev := range walk {
		if ev.New != tracer.StateClose {
			want = append(want, ev.New)
		}
	}
	qt.Check(t, qt.DeepEquals(states, want), about)
	qt.Check(t, qt.IsTrue(c.Start.Sub(first.Time).Abs() < clockSlack), about)
	qt.Check(t, qt.IsTrue(c.End.Sub(last.Time).Abs() < clockSlack), about)
	qt.Check(t, qt.Equals(c.Local, last.Local), about)
	qt.Check(t, qt.Equals(c.Remote, last.Remote), about)
	qt.Check(t, qt.Equals(c.Owner, last.Owner), about)
	qt.Check(t, qt.Equals(c.Role, last.Role), about)
	if last.New == tracer.StateClose {
		qt.Check(t, qt.Equals(c.Reason, last.Reason), about)
		qt.Check(t, qt.Equals(c.Side, last.Side), about)
	} else {
		qt.Check(t, qt.Equals(c.Reason, tracer.ReasonFIN), about)
		qt.Check(t, qt.Not(qt.Equals(c.Side, tracer.SideUnknown)), about)
	}
}

// TestConnBytes has connections carry what is known: each its own number of
// bytes in each direction, more than a window among them.
func TestConnBytes(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l := newLoop(t, family)
			rec := recordConns(t, tracer.ConnOptions{})
			l.listen()
			sent := map[uint64]uint64{}
			got := map[uint64]uint64{}
			infos := map[uint64]*unix.TCPInfo{}
			for i, p := range l.connectAll() {
				up, down := 1+i*i*i*701, i*977
				l.transfer(p.client.fd, p.server.fd, up)
				l.transfer(p.server.fd, p.client.fd, down)
				sent[p.client.cookie], got[p.client.cookie] = uint64(up), uint64(down)
				sent[p.server.cookie], got[p.server.cookie] = uint64(down), uint64(up)
				infos[p.client.cookie], infos[p.server.cookie] = l.info(p.client.fd), l.info(p.server.fd)
				l.closeInTurn(p.client, p.server)
			}
			l.kill("state", "time-wait") // so that the record is there now
			rec.awaitConnsSeen(2 * connections)
			conns := rec.connsIn(l.ns)
			qt.Check(t, qt.HasLen(conns, 2*connections))
			for i := range conns {
				c := &conns[i]
				qt.Check(t, qt.IsTrue(c.Counted))
				qt.Check(t, qt.Equals(c.BytesSent, sent[c.Cookie]), qt.Commentf("%v", c.Role))
				qt.Check(t, qt.Equals(c.BytesReceived, got[c.Cookie]), qt.Commentf("%v", c.Role))
				info := infos[c.Cookie] // of before the FINs
				qt.Check(t, qt.IsTrue(c.SegmentsSent-info.Segs_out <= 3), qt.Commentf("%d and %d", c.SegmentsSent, info.Segs_out))
				qt.Check(t, qt.IsTrue(c.SegmentsReceived-info.Segs_in <= 3), qt.Commentf("%d and %d", c.SegmentsReceived, info.Segs_in))
				qt.Check(t, qt.Equals(c.Retransmits, info.Total_retrans))
				qt.Check(t, qt.IsTrue(c.SRTT > 0 && c.SRTT < slow(time.Second)), qt.Commentf("%v", c.SRTT))
				if c.Role == tracer.RoleClient {
					qt.Check(t, qt.Equals(c.TimeWaitReason, tracer.ReasonKilled))
					last := c.Walk()[len(c.Walk())-1]
					qt.Check(t, qt.Equals(last.State, tracer.StateTimeWait))
					qt.Check(t, qt.IsTrue(last.DwellKnown && last.Dwell > 0))
				}
			}
		})
	}
}

func (l *loop) info(fd int) *unix.TCPInfo {
	l.t.Helper()
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	l.must("TCP_INFO", err)
	return info
}

// transfer sends n bytes from one end to the other.
func (l *loop) transfer(from, to, n int) {
	l.t.Helper()
	done := make(chan error)
	go func() {
		_, err := io.CopyN(io.Discard, fdReader(to), int64(n))
		done <- err
	}()
	for data := make([]byte, n); len(data) > 0; {
		wrote, err := unix.Write(from, data)
		if err == unix.EINTR {
			continue
		}
		l.must("write", err)
		data = data[wrote:]
	}
	l.must("read", <-done)
}

type fdReader int

func (fd fdReader) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p)
		switch {
		case err == unix.EINTR:
		case err == nil && n == 0:
			return 0, io.EOF
		default:
			return n, err
		}
	}
}

// TestConnsChosen has the kernel choose the connections that went badly: those
// that were long in a state, and those that ended by a reset.
func TestConnsChosen(t *testing.T) {
	const longest = 300 * time.Millisecond
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l := newLoop(t, family)
			rec := recordConns(t, tracer.ConnOptions{
				Slow:       map[tracer.State]time.Duration{tracer.StateCloseWait: longest},
				Reasons:    []tracer.Reason{tracer.ReasonRSTReceived},
				AtTimeWait: true,
			})
			l.listen()
			var slow []end
			want := map[uint64]tracer.Reason{}
			for i, p := range l.connectAll() {
				switch i % 3 {
				case 0: // nobody asks for these
					l.closeInTurn(p.client, p.server)
				case 1:
					writeByte(l, pair{client: p.server}) // which the client does not read
					l.close(p.client)
					l.awaitState(p.server, tracer.StateClose)
					l.close(p.server)
					want[p.server.cookie] = tracer.ReasonRSTReceived
				case 2:
					l.orphan(p.client, p.server)
					slow = append(slow, p.server)
					want[p.server.cookie] = tracer.ReasonFIN
				}
			}
			time.Sleep(longest)
			for _, e := range slow {
				l.close(e)
			}
			rec.awaitConnsSeen(2 * connections)
			conns := rec.connsIn(l.ns)
			got := map[uint64]tracer.Reason{}
			for i := range conns {
				got[conns[i].Cookie] = conns[i].Reason
			}
			qt.Check(t, qt.DeepEquals(got, want))
			qt.Check(t, qt.HasLen(conns, len(want)))
			ledger := rec.ledgerNow()
			qt.Check(t, qt.IsTrue(ledger.ConnsEmitted < ledger.ConnsSeen))
		})
	}
}

// TestConnHalfOpen has half-open connections given up: they are connections too.
func TestConnHalfOpen(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l, r := newRemoteLoop(t, family)
			rec := recordConns(t, tracer.ConnOptions{Slow: map[tracer.State]time.Duration{tracer.StateNewSynRecv: 50 * time.Millisecond}})
			l.listen()
			eachPort(r.syn)
			l.awaitHalfOpen(connections)
			time.Sleep(50 * time.Millisecond)
			eachPort(r.rst)
			rec.awaitConnsSeen(connections)
			conns := rec.connsIn(l.ns)
			qt.Check(t, qt.HasLen(conns, connections))
			for i := range conns {
				c := &conns[i]
				qt.Check(t, qt.Equals(c.Reason, tracer.ReasonRSTReceived))
				qt.Check(t, qt.Equals(c.Role, tracer.RoleServer))
				qt.Check(t, qt.IsFalse(c.Counted))
				qt.Assert(t, qt.HasLen(c.Walk(), 1))
				qt.Check(t, qt.Equals(c.Walk()[0].State, tracer.StateNewSynRecv))
				qt.Check(t, qt.IsTrue(c.Walk()[0].DwellKnown && c.Walk()[0].Dwell >= 50*time.Millisecond))
				qt.Check(t, qt.IsTrue((c.End.Sub(c.Start)-c.Walk()[0].Dwell).Abs() < clockSlack))
			}
		})
	}
}

// TestConnOlder has connections that are older than the tracer: what it has not
// seen of them is absent, and what the kernel has counted is whole.
func TestConnOlder(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l := newLoop(t, family)
			l.listen()
			old := l.connectAll()
			for _, p := range old {
				l.transfer(p.client.fd, p.server.fd, 701)
			}
			rec := recordConns(t, tracer.ConnOptions{AtTimeWait: true})
			for _, p := range old {
				l.closeInTurn(p.client, p.server)
			}
			rec.awaitConnsSeen(2 * connections)
			conns := rec.connsIn(l.ns)
			qt.Check(t, qt.HasLen(conns, 2*connections))
			for i := range conns {
				c := &conns[i]
				qt.Check(t, qt.IsTrue(c.Start.IsZero()))
				qt.Check(t, qt.Equals(c.BytesSent+c.BytesReceived, 701))
				first, second := c.Walk()[0], c.Walk()[1]
				qt.Check(t, qt.Equals(first, tracer.Visit{State: tracer.StateEstablished}))
				qt.Check(t, qt.IsTrue(second.DwellKnown))
			}
		})
	}
}
