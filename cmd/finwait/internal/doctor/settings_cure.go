package doctor

import (
	"slices"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

const (
	// theLine is what advice says of the line of a sysctl file: a finding has its place
	// instead.
	theLine    = "the line that the finding names"
	deleteLine = "Delete " + theLine + ", if it names one."
)

// cure is what to do about a value that is better not had.
type cure struct {
	// place is that of the line to delete, "" if that is not the cure. Then otherwise is.
	place, otherwise string
}

// advice returns what a rule advises, for this line.
func (c *cure) advice(r *Rule) []string {
	advice := []string{}
	for _, text := range r.Application {
		switch {
		case !strings.Contains(text, theLine):
			advice = append(advice, text)
		case c.place != "":
			text = strings.Replace(text, ", if it names one", "", 1)
			advice = append(advice, strings.Replace(text, theLine, c.place, 1))
		case c.otherwise != "":
			advice = append(advice, c.otherwise)
		}
	}
	return advice
}

// cure says in a finding what to do about a value of the sysctl. If there is no line, or
// none any more, there is the default at the next start, whatever that is then, and until
// then sysctl -w sets it.
func (s *setting) cure(f *Finding, w world, line sysctl.Line, set bool) {
	def, known := s.defaultIn(w)
	_, exists := w.netns.Sysctls[s.key]
	var back []Setting // nil is for those of the rule
	switch {
	case known && exists && !w.is(s.key, def):
		back = []Setting{{s.key + " = " + def, "the kernel's default"}}
	case known || !exists:
		back = []Setting{}
	}
	switch {
	case !w.netns.Host:
		f.cure, f.Sysctls = &cure{otherwise: "Look at what describes the namespace's container, and delete it there."}, back
		return
	case set && known && !isRemovable(w.host, s.key, line, def):
		f.cure, f.Sysctls = s.override(w.host, line, def)
		return
	case !set:
		f.cure = &cure{otherwise: notInFiles(w, s.key)}
	case line.File == sysctl.Cmdline:
		f.cure = &cure{otherwise: "Take it off the kernel's command line, in the configuration of the boot loader."}
	default:
		f.cure = &cure{place: strings.Join(placesOf(w.host, s.key, line, exists), ", ")}
	}
	if back != nil {
		f.Sysctls, f.Once = []Setting{}, back
	}
}

// override has the default take the place of a line that cannot just be deleted.
func (s *setting) override(h *observe.Host, line sysctl.Line, def string) (*cure, []Setting) {
	setting := s.key + " = " + def
	if line.Key == s.key && !isVendors(line) {
		note := "the kernel's default: put it in place of " + where(line) + ", for without it another line sets it"
		return &cure{otherwise: "Put the default in place of " + where(line) + ": without it another line sets it."}, []Setting{{setting, note}}
	}
	what := "comes with a package"
	if line.Key != s.key {
		what = "has a pattern"
	}
	return &cure{otherwise: "Override " + where(line) + ", which " + what + ", by a line of your own."},
		[]Setting{{setting, "the kernel's default, which overrides " + where(line)}}
}

// notInFiles says where to look for what set a sysctl of the host that no line sets so.
func notInFiles(w world, key string) string {
	if w.host.Settings == nil {
		return "Look for what has set it: the sysctl files could not be read."
	}
	if line, set := w.host.Settings.Last(key); set {
		return "Look for what has set it since the start: " + where(line) + " says " + orNothing(line.Value) + "."
	}
	return "Look for what has set it: no sysctl file does, so it is gone at the next start unless that sets it again."
}

// isRemovable reports whether the default runs at the next start if a line is deleted.
func isRemovable(h *observe.Host, key string, line sysctl.Line, def string) bool {
	if line.File == sysctl.Cmdline {
		return true
	}
	return line.Key == key && !isVendors(line) && !overridesOther(h, key, line, def)
}

// placesOf returns where a line is, and all that name a sysctl if there is no such.
func placesOf(h *observe.Host, key string, line sysctl.Line, exists bool) (places []string) {
	if exists {
		return []string{where(line)}
	}
	for _, l := range h.Settings.All(key) {
		places = append(places, where(l))
	}
	return slices.Compact(places)
}
