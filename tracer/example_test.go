package tracer_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

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

func ExampleParseTransition() {
	t, err := tracer.ParseTransition("fin_wait2->time_wait")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(t)
	// Output: FIN_WAIT2→TIME_WAIT
}
