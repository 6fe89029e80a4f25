package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
)

// writer writes records in JSON.
type writer struct {
	logged output.Logged
	events output.Encoder
	conns  output.ConnEncoder
}

func newWriter(t testing.TB) *writer {
	t.Helper()
	w := &writer{}
	var err error
	opts := output.Options{Logged: &w.logged}
	w.events, err = output.New("json", opts)
	qt.Assert(t, qt.IsNil(err))
	w.conns, err = output.NewConns("json", opts)
	qt.Assert(t, qt.IsNil(err))
	return w
}

func (w *writer) append(dst []byte, r *Record) []byte {
	w.logged = r.Logged
	if r.Event != nil {
		return w.events.AppendEvent(dst, r.Event)
	}
	return w.conns.AppendConn(dst, r.Conn)
}

// result is what came of reading.
type result struct {
	counts   Counts
	printed  string // the records, written again
	troubles []string
}

// read reads files, and stdin as the one named -.
func read(t testing.TB, stdin io.Reader, files ...string) result {
	t.Helper()
	var res result
	r := New(files, Options{Stdin: stdin, Complain: func(err error) { res.troubles = append(res.troubles, err.Error()) }})
	w := newWriter(t)
	var printed []byte
	for record, err := range r.Records(t.Context()) {
		qt.Assert(t, qt.IsNil(err))
		printed = w.append(printed, record)
	}
	res.printed, res.counts = string(printed), r.Counts()
	return res
}

func readText(t testing.TB, text string) result {
	t.Helper()
	return read(t, strings.NewReader(text), "-")
}

// goldenLines returns the lines that package output is held to, both kinds.
func goldenLines(t testing.TB) string {
	t.Helper()
	var text []byte
	for _, name := range []string{"json.golden", "conns-json.golden"} {
		lines, err := os.ReadFile(filepath.Join("..", "output", "testdata", name))
		qt.Assert(t, qt.IsNil(err))
		text = append(text, lines...)
	}
	return string(text)
}

const (
	line1 = `{"time":"2026-11-22T09:08:07.060500000Z","cookie":"1","old_state":"SYN_RECV","new_state":"ESTABLISHED","owner":"unknown","evidence":"kernel"}` + "\n"
	line2 = `{"time":"2026-11-22T09:08:07.060500001Z","cookie":"2","old_state":"ESTABLISHED","new_state":"CLOSE_WAIT","dwell_ns":5,"owner":"unknown","evidence":"probe","sampling_ratio":0.01}` + "\n"
	conn1 = `{"time":"2026-11-22T09:08:07.060500000Z","cookie":"3","owner":"unknown","walk":[{"state":"SYN_SENT","dwell_ns":95000}],"reason":"refused","side":"peer","sampling_ratio":0.5}` + "\n"
	conn2 = `{"time":"2026-11-22T09:08:07.060500000Z","owner":"unknown","reason":"fin"}` + "\n" // its walk was not kept
)

func TestRoundTrip(t *testing.T) {
	golden := goldenLines(t)
	for _, text := range []string{golden, line1 + conn1 + line2 + conn2, strings.TrimSuffix(line1, "\n")} {
		res := readText(t, text)
		qt.Check(t, qt.Equals(res.printed, strings.TrimSuffix(text, "\n")+"\n"))
		qt.Check(t, qt.HasLen(res.troubles, 0))
	}
	res := readText(t, golden)
	qt.Check(t, qt.Equals(res.counts, Counts{Transitions: 9, Conns: 11}))
	qt.Check(t, qt.IsNil(res.counts.Err()))
}

// What newer versions add, another order, white space and null do no harm.
func TestLenient(t *testing.T) {
	for _, text := range []string{
		strings.Replace(line2, `{`, `{"new":{"a":[1,-2.5e+3,true,false,null,"\u00e9\"",{}]},"x":[],`, 1),
		strings.Replace(line2, `}`, `,"dwell":"5","\u006fther":0}`, 1),
		strings.Replace(line2, `"time"`, `"\u0074ime"`, 1),
		strings.Replace(line2, `}`, `,"pid":null,"walk":null}`, 1),
		strings.NewReplacer(`,`, " ,\t", `:"`, ` : "`, "\n", "\r\n", `{`, " { ").Replace(line2),
		`{"sampling_ratio":1e-2,"evidence":"probe","owner":"unknown","dwell_ns":5,"new_state":"CLOSE_WAIT","old_state":"ESTABLISHED","cookie":"2","time":"2026-11-22T10:08:07.060500001+01:00"}`,
		"\n \r\n" + line2 + "\n\n",
	} {
		res := readText(t, text)
		qt.Check(t, qt.Equals(res.printed, line2), qt.Commentf("%s", text))
		qt.Check(t, qt.HasLen(res.troubles, 0), qt.Commentf("%s", text))
	}
}

