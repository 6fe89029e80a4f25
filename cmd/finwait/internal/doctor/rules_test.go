package doctor

import (
	"flag"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

var update = flag.Bool("update", false, "write the findings into docs/doctor.md")

// kebab is what an id looks like.
var kebab = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)+$`)

// settingLine is a line of a sysctl file as all of them write it.
var settingLine = regexp.MustCompile(`^[a-z0-9_]+(\.[a-z0-9_]+)+ = \S+( \S+)*$`)

// TestRules holds the texts to what people and machines rely on.
func TestRules(t *testing.T) {
	for i, r := range Rules() {
		t.Run(r.ID, func(t *testing.T) {
			qt.Check(t, qt.Matches(r.ID, kebab.String()))
			qt.Check(t, qt.IsFalse(slices.Contains(IDs()[:i], r.ID)), qt.Commentf("there are two"))
			qt.Check(t, qt.IsTrue(r.Worst <= Critical))
			qt.Check(t, qt.IsNotNil(r.find))
			checkText(t, r.Title, false)
			qt.Check(t, qt.IsTrue(len(r.Title) < 70), qt.Commentf("%s", r.Title))
			checkText(t, r.When, true)
			checkText(t, r.Why, true)
			checkText(t, r.Check, true)
			qt.Check(t, qt.IsTrue(len(r.Application) > 0))
			for _, text := range slices.Concat(r.Application, r.Useless) {
				checkText(t, text, true)
			}
			qt.Check(t, qt.IsTrue(len(r.References) > 0))
			for _, text := range r.References {
				checkText(t, text, false)
				qt.Check(t, qt.IsFalse(strings.Contains(text, "://")), qt.Commentf("%s", text))
			}
			for _, s := range r.Sysctls {
				checkText(t, s.Note, false)
				checkSetting(t, &s)
			}
		})
	}
}

// checkText expects one line of text; a sentence has a full stop.
func checkText(t *testing.T, text string, sentence bool) {
	t.Helper()
	qt.Check(t, qt.IsTrue(len(text) > 2), qt.Commentf("%q", text))
	qt.Check(t, qt.Equals(text, prose.Line(text)))
	qt.Check(t, qt.Equals(strings.HasSuffix(text, "."), sentence), qt.Commentf("full stop: %s", text))
}

// checkSetting expects a line that a sysctl file may have, for something that there is.
func checkSetting(t *testing.T, s *Setting) {
	t.Helper()
	qt.Check(t, qt.Matches(s.Line, settingLine.String()))
	name, _ := s.Split()
	known := slices.Contains(sysctl.Names, name) || sysctl.Exists(name)
	qt.Check(t, qt.IsTrue(known), qt.Commentf("no kernel is known to have %s", name))
}

func TestLookup(t *testing.T) {
	for _, r := range Rules() {
		got, err := Lookup(strings.ToUpper(strings.ReplaceAll(r.ID, "-", "_")))
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(got, r))
	}
	for written, says := range map[string]string{
		"time-wait":       `no finding has the id "time-wait"; did you mean time-wait-large, .*time-wait-limit.* or time-wait-refused\?`,
		"TIME_WAIT_LARG":  `no finding has the id "TIME_WAIT_LARG"; did you mean time-wait-large\?`,
		"time-wait-refus": `.*; did you mean time-wait-refused\?`,
		"":                `no finding has the id ""`,
		"quite-something": `no finding has the id "quite-something"`,
	} {
		_, err := Lookup(written)
		qt.Check(t, qt.ErrorMatches(err, says))
	}
}

func TestSetting(t *testing.T) {
	for line, hostWide := range map[string]bool{
		"net.ipv4.tcp_tw_reuse = 1":                     false,
		"net.ipv4.ip_local_port_range = 1024 65535":     false,
		"net.ipv4.tcp_mem = 1 2 3":                      true,
		"net.ipv4.tcp_max_orphans=4096":                 true,
		"net.netfilter.nf_conntrack_max = 262144":       true,
		"fs.file-max = 1048576":                         true,
		"net.netfilter.nf_conntrack_tcp_timeout_ok = 1": false,
	} {
		s := Setting{Line: line}
		qt.Check(t, qt.Equals(s.HostWide(), hostWide), qt.Commentf("%s", line))
	}
	s := Setting{Line: "net.ipv4.ip_local_port_range = 1024 65535"}
	name, value := s.Split()
	qt.Check(t, qt.Equals(name+"|"+value, "net.ipv4.ip_local_port_range|1024 65535"))
}

const (
	documentBegin = "<!-- findings: go test ./cmd/finwait/internal/doctor -update writes all that follows -->\n"
	documentEnd   = "<!-- end -->\n"
)

// TestDocument holds docs/doctor.md to the rules.
func TestDocument(t *testing.T) {
	const file = "../../../../docs/doctor.md"
	text, err := os.ReadFile(file)
	qt.Assert(t, qt.IsNil(err))
	head, rest, found := strings.Cut(string(text), documentBegin)
	_, tail, ended := strings.Cut(rest, documentEnd)
	qt.Assert(t, qt.IsTrue(found && ended))
	want := head + documentBegin + document() + documentEnd + tail
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(want), 0o644)))
	} else {
		qt.Check(t, qt.IsTrue(string(text) == want), qt.Commentf("it differs: go test ./cmd/finwait/internal/doctor -update rewrites it"))
	}
}

// document returns all that the rules say, as Markdown.
func document() string {
	text := []byte("\n| id | severity | what is wrong |\n|---|---|---|\n")
	for _, r := range Rules() {
		text = append(text, "| ["+r.ID+"](#"+r.ID+") | "+r.Worst.String()+" | "+plain(r.Title)+" |\n"...)
	}
	for _, r := range Rules() {
		text = append(text, "\n### "+r.ID+"\n\n"...)
		text = prose.Wrap(text, 0, 0, plain(r.Title)+" ("+r.Worst.String()+").")
		text = appendParagraph(text, "Found when", r.When)
		text = appendParagraph(text, "Why it matters:", r.Why)
		text = appendItems(text, "What to change in the application:", r.Application)
		var settings []string
		for _, s := range r.Sysctls {
			settings = append(settings, "`"+s.Line+"`: "+s.Note)
		}
		text = appendItems(text, "By sysctl:", settings)
		text = appendItems(text, "What does not help:", r.Useless)
		text = appendParagraph(text, "How to see that it has helped:", r.Check)
		text = appendParagraph(text, "References:", strings.Join(r.References, "; ")+".")
	}
	return string(append(text, '\n'))
}

func appendParagraph(text []byte, head, body string) []byte {
	return prose.Wrap(append(text, '\n'), 0, 0, "**"+head+"** "+plain(body))
}

func appendItems(text []byte, head string, items []string) []byte {
	if len(items) == 0 {
		return text
	}
	text = append(text, "\n**"+head+"**\n\n"...)
	for _, item := range items {
		text = prose.Wrap(append(text, "- "...), 2, 2, plain(item))
	}
	return text
}

// plain has Markdown take the text as it is. An underscore within a word is one.
func plain(text string) string {
	return strings.NewReplacer("*", `\*`, "<", `\<`, "|", `\|`, " _", ` \_`).Replace(text)
}
