package lifecycle

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

var update = flag.Bool("update", false, "write the table of capabilities into SECURITY.md")

// TestSecurityDocument holds SECURITY.md to Capabilities.
func TestSecurityDocument(t *testing.T) {
	const file = "../../../../SECURITY.md"
	text, err := os.ReadFile(file)
	qt.Assert(t, qt.IsNil(err))
	head, rest, found := strings.Cut(string(text), "this table -->\n")
	_, tail, ended := strings.Cut(rest, "<!-- end -->")
	qt.Assert(t, qt.IsTrue(found && ended))
	want := head + "this table -->\n" + capabilityTable() + "<!-- end -->" + tail
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(want), 0o644)))
	} else {
		qt.Check(t, qt.Equals(string(text), want), qt.Commentf("go test -update rewrites it"))
	}
}

func capabilityTable() string {
	var b strings.Builder
	b.WriteString("| capability | kept | what it is for | without it the agent |\n|---|---|---|---|\n")
	for _, c := range Capabilities {
		kept := "no"
		if c.Kept {
			kept = "yes"
		}
		b.WriteString("| " + strings.Join([]string{c.Name, kept, c.Use, c.Without}, " | ") + " |\n")
	}
	return b.String()
}
