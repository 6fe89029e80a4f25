package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func runExplain(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := newExplainCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	err := cmd.Execute()
	return out.String(), err
}

func TestExplain(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"whole table", []string{}, []string{"\nTIME_WAIT ", "\nFIN_WAIT2→TIME_WAIT "}},
		{"state", []string{"time-wait"}, []string{"TIME_WAIT: ", "Bounded by:"}},
		{"several", []string{"CLOSE_WAIT", "ESTAB:CLOSE-WAIT"}, []string{"CLOSE_WAIT: ", "\n\n\nESTABLISHED→CLOSE_WAIT: "}},
		{"impossible", []string{"LISTEN->ESTABLISHED"}, []string{"LISTEN→ESTABLISHED does not happen in Linux."}},
		{"json", []string{"--format", "json", "LISTEN"}, []string{`{"state":"LISTEN",`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := runExplain(tt.args...)
			qt.Assert(t, qt.IsNil(err))
			for _, want := range tt.want {
				qt.Check(t, qt.StringContains(got, want))
			}
		})
	}
}

func TestExplainJSONOfAll(t *testing.T) {
	got, err := runExplain("--format", "json")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(strings.Count(got, "\n"), len(tracer.States())+len(tracer.LegalTransitions())))
}

func TestExplainUsage(t *testing.T) {
	for _, args := range [][]string{
		{"FOO"},
		{"TIME_WAIT", "FOO"},
		{"TIME_WAIT:FOO"},
		{"--format", "csv", "TIME_WAIT"},
	} {
		cmd := newExplainCommand()
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetArgs(args)
		err := cmd.Execute()
		qt.Check(t, qt.IsNotNil(err))
		qt.Check(t, qt.Equals(out.String(), ""), qt.Commentf("prints nothing before it fails"))
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestExplainWriteError(t *testing.T) {
	full := errors.New("no space left on device")
	cmd := newExplainCommand()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetOut(brokenWriter{full})
	cmd.SetArgs([]string{"TIME_WAIT"})
	qt.Assert(t, qt.ErrorIs(cmd.Execute(), full))
}
