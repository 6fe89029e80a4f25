package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/finwait/finwait/tracer"
)

// Kind is a kind of connection.
type Kind struct {
	// Name says what happens, such as "active close".
	Name string
	run  func(*rig, int)
}

// Socket is one end of a connection, or a listener.
type Socket struct {
	Walk
	// Role is RoleServer for a listener too.
	Role tracer.Role
	// Cookie is the socket's cookie, or 0 where no process holds the socket:
	// a child that nobody accepted, an MPTCP subflow.
	Cookie uint64
	// Local and Remote are the socket's addresses. A listener has an
	// unspecified Remote.
	Local, Remote netip.AddrPort
}

// Conn is one connection: one walk from birth to gone. A socket that connects
// twice is the client of two of them.
type Conn struct {
	// Client is the end that connected; Server the other, nil if nothing
	// answered or the connection is to itself.
	Client, Server *Socket
	// LastClosed is the time just before the second end closed, in the kinds
	// that leave a while between the two.
	LastClosed time.Time
}

// Result is what a run has made.
type Result struct {
	Kind   string
	Family tracer.Family
	// Addr is an address that every socket of the run has at one end at least.
	Addr      netip.Addr
	Conns     []Conn
	Listeners []*Socket
}

// Sockets returns all sockets of the run. One that connected twice is in it
// twice, in order.
func (r *Result) Sockets() []*Socket {
	var all []*Socket
	for _, c := range r.Conns {
		all = append(all, c.Client)
		if c.Server != nil {
			all = append(all, c.Server)
		}
	}
	return append(all, r.Listeners...)
}

// WantByCookie returns finwait's transitions of each socket that has a cookie.
func (r *Result) WantByCookie() map[uint64][]tracer.Transition {
	want := map[uint64][]tracer.Transition{}
	for _, s := range r.Sockets() {
		if s.Cookie != 0 {
			want[s.Cookie] = append(want[s.Cookie], s.Want()...)
		}
	}
	return want
}

// Cells returns by how much the run moves each cell of finwait's matrix.
func (r *Result) Cells() map[tracer.Transition]uint64 {
	cells := map[tracer.Transition]uint64{}
	for _, s := range r.Sockets() {
		for _, t := range s.Want() {
			cells[t]++
		}
	}
	return cells
}

// ErrUnsupported is the error of a kind that this kernel cannot make.
var ErrUnsupported = errors.New("not supported by this kernel")

// Run makes n connections of the kind in the current network namespace, and
// returns when each of their sockets has arrived where it ends: gone, or a
// mini-socket in TIME_WAIT. The caller must be locked to its thread, as it is
// in a function that netns.NS.Do runs.
func (k Kind) Run(n int, family tracer.Family) (res *Result, err error) {
	r := &rig{family: family, res: &Result{Kind: k.Name, Family: family}}
	defer r.free()
	defer func() {
		switch p := recover().(type) {
		case nil:
		case failure:
			res, err = nil, fmt.Errorf("%s over %s: %w", k.Name, family, p.error)
		default:
			panic(p)
		}
	}()
	r.pickAddr()
	k.run(r, n)
	r.closeListeners()
	r.settle()
	return r.res, nil
}

// String returns the kind's name.
func (k Kind) String() string { return k.Name }

// failure is what a step that fails panics with; Run returns it as an error.
// It lets a kind read as the list of its steps.
type failure struct{ error }

func must(op string, err error) {
	if err != nil {
		panic(failure{fmt.Errorf("%s: %w", op, err)})
	}
}
