package test

import (
	"encoding/csv"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// The walks of sockets that connectTo makes, as a listener's port shows them.
var (
	walkListener    = states("CLOSE", "LISTEN", "CLOSE")
	walkServerFirst = states("CLOSE", "NEW_SYN_RECV", "SYN_RECV", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT")
	walkClientFirst = states("CLOSE", "NEW_SYN_RECV", "SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE")
)

func states(names ...string) (walk []string) {
	for i := 1; i < len(names); i++ {
		walk = append(walk, names[i-1]+":"+names[i])
	}
	return walk
}

func walkOf(records []jsonRecord) (walk []string) {
	for _, r := range records {
		walk = append(walk, r.OldState+":"+r.NewState)
	}
	return walk
}

// TestCommandLocalPort expects the transitions of 23 connections to a port, and
// no others.
func TestCommandLocalPort(t *testing.T) {
	netns.RequireRoot(t)
	tests := []struct {
		name   string
		family int
		order  closeOrder
		want   []string
	}{
		{"client closes first, IPv4", unix.AF_INET, clientFirst, walkClientFirst},
		{"client closes first, IPv6", unix.AF_INET6, clientFirst, walkClientFirst},
		{"server closes first, IPv4", unix.AF_INET, serverFirst, walkServerFirst},
		{"server closes first, IPv6", unix.AF_INET6, serverFirst, walkServerFirst},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const port = 8443
			ns := netns.New(t)
			p := trace(t, "--format", "json", "--netns", inodeWord(ns), "--lport", strconv.Itoa(port))
			cookies := connectIn(t, ns, port, connections, tt.family, tt.order)
			lines := connections*len(tt.want) + len(walkListener)
			p.awaitLines(lines)
			res := p.stop()

			n := ledger(t, res.stderr)
			qt.Check(t, qt.DeepEquals(n[1:3], []int{lines, lines}))
			by := recordsByCookie(parseJSON(t, res.stdout))
			for _, cookie := range cookies {
				word := strconv.FormatUint(cookie, 10)
				qt.Check(t, qt.DeepEquals(walkOf(by[word]), tt.want), qt.Commentf("cookie %s", word))
				delete(by, word)
			}
			qt.Assert(t, qt.HasLen(by, 1)) // the listener
			for _, records := range by {
				qt.Check(t, qt.DeepEquals(walkOf(records), walkListener))
			}
		})
	}
}

func connectIn(t testing.TB, ns *netns.NS, port uint16, n, family int, order closeOrder) (cookies []uint64) {
	t.Helper()
	var err error
	ns.Do(func() { cookies, err = connectTo(port, n, family, order) })
	qt.Assert(t, qt.IsNil(err))
	return cookies
}

// makeTraffic runs a kind in ns.
func makeTraffic(t testing.TB, ns *netns.NS, kind traffic.Kind, n int, family tracer.Family) (res *traffic.Result) {
	t.Helper()
	var err error
	ns.Do(func() { res, err = kind.Run(n, family) })
	qt.Assert(t, qt.IsNil(err))
	return res
}

// TestCommandRecords holds every field of the JSON record to the sockets.
func TestCommandRecords(t *testing.T) {
	netns.RequireRoot(t)
	for _, kind := range []traffic.Kind{traffic.ActiveClose, traffic.ResetByLinger, traffic.Refused} {
		for _, family := range []tracer.Family{tracer.FamilyIPv4, tracer.FamilyIPv6} {
			t.Run(kind.Name+"/"+family.String(), func(t *testing.T) {
				ns := netns.New(t)
				p := traceIn(t, ns, "--format", "json")
				made := makeTraffic(t, ns, kind, connections, family)
				p.awaitLines(sum(made.Cells()))
				records := parseJSON(t, p.stop().stdout)
				checkRecords(t, made, records)
				for _, r := range records {
					qt.Assert(t, qt.Equals(r.Netns, ns.Inode()))
				}
			})
		}
	}
}

// TestCommandFormats holds the other formats to JSON, which they all see the
// same traffic as.
func TestCommandFormats(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	formats := map[string]*process{}
	for _, format := range []string{"json", "csv", "logfmt", "table", "csv --no-header", "table --no-header"} {
		formats[format] = traceIn(t, ns, append([]string{"--format"}, strings.Fields(format)...)...)
	}
	made := makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
	out := map[string]string{}
	for format, p := range formats {
		p.awaitLines(sum(made.Cells()) + len(header(format)))
		out[format] = p.stop().stdout
	}
	want := rowsOfJSON(t, out["json"])
	qt.Assert(t, qt.HasLen(want, sum(made.Cells())))
	qt.Check(t, qt.DeepEquals(rowsOfLogfmt(t, out["logfmt"]), want))
	head, body, _ := strings.Cut(out["csv"], "\n")
	qt.Check(t, qt.Equals(head, strings.Join(fields, ",")))
	qt.Check(t, qt.DeepEquals(rowsOfCSV(t, body), want))
	qt.Check(t, qt.DeepEquals(rowsOfCSV(t, out["csv --no-header"]), want))
	head, body, _ = strings.Cut(out["table"], "\n")
	qt.Check(t, qt.DeepEquals(strings.Fields(head), []string{"TIME", "LOCAL", "REMOTE", "TRANSITION", "DWELL", "OWNER"}))
	for _, rows := range []string{body, out["table --no-header"]} {
		checkTable(t, rows, made)
	}
}

// header is the lines before the first event.
func header(format string) []string {
	if format == "csv" || format == "table" {
		return []string{format}
	}
	return nil
}

func sortRows(rows []string) []string {
	slices.Sort(rows)
	return rows
}

