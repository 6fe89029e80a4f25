package main

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestFeaturesUsage(t *testing.T) {
	for _, args := range [][]string{
		{"features", "--format", "csv"},
		{"features", "--format="},
		{"features", "stray"},
	} {
		var out bytes.Buffer
		qt.Check(t, qt.Equals(run(context.Background(), args, &out, io.Discard), exitUsage), qt.Commentf("%q", args))
		qt.Check(t, qt.Equals(out.String(), ""))
	}
}

func TestFeaturesInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, errOut bytes.Buffer
	qt.Check(t, qt.Equals(run(ctx, []string{"features"}, &out, &errOut), exitFailed))
	qt.Check(t, qt.Equals(out.String(), ""))
	qt.Check(t, qt.Matches(errOut.String(), "finwait: [^\n]+\n"))
}
