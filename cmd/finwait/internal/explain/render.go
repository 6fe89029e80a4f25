package explain

import (
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/finwait/finwait/cmd/finwait/internal/prose"
)

// endNote stands where nothing can follow.
const endNote = "Nothing: this was the end. A process that still holds the socket may connect or listen with it again."

// AppendText implements Entry.
func (s *State) AppendText(dst []byte) []byte {
	dst = append(dst, s.State+": "+s.Summary+"\n\n"...)
	dst = prose.Hang(dst, "", s.Meaning)
	dst = appendSection(dst, "Side", s.Side)
	dst = appendArrows(dst, "Comes from", s.From)
	dst = appendArrows(dst, "Moves on by", s.Next)
	dst = appendBounds(dst, s.Bounds)
	dst = appendSection(dst, "A pile-up usually says", s.PileUp)
	dst = appendList(dst, "What to do", s.Do)
	return appendList(dst, "What does not help", s.Dont)
}

// AppendText implements Entry.
func (t *Transition) AppendText(dst []byte) []byte {
	name := t.OldState + "→" + t.NewState
	if !t.Happens {
		dst = append(dst, name+" "+t.Summary+".\n"...)
		dst = appendList(dst, "Why", t.Notes)
		return appendArrows(dst, "From "+t.OldState+" Linux goes", t.Next)
	}
	dst = append(dst, name+": "+t.Summary+"\n\n"...)
	dst = prose.Hang(dst, "", t.Wire)
	dst = appendSection(dst, "Who", t.Who)
	dst = appendArrows(dst, "What may follow", t.Next)
	if len(t.Next) == 0 {
		dst = appendSection(dst, "What may follow", endNote)
	}
	return appendList(dst, "Notes", t.Notes)
}

// AppendJSON implements Entry.
func (s *State) AppendJSON(dst []byte) ([]byte, error) { return appendJSON(dst, s) }

// AppendJSON implements Entry.
func (t *Transition) AppendJSON(dst []byte) ([]byte, error) { return appendJSON(dst, t) }

func appendJSON(dst []byte, v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return dst, err
	}
	return append(append(dst, line...), '\n'), nil
}

func appendTitle(dst []byte, title string) []byte { return append(dst, "\n"+title+":\n"...) }

func appendSection(dst []byte, title, text string) []byte {
	if text == "" {
		return dst
	}
	return prose.Hang(appendTitle(dst, title), "  ", text)
}

func appendList(dst []byte, title string, items []string) []byte {
	if len(items) == 0 {
		return dst
	}
	dst = appendTitle(dst, title)
	for _, item := range items {
		dst = prose.Hang(dst, "  - ", item)
	}
	return dst
}

func appendArrows(dst []byte, title string, arrows []Arrow) []byte {
	if len(arrows) == 0 {
		return dst
	}
	dst = appendTitle(dst, title)
	for _, a := range arrows {
		name := "  " + a.OldState + "→" + a.NewState
		pad := strings.Repeat(" ", max(1, 26-utf8.RuneCountInString(name)))
		dst = prose.Hang(dst, name+pad, a.Summary)
	}
	return dst
}

func appendBounds(dst []byte, bounds []Bound) []byte {
	if len(bounds) == 0 {
		return dst
	}
	dst = appendTitle(dst, "Bounded by")
	for _, b := range bounds {
		head := b.Name
		if b.Default != "" {
			head += " = " + b.Default
		}
		dst = prose.Wrap(append(dst, "  "...), 2, 4, head)
		dst = prose.Hang(dst, "      ", b.Effect)
	}
	return dst
}

// The texts are wrapped in the source; unwrapped returns them with single
// spaces, as one line each.
func (s State) unwrapped() State {
	s.Meaning, s.Side, s.PileUp = prose.Line(s.Meaning), prose.Line(s.Side), prose.Line(s.PileUp)
	s.Do, s.Dont = prose.Lines(s.Do), prose.Lines(s.Dont)
	bounds := make([]Bound, 0, len(s.Bounds))
	for _, b := range s.Bounds {
		bounds = append(bounds, Bound{b.Name, b.Default, prose.Line(b.Effect)})
	}
	s.Bounds = bounds
	return s
}

func (t Transition) unwrapped() Transition {
	t.Wire, t.Who = prose.Line(t.Wire), prose.Line(t.Who)
	t.Notes = prose.Lines(t.Notes)
	return t
}
