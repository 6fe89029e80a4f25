package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Holder is the process that is the agent of this host. What is not known of it
// is zero.
type Holder struct {
	PID     int
	Since   time.Time
	Version string
	// Comm is the process's name now. It is cleaned of what would not print.
	Comm string

	// start is when the process began, in the kernel's ticks since boot: a number
	// that no other process of this PID has.
	start uint64
}

// String says who it is: pid 1234 (finwait 1.2.0) since 2026-11-25T10:00:00Z.
func (h *Holder) String() string {
	if h.PID == 0 {
		return "a process that does not say who it is"
	}
	return fmt.Sprintf("pid %d (%s) since %s", h.PID, strings.TrimSpace(h.Comm+" "+h.Version), h.Since.Format(time.RFC3339))
}

// A HeldError says that another process is the agent of this host.
type HeldError struct {
	StateDir string
	Holder   Holder
}

// Error implements error.
func (e *HeldError) Error() string {
	return fmt.Sprintf("another agent runs on this host: %v holds %s (stop it first)", &e.Holder, e.StateDir)
}

// holderRecord is how a Holder is written down.
type holderRecord struct {
	PID     int       `json:"pid"`
	Start   uint64    `json:"start_ticks"`
	Since   time.Time `json:"since"`
	Version string    `json:"version"`
}

func (h *Holder) encode() ([]byte, error) {
	text, err := json.Marshal(holderRecord{h.PID, h.start, h.Since.UTC().Truncate(time.Second), h.Version})
	return append(text, '\n'), err
}

// parseHolder reads what encode writes. It may be anything: the file outlives the
// process that wrote it, and the version that did.
func parseHolder(text []byte) (Holder, error) {
	var r holderRecord
	if err := json.Unmarshal(text, &r); err != nil {
		return Holder{}, err
	}
	if r.PID <= 0 || r.Start == 0 || r.Since.IsZero() {
		return Holder{}, errors.New("it names no process")
	}
	return Holder{PID: r.PID, Since: r.Since, Version: clean(r.Version), start: r.Start}, nil
}

// clean returns s without what would not print, and no more of it than a name has.
func clean(s string) string {
	const enough = 64
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > enough {
		return string(runes[:enough])
	}
	return s
}

// parseStart returns when a process began, from its /proc/PID/stat. Its name is
// in there, in brackets, and may have brackets and spaces in it.
func parseStart(stat string) (uint64, error) {
	const field = 22 - 3 // starttime, counted from the state
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= field {
		return 0, errors.New("too few fields")
	}
	return strconv.ParseUint(fields[field], 10, 64)
}
