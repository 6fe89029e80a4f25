package tracer_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"

	"github.com/finwait/finwait/tracer"
)

// Print every connection that enters TIME_WAIT, until Ctrl-C.
func ExampleTracer_Events() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	t, err := tracer.New(&tracer.Options{
		Filter: tracer.Filter{States: []tracer.State{tracer.StateTimeWait}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()

	for ev, err := range t.Events(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ev.Local, ev.Remote, ev.Transition)
	}
}

// Count transitions while something happens.
func ExampleTracer_Counters() {
	t, err := tracer.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()

	before, err := t.Counters()
	if err != nil {
		log.Fatal(err)
	}
	// Something happens.
	after, err := t.Counters()
	if err != nil {
		log.Fatal(err)
	}
	delta := after.Sub(&before)
	for transition, n := range delta.All() {
		fmt.Println(transition, n)
	}
}

func ExampleTracer_Stuck() {
	t, err := tracer.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()

	stuck, err := t.Stuck(context.Background(), nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, g := range stuck.ByProcess() {
		fmt.Printf("%d in %v of %q, the oldest for %v\n", g.Sockets, g.State, g.Owner.Comm(), g.Oldest)
	}
}

// Find the processes that have not even noticed that their peers have closed.
func ExampleVisitNetns() {
	ctx := context.Background()
	var (
		mu     sync.Mutex
		inodes []uint32
	)
	missed, err := tracer.VisitNetns(ctx, tracer.AllNetns, func(n *tracer.Netns) error {
		sockets, _, err := n.ListSockets(ctx)
		mu.Lock()
		defer mu.Unlock()
		for _, s := range sockets {
			if s.State == tracer.StateCloseWait && s.ReceiveQueue > 0 && s.Inode != 0 {
				inodes = append(inodes, s.Inode)
			}
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	owners, hidden, err := tracer.FindOwners(ctx, inodes)
	if err != nil {
		log.Fatal(err)
	}
	for inode, process := range owners {
		fmt.Printf("socket %d: %d %q\n", inode, process.PID, process.Comm)
	}
	fmt.Println(len(missed.Netns), "network namespaces and", hidden, "processes were not looked into")
}

func ExampleParseTransition() {
	t, err := tracer.ParseTransition("fin_wait2->time_wait")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(t)
	// Output: FIN_WAIT2→TIME_WAIT
}
