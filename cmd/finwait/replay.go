package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/match"
	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/cmd/finwait/internal/replay"
	"github.com/finwait/finwait/tracer"
)

// args takes arguments for more files of --replay, as a shell makes them of a
// pattern.
func (f *streamFlags) args(cmd *cobra.Command, args []string) error {
	if len(f.replay) == 0 {
		return cobra.NoArgs(cmd, args)
	}
	f.replay = append(f.replay, args...)
	return nil
}

// recorded chooses what to print of records that were read.
type recorded[T any] struct {
	// take gives what a record has to tell, and returns false if tell does.
	take func(r *replay.Record, tell func(*T, output.Logged) bool) bool
	// read returns how many of the records are of the kind that is printed.
	read func(replay.Counts) uint64
	// notes are what became of the others.
	notes func(replay.Counts) []note
}

func recordedTransitions(opts *tracer.Options) recorded[tracer.Event] {
	events := match.NewEvents(match.New(&opts.Filter))
	return recorded[tracer.Event]{
		take: func(r *replay.Record, tell func(*tracer.Event, output.Logged) bool) bool {
			if r.Event == nil {
				return true
			}
			held, pass := events.Take(r)
			if held != nil && !tell(held.Event, held.Logged) {
				return false
			}
			return !pass || tell(r.Event, r.Logged)
		},
		read: func(c replay.Counts) uint64 { return c.Transitions },
		notes: func(c replay.Counts) []note {
			return []note{
				{events.Forgotten(), "lost: too many wait for a port that is not known yet"},
				{c.Conns, "connections skipped, which finwait conns --replay prints"},
			}
		},
	}
}

func recordedConns(opts *tracer.Options) recorded[tracer.Conn] {
	filter, ends := match.New(&opts.Filter), match.NewEnds(opts.Conns)
	return recorded[tracer.Conn]{
		take: func(r *replay.Record, tell func(*tracer.Conn, output.Logged) bool) bool {
			if r.Conn == nil || !ends.Wants(r.Conn) || !filter.Conn(r.Conn) {
				return true
			}
			return tell(r.Conn, r.Logged)
		},
		read: func(c replay.Counts) uint64 { return c.Conns },
		notes: func(c replay.Counts) []note {
			return []note{{c.Transitions, "transitions skipped, which finwait trace --replay prints"}}
		},
	}
}

// checkReplay refuses the flags that say how to trace.
func checkReplay(cmd *cobra.Command) error {
	for _, name := range []string{"demo", "duration", "evidence", "buffer", "wait-timewait"} {
		if cmd.Flags().Changed(name) {
			return usagef("--replay and --%s contradict each other: what is read was traced before", name)
		}
	}
	return nil
}

// runReplay prints what s has of records, and then the ledger.
func runReplay[T any](cmd *cobra.Command, flags *streamFlags, opts *tracer.Options, s stream[T]) error {
	if err := errors.Join(checkReplay(cmd), opts.Validate()); err != nil {
		return usagef("%w", err)
	}
	for i, name := range opts.Filter.Comms {
		opts.Filter.Comms[i] = replay.Comm(name)
	}
	var logged output.Logged
	p, err := newPrinter(cmd.OutOrStdout(), flags, output.Options{Logged: &logged}, s)
	if err != nil {
		return err
	}
	stderr := cmd.ErrOrStderr()
	reader := newReplay(cmd, flags.replay, p.flush)
	choice, matched := s.recorded(opts), uint64(0)
	items := func(yield func(*T, error) bool) {
		tell := func(item *T, l output.Logged) bool {
			matched++
			logged = l
			return yield(item, nil)
		}
		for record, err := range reader.Records(cmd.Context()) {
			if err != nil {
				yield(nil, err)
				return
			}
			if !choice.take(record, tell) {
				return
			}
		}
	}
	err = p.print(items, func() bool { return true }, flags.count)
	c := reader.Counts()
	fmt.Fprintf(stderr, "finwait: %d %s read, %d matched, %d printed, %d damaged\n", choice.read(c), s.noun, matched, p.written, c.Damaged)
	writeNotes(stderr, append(choice.notes(c), unreadNotes(c, p.taken-p.written)...))
	return errors.Join(err, c.Err())
}

// unreadNotes are what else was lost of what was to be read and written.
func unreadNotes(c replay.Counts, unwritten uint64) []note {
	return []note{
		{unwritten, "lost: could not be written"},
		{c.Unread, "times that a file could not be opened, or the system did not let it be read on"},
		{c.Broken - c.Unread, "times that a file could not be read to its end"},
	}
}

// newReplay returns a reader of files that says on standard error what is wrong
// with them.
func newReplay(cmd *cobra.Command, files []string, idle func() error) *replay.Reader {
	trouble := &troubles{w: cmd.ErrOrStderr()}
	return replay.New(files, replay.Options{Stdin: cmd.InOrStdin(), Idle: idle, Complain: trouble.tell})
}

// troubles writes what is wrong with files, and with the first lines that are
// damaged.
type troubles struct {
	w     io.Writer
	lines int
}

const (
	shownLines = 5   // that are damaged
	shownText  = 200 // bytes of each
)

func (t *troubles) tell(err error) {
	var line *replay.LineError
	if !errors.As(err, &line) {
		fmt.Fprintf(t.w, "finwait: %s\n", output.Quote(nil, []byte(err.Error())))
		return
	}
	t.lines++
	switch {
	case t.lines <= shownLines:
		text, more := line.Text, ""
		if len(text) > shownText {
			text, more = text[:shownText], "..."
		}
		fmt.Fprintf(t.w, "finwait: %s:%d: damaged: %v: %s%s\n", output.Quote(nil, []byte(line.File)), line.Line, line.Err, output.Quote(nil, text), more)
	case t.lines == shownLines+1:
		fmt.Fprintln(t.w, "finwait: more lines are damaged; they are skipped and counted")
	}
}