func TestDamage(t *testing.T) {
	with := func(field string) string { return strings.Replace(line1, `"cookie":"1"`, field, 1) }
	for _, tt := range []struct{ line, want string }{
		{"\x00\x00\x00", `byte 1 is no {`},
		{"not json", `byte 1 is no {`},
		{"[]", `byte 1 is no {`},
		{"{}", `there is no time in it`},
		{line1[:40], `the line ends too early`},
		{strings.TrimSpace(line1) + line1, `there is more after the object`},
		{strings.Replace(line1, `,"new_state":"ESTABLISHED"`, "", 1), `there is only one state in it`},
		{strings.Replace(line1, `"old_state":"SYN_RECV","new_state":"ESTABLISHED",`, `"state":"LISTEN",`, 1), `neither a transition nor a connection.*`},
		{`{"time":"2026-11-22T09:08:07Z","netns":4026531840,"counts":{}}`, `neither a transition nor a connection.*`},
		{strings.Replace(line1, "SYN_RECV", "SYN_RCVD", 1), `old_state: "SYN_RCVD" is not known to this version`},
		{strings.Replace(line1, "22T09", "22 09", 1), `time: "2026-11-22 09:08:07.060500000Z" is not a time`},
		{strings.Replace(line1, "-22T", "-32T", 1), `time: .* is not a time`},
		{with(`"cookie":1`), `cookie: byte 51 is no "`},
		{with(`"cookie":"18446744073709551616"`), `cookie: .* is no whole number of 64 bits`},
		{with(`"cookie":""`), `cookie: "" is no whole number of 64 bits`},
		{with(`"local_port":65536`), `local_port: "65536" is no whole number of 16 bits`},
		{with(`"local_port":1.5`), `local_port: "1.5" is no whole number of 16 bits`},
		{with(`"local_port":01`), `byte .* is no ,`},
		{with(`"dwell_ns":9223372036854775808`), `dwell_ns: .* is no whole number of 64 bits`},
		{with(`"local_addr":"1.2.3"`), `local_addr: "1.2.3" is not an address`},
		{with(`"local_addr":"fe80::1%lo"`), `local_addr: .* is not an address`},
		{with(`"comm":"sixteen-letters!"`), `comm: "sixteen-letters!" is not the name of a process`},
		{with(`"comm":"a\u0000b"`), `comm: .* is not the name of a process`},
		{with("\"comm\":\"a\x01b\""), `comm: a text with a control character or a wrong escape in it`},
		{with(`"comm":"\x41"`), `comm: a text with .*`},
		{with(`"sampling_ratio":1`), `sampling_ratio: "1" is not between 0 and 1`},
		{with(`"x":` + strings.Repeat("[", 1000)), `values are inside each other too deep`},
		{strings.Replace(conn1, `"state":"SYN_SENT",`, "", 1), `walk: not a walk through the states`},
		{strings.Replace(conn1, `{"state":"SYN_SENT","dwell_ns":95000}`, strings.Repeat(`{"state":"SYN_SENT"},`, 12)+`{"state":"SYN_SENT"}`, 1), `walk: not a walk .*`},
		{strings.Replace(conn1, `"reason"`, `"bytes_sent":1,"reason"`, 1), `there are only some of its bytes and segments in it`},
	} {
		res := readText(t, line1+strings.TrimSpace(tt.line)+"\n"+line2)
		qt.Check(t, qt.Equals(res.printed, line1+line2), qt.Commentf("%s", tt.line))
		qt.Check(t, qt.Equals(res.counts, Counts{Transitions: 2, Damaged: 1}))
		if qt.Check(t, qt.HasLen(res.troubles, 1), qt.Commentf("%s", tt.line)) {
			qt.Check(t, qt.Matches(res.troubles[0], "standard input:2: "+tt.want))
		}
	}
}