// rowText is the fields of a record in a comparable form. Every process
// measures its own times, so of those only that they are there is compared.
func rowText(t testing.TB, row map[string]string) string {
	t.Helper()
	_, err := time.Parse(time.RFC3339Nano, row["time"])
	qt.Assert(t, qt.IsNil(err))
	if dwell, ok := row["dwell_ns"]; ok {
		_, err := strconv.ParseUint(dwell, 10, 63)
		qt.Assert(t, qt.IsNil(err))
		row["dwell_ns"] = "known"
	}
	row["time"] = "known"
	text, err := json.Marshal(row)
	qt.Assert(t, qt.IsNil(err))
	return string(text)
}

func rowsOfJSON(t testing.TB, text string) (rows []string) {
	t.Helper()
	for line := range strings.Lines(text) {
		var values map[string]any
		dec := json.NewDecoder(strings.NewReader(line))
		dec.UseNumber()
		qt.Assert(t, qt.IsNil(dec.Decode(&values)))
		row := map[string]string{}
		for name, value := range values {
			if n, ok := value.(json.Number); ok {
				value = n.String()
			}
			row[name] = value.(string)
		}
		rows = append(rows, rowText(t, row))
	}
	return sortRows(rows)
}

func rowsOfCSV(t testing.TB, text string) (rows []string) {
	t.Helper()
	all, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	qt.Assert(t, qt.IsNil(err))
	for _, cells := range all {
		qt.Assert(t, qt.HasLen(cells, len(fields)))
		row := map[string]string{}
		for i, cell := range cells {
			if cell != "" {
				row[fields[i]] = cell
			}
		}
		rows = append(rows, rowText(t, row))
	}
	return sortRows(rows)
}

func rowsOfLogfmt(t testing.TB, text string) (rows []string) {
	t.Helper()
	for line := range strings.Lines(text) {
		row := map[string]string{}
		for _, pair := range strings.Fields(line) {
			name, value, ok := strings.Cut(pair, "=")
			qt.Assert(t, qt.IsTrue(ok && value != ""), qt.Commentf("%q", line))
			row[name] = value
		}
		rows = append(rows, rowText(t, row))
	}
	return sortRows(rows)
}

// checkTable expects a row of under 80 columns for each transition.
func checkTable(t testing.TB, rows string, made *traffic.Result) {
	t.Helper()
	got := map[tracer.Transition]uint64{}
	for line := range strings.Lines(rows) {
		line = strings.TrimSuffix(line, "\n")
		qt.Check(t, qt.IsTrue(utf8.RuneCountInString(line) < 80), qt.Commentf("%q", line))
		words := strings.Fields(line)
		_, err := time.Parse(time.TimeOnly, words[0])
		qt.Check(t, qt.IsNil(err))
		i := slices.IndexFunc(words, func(w string) bool { return strings.Contains(w, "→") })
		qt.Assert(t, qt.IsTrue(i > 0), qt.Commentf("%q", line))
		got[fromShortNames(t, words[i])]++
	}
	qt.Check(t, qt.DeepEquals(got, made.Cells()))
}

// fromShortNames parses a transition whose states' names may be cut short.
func fromShortNames(t testing.TB, s string) tracer.Transition {
	t.Helper()
	s = strings.NewReplacer("FIN_W1", "FIN_WAIT1", "FIN_W2", "FIN_WAIT2", "TIME_WAIT", "TIME_WAIT", "TIME_W", "TIME_WAIT",
		"CLOSE_WAIT", "CLOSE_WAIT", "CLOSE_W", "CLOSE_WAIT",
		"NEW_SYN_RECV", "NEW_SYN_RECV", "NEW_SYN", "NEW_SYN_RECV").Replace(s)
	tr, err := tracer.ParseTransition(s)
	qt.Assert(t, qt.IsNil(err))
	return tr
}

func TestCommandCount(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	p := traceIn(t, ns, "--format", "json", "--count", "7")
	makeTraffic(t, ns, traffic.ActiveClose, connections, tracer.FamilyIPv4)
	res := p.wait()
	qt.Check(t, qt.Equals(res.code, 0))
	qt.Check(t, qt.HasLen(parseJSON(t, res.stdout), 7))
	n := ledger(t, res.stderr)
	qt.Check(t, qt.DeepEquals(n[2:], []int{7, 0}), qt.Commentf("%s", res.stderr))
}

func TestCommandDuration(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	p := traceIn(t, ns, "--format", "json", "--duration", "300ms")
	seen := time.Now()
	res := p.wait()
	took := time.Since(seen)
	// The line that says so comes a moment after its tracing began.
	qt.Check(t, qt.IsTrue(took > 200*time.Millisecond && took < 20*time.Second), qt.Commentf("%v", took))
	qt.Check(t, qt.Equals(res.stdout, ""))
	checkLedger(t, res)
}

// TestCommandSignals ends a trace as soon as the connections are made, and
// expects all of them in its output.
func TestCommandSignals(t *testing.T) {
	netns.RequireRoot(t)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		for _, kind := range []traffic.Kind{traffic.ActiveClose, traffic.HalfCloseThenClose} {
			t.Run(sig.String()+"/"+kind.Name, func(t *testing.T) {
				ns := netns.New(t)
				p := traceIn(t, ns, "--format", "json")
				made := makeTraffic(t, ns, kind, connections, tracer.FamilyIPv4)
				qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(sig)))
				res := p.wait()
				p.checkLedger(res)
				checkRecords(t, made, parseJSON(t, res.stdout))
			})
		}
	}
}

// TestCommandHeaderAtOnce expects the header before anything happens, so that
// a reader of a pipe knows the columns.
func TestCommandHeaderAtOnce(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	p := traceIn(t, ns, "--format", "csv")
	p.awaitLines(1)
	qt.Check(t, qt.Equals(p.stop().stdout, strings.Join(fields, ",")+"\n"))
}
