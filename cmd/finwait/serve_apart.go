//go:build noserve

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// servePlaces are where the program with the agent is, beside this one or where
// packages put it.
var servePlaces = []string{"finwait-serve", "../libexec/finwait/finwait-serve"}

// newServeCommand returns the command of a finwait without the agent. What that takes
// to talk to Prometheus and OpenTelemetry would be in the memory of all other
// commands, and in the time to start them. So it is in a program of its own, which is
// the same command with the agent in it.
func newServeCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "serve",
		Short:              "Run the agent: a log of transitions or connections, metrics, OTLP",
		DisableFlagParsing: true, // its flags are the other's, which completes them too
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			_ = becomeServe(os.Args[1:])
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(*cobra.Command, []string) error {
			return becomeServe(os.Args[1:])
		},
	}
}

// becomeServe has the other program take this one's place, as the same process.
func becomeServe(args []string) error {
	path, err := findServe()
	if err != nil {
		return err
	}
	err = syscall.Exec(path, append([]string{"finwait"}, args...), os.Environ())
	return fmt.Errorf("run %s: %w", path, err)
}

func findServe() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find finwait-serve: %w", err)
	}
	for _, place := range servePlaces {
		path := filepath.Join(filepath.Dir(self), place)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	if path, err := exec.LookPath("finwait-serve"); err == nil {
		return path, nil
	}
	return "", errors.New("the agent is a program of its own, finwait-serve, which is neither beside this one nor in PATH (make build makes both)")
}
