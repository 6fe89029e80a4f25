package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

var update = flag.Bool("update", false, "write the results of docs/bench into the documents")

// docs is the folder with the results, and what is written about them.
const docs = "../../docs"

// TestSeries holds the numbers of series to what the agent tells.
func TestSeries(t *testing.T) {
	records := &recordsReport{}
	readResults(t, "records.json", records)
	got := *records
	err := got.readSeries("../../cmd/finwait/internal/metrics/testdata")
	qt.Assert(t, qt.IsNil(err))
	if *update {
		qt.Assert(t, qt.IsNil(writeJSON(filepath.Join(docs, "bench", "records.json"), &got)))
		return
	}
	qt.Check(t, qt.Equals(got.Series, records.Series), qt.Commentf("go test ./test/bench -update writes it"))
	qt.Check(t, qt.Equals(got.MostSeries, records.MostSeries), qt.Commentf("go test ./test/bench -update writes it"))
}

// TestDocuments holds what the documents say to the results that were measured.
func TestDocuments(t *testing.T) {
	events, census := &report{}, &censusReport{}
	readResults(t, "events.json", events)
	readResults(t, "census.json", census)
	doctor := &doctorReport{}
	readResults(t, "doctor.json", doctor)
	records := &recordsReport{}
	readResults(t, "records.json", records)
	fleet := newFleetTables(t, records, events)
	for _, d := range []struct {
		file, name string
		write      func(*bytes.Buffer)
	}{
		{"../README.md", "summary", func(b *bytes.Buffer) { writeMarkdown(b, summary{events}) }},
		{"cost.md", "events", func(b *bytes.Buffer) { writeMarkdown(b, events) }},
		{"cost.md", "census", func(b *bytes.Buffer) { writeMarkdown(b, census) }},
		{"cost.md", "doctor", func(b *bytes.Buffer) { writeMarkdown(b, doctor) }},
		{"fleet.md", "records", func(b *bytes.Buffer) { writeMarkdown(b, records) }},
		{"fleet.md", "fleet-host", func(b *bytes.Buffer) { writeSections(b, fleet.host) }},
		{"fleet.md", "fleet-scales", func(b *bytes.Buffer) { writeSections(b, fleet.scales...) }},
		{"fleet.md", "fleet-series", func(b *bytes.Buffer) { writeSections(b, fleet.series) }},
	} {
		t.Run(d.file+" "+d.name, func(t *testing.T) {
			var want bytes.Buffer
			d.write(&want)
			checkDocument(t, filepath.Join(docs, d.file), d.name, want.Bytes())
		})
	}
}

type fleetTables struct {
	host, series section
	scales       []section
}

func newFleetTables(t *testing.T, records *recordsReport, events *report) (tables fleetTables) {
	t.Helper()
	f, err := newFleet(records, events)
	qt.Assert(t, qt.IsNil(err))
	tables.host, err = f.host()
	qt.Assert(t, qt.IsNil(err))
	tables.scales, err = f.fleetSections()
	qt.Assert(t, qt.IsNil(err))
	tables.series = f.series()
	return tables
}

func TestNumbers(t *testing.T) {
	for got, want := range map[string]string{
		count(0): "0", count(7): "7", count(999): "999", count(1234): "1.23 k", count(98_765_432): "98.8 M",
		bits(125_000): "1.00 Mbit/s", bits(125e12): "1.00 Pbit/s", size(1536): "1.50 KiB", size(3 << 40): "3.00 TiB",
		percent(10_000): "1.00 %", grouped(1_000_000): "1,000,000", grouped(100): "100", plural(1, "host"): "1 host",
		plural(10_000, "host"): "10,000 hosts",
	} {
		qt.Check(t, qt.Equals(got, want))
	}
}

func readResults(t *testing.T, file string, r published) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docs, "bench", file))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(json.Unmarshal(text, r)))
}

// checkDocument expects the text between the marks of that name.
func checkDocument(t *testing.T, file, name string, want []byte) {
	t.Helper()
	text, err := os.ReadFile(file)
	qt.Assert(t, qt.IsNil(err))
	before, rest, ok := bytes.Cut(text, []byte("<!-- bench "+name+" -->\n"))
	qt.Assert(t, qt.IsTrue(ok))
	got, after, ok := bytes.Cut(rest, []byte("<!-- end -->\n"))
	qt.Assert(t, qt.IsTrue(ok))
	if *update {
		head := text[:len(before)+len("<!-- bench "+name+" -->\n")]
		whole := bytes.Join([][]byte{head, want, []byte("<!-- end -->\n"), after}, nil)
		qt.Assert(t, qt.IsNil(os.WriteFile(file, whole, 0o644)))
		return
	}
	qt.Check(t, qt.Equals(string(got), string(want)), qt.Commentf("go test ./test/bench -update writes it"))
}
