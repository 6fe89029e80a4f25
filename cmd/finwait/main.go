// Command finwait shows what TCP sockets do on a Linux host: every state
// transition as it happens, and how many sockets are in each state.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/build"
)

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitFound  = 3 // of doctor alone
)

func main() {
	// Writing to a pipe that nobody reads must be an error, not the end.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends the run in an orderly way, the second ends the process.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes the command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	stats := newSelfStats(root, stderr)
	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) {
		started = true
		stats.start()
	}

	command, err := root.ExecuteContextC(stats.context(ctx))
	code := report(stderr, command, started, err)
	if started && code != exitUsage {
		stats.end()
	}
	return code
}

// report says what has become of the command, and returns the exit code.
func report(stderr io.Writer, command *cobra.Command, started bool, err error) int {
	var usage *usageError
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE):
		return exitDone
	case errors.Is(err, errFindings):
		return exitFound
	case !started, errors.As(err, &usage):
		fmt.Fprintf(stderr, "finwait: %s\nTry '%s --help'.\n", printable(err.Error()), command.CommandPath())
		return exitUsage
	default:
		fmt.Fprintf(stderr, "finwait: %s\n", printable(err.Error()))
		return exitFailed
	}
}

// printable returns s with its control characters escaped: an argument that
// stands in an error message must not reach the terminal as it is.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRuneToASCII(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// A usageError is the user's mistake in the command line.
type usageError struct{ err error }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "finwait",
		Short: "Trace the life of every TCP socket, and count them by state",
		Long: `finwait shows what TCP sockets do on this host: each state transition as it
happens, TIME_WAIT included, with its owner and the time spent in the state
before; and how many sockets are in each state now.`,
		Example: `  finwait trace                               every transition, as it happens
  finwait trace --transition FIN_WAIT2:TIME_WAIT --lport 443 --format json
  finwait conns --slow ESTABLISHED:10s        one record per connection, of those that were slow
  finwait count                               sockets in each state
  finwait count --by process --watch 1s
  finwait profile --duration 1m               how long sockets stay in each state
  finwait stuck                               what sits in a state for too long, and whose it is
  finwait report finwait.json                 what a log of transitions or connections says in all
  finwait doctor                              what is wrong here, and what to change
  finwait explain CLOSE_WAIT
  finwait features                            whether and how it works on this host
  finwait serve --log /var/log/finwait.log    the agent: a log of records, and metrics for Prometheus`,
		Version:       build.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(
		newTraceCommand(), newConnsCommand(), newCountCommand(), newProfileCommand(), newStuckCommand(), newDoctorCommand(),
		newReportCommand(), newServeCommand(), newExplainCommand(), newFeaturesCommand(),
	)
	return root
}
