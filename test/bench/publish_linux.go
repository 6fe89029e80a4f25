package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// header is how every report begins.
type header struct {
	Time   time.Time `json:"time"`
	Kernel string    `json:"kernel"`
	CPUs   int       `json:"cpus"`
	Rounds int       `json:"rounds"`
}

func newHeader(rounds int) header {
	var uname unix.Utsname
	_ = unix.Uname(&uname)
	return header{
		Time: time.Now().UTC().Truncate(time.Second), Kernel: unix.ByteSliceToString(uname.Release[:]),
		CPUs: runtime.NumCPU(), Rounds: rounds,
	}
}

func (h *header) headline() string {
	return fmt.Sprintf("Linux %s, %d CPUs; median of %d rounds (least to most)", h.Kernel, h.CPUs, h.Rounds)
}

// published is a report: tables under a headline.
type published interface {
	headline() string
	sections() []section
}

// section is a table. Its first row is the head.
type section struct {
	title string
	rows  [][]string
}

// publish prints a report that was made without an error, and writes it to a file
// if one is named.
func publish(r published, err error, jsonFile string) error {
	if err != nil {
		return err
	}
	if err := writeText(os.Stdout, r); err != nil || jsonFile == "" {
		return err
	}
	return writeJSON(jsonFile, r)
}

func writeJSON(file string, r published) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// republish writes r, which an earlier run has written to the file, for a document.
func republish(w io.Writer, r published, jsonFile string) error {
	text, err := os.ReadFile(jsonFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, r); err != nil {
		return fmt.Errorf("%s: %w", jsonFile, err)
	}
	writeMarkdown(w, r)
	return nil
}

func writeText(w io.Writer, r published) error {
	fmt.Fprintln(w, r.headline())
	for _, s := range r.sections() {
		fmt.Fprintf(w, "\n%s\n", s.title)
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, row := range s.rows {
			fmt.Fprintln(table, strings.Join(row, "\t"))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func writeMarkdown(w io.Writer, r published) {
	fmt.Fprintln(w, r.headline()+".\n")
	writeSections(w, r.sections()...)
}

func writeSections(w io.Writer, sections ...section) {
	for i, s := range sections {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "**%s**\n\n", s.title)
		for i, row := range s.rows {
			fmt.Fprintf(w, "| %s |\n", joinCells(row))
			if i == 0 {
				fmt.Fprintf(w, "|%s\n", strings.Repeat("---|", len(row)))
			}
		}
	}
}

func joinCells(row []string) string {
	cells := make([]string, len(row))
	for i, cell := range row {
		cells[i] = strings.ReplaceAll(cell, "|", `\|`)
	}
	return strings.Join(cells, " | ")
}