// A line has its bound, and those around it are read.
func TestLongLine(t *testing.T) {
	padded := func(n int) string { // line1 with n bytes
		return strings.Replace(line1, "{", "{"+strings.Repeat(" ", n-len(line1)), 1)
	}
	for _, tt := range []struct {
		text    string
		read    int
		damaged uint64
	}{
		{padded(MaxLine) + line1, 2, 0},
		{line1 + padded(MaxLine+1) + line1, 2, 1},
		{line1 + padded(5*MaxLine) + line1, 2, 1},
		{line1 + strings.Repeat("x", 3*MaxLine), 1, 1},
		{line1 + strings.Repeat("x", MaxLine), 1, 1},
		{strings.Repeat("\n", 100_000) + line1, 1, 0},
	} {
		res := readText(t, tt.text)
		qt.Check(t, qt.Equals(res.printed, strings.Repeat(line1, tt.read)))
		qt.Check(t, qt.Equals(res.counts, Counts{Transitions: uint64(tt.read), Damaged: tt.damaged}))
		for _, trouble := range res.troubles {
			qt.Check(t, qt.Matches(trouble, `standard input:2: the line is longer than 1 MiB`))
		}
	}
}

// A file that is still written to may end in half a line.
func TestCutOff(t *testing.T) {
	res := readText(t, line1+line2[:70])
	qt.Check(t, qt.Equals(res.printed, line1))
	qt.Check(t, qt.DeepEquals(res.troubles, []string{"standard input:2: the line is cut off"}))
}

func gzipped(t testing.TB, text string) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	_, err := z.Write([]byte(text))
	qt.Assert(t, qt.IsNil(errors.Join(err, z.Close())))
	return buf.Bytes()
}

func zstandard(t testing.TB, text string) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	qt.Assert(t, qt.IsNil(err))
	return z.EncodeAll([]byte(text), nil)
}

var compressions = map[string]func(testing.TB, string) []byte{"gzip": gzipped, "zstd": zstandard}

// A compressed file is known by how it begins, and may be several in a row.
func TestCompressed(t *testing.T) {
	skippable := "\x50\x2a\x4d\x18\x03\x00\x00\x00abc" // RFC 8878, 3.1.2
	for name, compress := range compressions {
		t.Run(name, func(t *testing.T) {
			text := goldenLines(t)
			data := append(compress(t, line1+text), compress(t, text+line2)...)
			if name == "zstd" {
				data = append([]byte(skippable), data...)
			}
			res := read(t, bytes.NewReader(data), "-")
			qt.Check(t, qt.Equals(res.printed, line1+text+text+line2))
			qt.Check(t, qt.HasLen(res.troubles, 0))

			path := filepath.Join(t.TempDir(), "log")
			qt.Assert(t, qt.IsNil(os.WriteFile(path, data, 0o600)))
			qt.Check(t, qt.Equals(read(t, nil, path, path).printed, strings.Repeat(res.printed, 2)))
		})
	}
}

// Of a compressed file that is cut off or damaged, what comes before is read.
func TestCompressedDamage(t *testing.T) {
	var lines strings.Builder
	for i := range 20_000 {
		lines.WriteString(strings.Replace(line1, `"cookie":"1"`, fmt.Sprintf(`"cookie":"%d"`, i*7919+1), 1))
	}
	text := lines.String()
	for name, compress := range compressions {
		t.Run(name, func(t *testing.T) {
			data := compress(t, text)
			cut := read(t, bytes.NewReader(data[:len(data)*3/4]), "-")
			qt.Check(t, qt.IsTrue(strings.HasPrefix(text, cut.printed)))
			qt.Check(t, qt.IsTrue(cut.counts.Transitions > 1000), qt.Commentf("%+v", cut.counts))
			qt.Check(t, qt.Equals(cut.counts.Broken, 1))
			qt.Check(t, qt.Equals(cut.counts.Unread, 0))
			qt.Check(t, qt.IsNil(cut.counts.Err()))
			qt.Check(t, qt.Matches(cut.troubles[len(cut.troubles)-1], `standard input: after line \d+: the compressed data is cut off`))

			data[len(data)-3] ^= 0x55
			bad := read(t, bytes.NewReader(data), "-")
			qt.Check(t, qt.Equals(bad.counts.Broken, 1))
			qt.Check(t, qt.IsTrue(strings.HasPrefix(text, bad.printed)))

			head := read(t, bytes.NewReader(data[:6]), "-")
			qt.Check(t, qt.Equals(head.counts.Broken, 1))
			qt.Check(t, qt.ErrorMatches(head.counts.Err(), `nothing that was read is a record.*`))
		})
	}
}

