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

// TestDocuments holds what the documents say to the results that were measured.
func TestDocuments(t *testing.T) {
	events, census := &report{}, &censusReport{}
	readResults(t, "events.json", events)
	readResults(t, "census.json", census)
	for _, d := range []struct {
		file, name string
		write      func(*bytes.Buffer)
	}{
		{"../README.md", "summary", func(b *bytes.Buffer) { writeMarkdown(b, summary{events}) }},
		{"cost.md", "events", func(b *bytes.Buffer) { writeMarkdown(b, events) }},
		{"cost.md", "census", func(b *bytes.Buffer) { writeMarkdown(b, census) }},
	} {
		t.Run(d.file+" "+d.name, func(t *testing.T) {
			var want bytes.Buffer
			d.write(&want)
			checkDocument(t, filepath.Join(docs, d.file), d.name, want.Bytes())
		})
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
