package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestReport(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("internal", "output", "testdata", "report-transitions.txt.golden"))
	qt.Assert(t, qt.IsNil(err))
	code, stdout, stderr := runArgs(t, "report", transitionLog)
	qt.Check(t, qt.Equals(code, exitDone))
	qt.Check(t, qt.Equals(stdout, string(text)))
	qt.Check(t, qt.Equals(stderr, "finwait: 9 records read, 0 damaged\n"))
}

func TestReportJSON(t *testing.T) {
	damaged := writeLog(t, "x\n"+line("0.25"))
	code, stdout, stderr := runArgs(t, "report", "--format", "json", "--top", "1", transitionLog, connectionLog, damaged)
	qt.Check(t, qt.Equals(code, exitDone))
	qt.Check(t, qt.StringContains(stderr, "finwait: 21 records read, 1 damaged\n"))
	var got struct {
		Files       int    `json:"files"`
		Damaged     uint64 `json:"damaged_lines"`
		Transitions struct {
			Records  uint64 `json:"records"`
			Sampling struct {
				Estimate float64 `json:"estimated_records"`
			} `json:"sampling"`
			Services struct {
				Rows []struct {
					Port uint16 `json:"local_port"`
				} `json:"rows"`
			} `json:"services"`
		} `json:"transitions"`
		Connections struct {
			Records uint64 `json:"records"`
		} `json:"connections"`
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(stdout), &got)))
	qt.Check(t, qt.Equals(got.Files, 3))
	qt.Check(t, qt.Equals(got.Damaged, 1))
	qt.Check(t, qt.Equals(got.Transitions.Records, 10))
	qt.Check(t, qt.Equals(got.Transitions.Sampling.Estimate, 9+4))
	qt.Check(t, qt.HasLen(got.Transitions.Services.Rows, 1))
	qt.Check(t, qt.Equals(got.Connections.Records, 11))
}

// line is a record that was sampled.
func line(ratio string) string {
	return `{"time":"2026-11-22T09:08:07.060500000Z","old_state":"SYN_RECV","new_state":"ESTABLISHED","owner":"unknown","evidence":"kernel","sampling_ratio":` + ratio + "}\n"
}

func TestReportMistakes(t *testing.T) {
	for message, args := range map[string][]string{
		"name the files to report on":    {"report"},
		`unknown format "csv"`:           {"report", "--format", "csv", transitionLog},
		"--top 0 is less than one":       {"report", "--top", "0", transitionLog},
		"unknown flag: --transition-log": {"report", "--transition-log"},
	} {
		code, stdout, stderr := runArgs(t, args...)
		qt.Check(t, qt.Equals(code, exitUsage))
		qt.Check(t, qt.Equals(stdout, ""))
		qt.Check(t, qt.StringContains(stderr, message))
	}
	code, stdout, stderr := runArgs(t, "report", writeLog(t, strings.Repeat("?\n", 20)))
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.StringContains(stdout, "damaged lines: 20;"))
	qt.Check(t, qt.StringContains(stderr, "nothing that was read is a record"))
}
