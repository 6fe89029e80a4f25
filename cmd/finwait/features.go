package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/measure"
	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

const featuresLong = `Says whether finwait works on this host, by which evidence, what is missing and
what to do about it, and what tracing costs here.

It loads and attaches everything that trace would, and lets go of it again. To
measure, it makes 200 connections in a network namespace of their own, and has
the kernel time all BPF programs of the host meanwhile, which makes those a
little slower for some tenths of a second; --no-measure leaves that out. The
numbers are of this one run: they are larger on a busy host.

The exit status is 0 if trace works here, and 1 if it does not.`

// featuresFormats are the words of --format.
var featuresFormats = map[string]func([]byte, *output.Features) []byte{
	"text": output.AppendFeaturesText,
	"json": output.AppendFeaturesJSON,
}

type featuresFlags struct {
	format    string
	noMeasure bool
}

func newFeaturesCommand() *cobra.Command {
	var flags featuresFlags
	cmd := &cobra.Command{
		Use:   "features",
		Short: "Say whether and how finwait works on this host, and what it costs",
		Long:  featuresLong,
		Example: `  finwait features
  finwait features --no-measure
  finwait features --format json | jq '.tiers[] | select(.chosen) | .cost'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runFeatures(cmd, &flags) },
	}
	f := cmd.Flags()
	f.StringVar(&flags.format, "format", "text", "output `format`: text or json (one object)")
	f.BoolVar(&flags.noMeasure, "no-measure", false, "do not measure what tracing costs")
	completeWords(cmd, "format", []string{"text", "json"})
	return cmd
}

func runFeatures(cmd *cobra.Command, flags *featuresFlags) error {
	appendFeatures, ok := featuresFormats[flags.format]
	if !ok {
		return usagef("unknown format %q (want text or json)", flags.format)
	}
	features, err := takeFeatures(cmd.Context(), flags.noMeasure)
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted before the host was looked at")
	}
	if err != nil {
		return err
	}
	if _, err := cmd.OutOrStdout().Write(appendFeatures(nil, features)); err != nil {
		return fmt.Errorf("write features: %w", err)
	}
	return features.Host.TracingErr
}

// takeFeatures looks at the host, and measures what can be measured.
func takeFeatures(ctx context.Context, noMeasure bool) (*output.Features, error) {
	features := &output.Features{}
	var opts tracer.DetectOptions
	if !noMeasure {
		opts.Visit = func(t *tracer.Tracer) {
			cost, err := measure.Tracer(ctx, t)
			features.Costs = append(features.Costs, output.TierCost{Evidence: t.Evidence(), Cost: cost, Err: err})
		}
	}
	host, err := tracer.Detect(ctx, &opts)
	if err != nil {
		return nil, err
	}
	features.Host = host
	switch {
	case noMeasure:
		features.NotMeasured = "--no-measure leaves it out"
	case host.Chosen() == nil:
		features.NotMeasured = "tracing does not work here"
	}
	return features, nil
}