// A file that does not open does not keep the others from being read.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(line1), 0o600)))
	res := read(t, nil, filepath.Join(dir, "none"), dir, path)
	qt.Check(t, qt.Equals(res.printed, line1))
	qt.Check(t, qt.Equals(res.counts, Counts{Transitions: 1, Broken: 2, Unread: 2}))
	qt.Check(t, qt.ErrorMatches(res.counts.Err(), "not every file could be read"))
	qt.Assert(t, qt.HasLen(res.troubles, 2))
	qt.Check(t, qt.Equals(res.troubles[0], filepath.Join(dir, "none")+": no such file or directory"))
	qt.Check(t, qt.StringContains(res.troubles[1], "is a directory"))
}

func TestErr(t *testing.T) {
	for text, want := range map[string]string{
		"":            "", // nothing happened
		line1 + "x\n": "",
		"x\n":         "nothing that was read is a record of finwait (they are written by --format json)",
	} {
		counts := readText(t, text).counts
		got := ""
		if err := counts.Err(); err != nil {
			got = err.Error()
		}
		qt.Check(t, qt.Equals(got, want))
	}
}

// What was read is told before there is to be waited for more, and Ctrl-C ends
// the waiting.
func TestIdleAndCancel(t *testing.T) {
	in, out := io.Pipe()
	defer in.Close()
	ctx, cancel := context.WithCancel(t.Context())
	told, idle := make(chan string), make(chan struct{}, 100)
	r := New([]string{"-"}, Options{Stdin: in, Idle: func() error { idle <- struct{}{}; return nil }})
	w := newWriter(t)
	go func() {
		defer close(told)
		for record := range r.Records(ctx) {
			told <- string(w.append(nil, record))
		}
	}()
	for range 3 {
		<-idle
		go func() { _, _ = io.WriteString(out, line1+line2) }()
		qt.Assert(t, qt.Equals(<-told, line1))
		qt.Assert(t, qt.Equals(<-told, line2))
	}
	_, err := io.WriteString(out, line1[:20])
	qt.Assert(t, qt.IsNil(err))
	cancel()
	for range told {
		t.Error("a record after the end")
	}
	qt.Check(t, qt.Equals(r.Counts(), Counts{Transitions: 6}))
}

// An error of Idle ends the reading.
func TestIdleError(t *testing.T) {
	broken := errors.New("broken pipe")
	r := New([]string{"-", "-"}, Options{Stdin: strings.NewReader(line1), Idle: func() error { return broken }})
	var errs []error
	for _, err := range r.Records(t.Context()) {
		errs = append(errs, err)
	}
	qt.Assert(t, qt.HasLen(errs, 1))
	qt.Check(t, qt.ErrorIs(errs[0], broken))
	qt.Check(t, qt.Equals(r.Counts(), Counts{}))
}

// stream repeats text up to a size in bytes.
type stream struct {
	text       string
	left, from int
}

func (s *stream) Read(p []byte) (n int, err error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n = copy(p[:min(len(p), s.left)], s.text[s.from:])
	s.left -= n
	s.from = (s.from + n) % len(s.text)
	return n, nil
}

// All that is allocated for a large log, freed or not, is buffers and next to
// nothing a line.
func TestConstantMemory(t *testing.T) {
	text := goldenLines(t)
	const times = 2000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := New([]string{"-"}, Options{Stdin: &stream{text: strings.Repeat(text, 50), left: times * len(text)}})
	for range r.Records(t.Context()) {
	}
	runtime.ReadMemStats(&after)
	lines := uint64(times * strings.Count(text, "\n"))
	qt.Check(t, qt.Equals(r.Counts().Records(), lines))
	qt.Check(t, qt.IsTrue(after.TotalAlloc-before.TotalAlloc < 4<<20+64*lines), qt.Commentf("%d bytes for %d lines", after.TotalAlloc-before.TotalAlloc, lines))
}

func BenchmarkReplay(b *testing.B) {
	lines := strings.SplitAfter(strings.TrimSuffix(goldenLines(b), "\n"), "\n")
	for name, text := range map[string]string{
		"transitions": strings.Join(lines[:5], ""), // of IPv4, and without hostile names
		"connections": lines[10],
		"mixed":       goldenLines(b),
	} {
		b.Run(name, func(b *testing.B) {
			n := strings.Count(text, "\n")
			b.SetBytes(int64(len(text) / n))
			b.ReportAllocs()
			in := &stream{text: strings.Repeat(text, 1+1<<20/len(text)), left: (b.N + n - 1) / n * len(text)}
			r := New([]string{"-"}, Options{Stdin: in})
			start := time.Now()
			for range r.Records(b.Context()) {
			}
			b.ReportMetric(float64(r.Counts().Records())/time.Since(start).Seconds(), "lines/s")
		})
	}
}
