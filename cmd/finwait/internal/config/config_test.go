package config

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

// settings are of each type that finwait serve has.
type settings struct {
	config, log, listen, compress string
	states, comms                 []string
	ports                         []int
	ipv4, check                   bool
	buffer                        int
	count                         uint64
	sample                        float64
	maxAge                        time.Duration
	maxSize                       Size
}

// byValue has settings compared field by field.
var byValue = []cmp.Option{cmp.AllowUnexported(settings{}), cmpopts.EquateEmpty()}

func newFlags() (*pflag.FlagSet, *settings) {
	s := &settings{maxSize: 100 << 20}
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&s.config, "config", "", "read settings from this `file`")
	flags.BoolVar(&s.check, "check", false, "try everything and end")
	flags.StringSliceVar(&s.states, "state", nil, "only transitions out of or into these `states`")
	flags.StringSliceVar(&s.comms, "comm", []string{"a", "b,c"}, "only sockets of processes with these `names`")
	flags.IntSliceVar(&s.ports, "service-ports", nil, "`ports` to count by")
	flags.BoolVarP(&s.ipv4, "ipv4", "4", false, "only IPv4 sockets")
	flags.IntVar(&s.buffer, "buffer", 8, "`MiB` of kernel buffer, a power of two; more of it loses less in a burst of very many connections")
	flags.Uint64Var(&s.count, "count", 0, "stop after `N`")
	flags.Float64Var(&s.sample, "sample", 1, "`share` of connections")
	flags.StringVar(&s.log, "log", "", "write records to this `file`, - for standard output")
	flags.Var(&s.maxSize, "log-max-size", "begin another file at this `size`")
	flags.DurationVar(&s.maxAge, "log-max-age", 24*time.Hour, "begin another file after this `time`")
	flags.StringVar(&s.compress, "log-compress", "none", "none, gzip or zstd")
	flags.StringVar(&s.listen, "listen", "127.0.0.1:9987", "`address` for metrics")
	CommandLineOnly(flags, "check")
	return flags, s
}

// write writes a configuration file.
func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "finwait.yaml")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(text), 0o600)))
	return path
}

const everything = `
# A comment.
state: [FIN_WAIT2, TIME_WAIT] # in one line
comm:
  - nginx
  - "a,b"
service-ports: [443, 80]
ipv4: true
buffer: 16
count: 18446744073709551615
sample: .5
log: "-"
log-max-size: 1 GiB
log-max-age: 1h30m
log-compress: zstd
listen: ""
`

func TestLoadFile(t *testing.T) {
	flags, s := newFlags()
	path := write(t, everything)
	qt.Assert(t, qt.IsNil(flags.Parse([]string{"--config", path})))
	qt.Assert(t, qt.IsNil(Load(flags, nil)))
	qt.Check(t, qt.CmpEquals(*s, settings{
		config: path, log: "-", compress: "zstd", states: []string{"FIN_WAIT2", "TIME_WAIT"}, comms: []string{"nginx", "a,b"},
		ports: []int{443, 80}, ipv4: true, buffer: 16, count: 1<<64 - 1, sample: 0.5, maxAge: 90 * time.Minute, maxSize: 1 << 30,
	}, byValue...))
	flags.VisitAll(func(flag *pflag.Flag) {
		qt.Check(t, qt.Equals(flag.Changed, flag.Name != "check"), qt.Commentf("%s", flag.Name))
	})
	qt.Check(t, qt.Equals(Source(flags, "comm"), path+":4"))
	qt.Check(t, qt.Equals(Source(flags, "config"), "--config"))
	qt.Check(t, qt.Equals(Source(flags, "check"), ""))
	qt.Check(t, qt.Equals(Source(flags, "nonsense"), ""))
}

func TestLoadEnvironment(t *testing.T) {
	flags, s := newFlags()
	qt.Assert(t, qt.IsNil(Load(flags, []string{
		"HOME=/root", "FINWAIT_STATE=FIN_WAIT2,TIME_WAIT", "FINWAIT_IPV4=1", "FINWAIT_LOG_MAX_SIZE=5MB", "FINWAIT_LISTEN=",
		"FINWAIT_LOG=a=b", "FINWAIT_TEST_EVIDENCE=timer", "finwait_log=no", "FINWAITLOG=no", "FINWAIT_SERVICE_PORTS=1,2",
	})))
	qt.Check(t, qt.CmpEquals(*s, settings{
		states: []string{"FIN_WAIT2", "TIME_WAIT"}, comms: []string{"a", "b,c"}, ports: []int{1, 2}, ipv4: true, buffer: 8, sample: 1,
		log: "a=b", maxSize: 5_000_000, maxAge: 24 * time.Hour, compress: "none", listen: "",
	}, byValue...))
	qt.Check(t, qt.IsTrue(flags.Changed("listen")))
	qt.Check(t, qt.IsFalse(flags.Changed("comm")))
	qt.Check(t, qt.Equals(Source(flags, "state"), "FINWAIT_STATE"))
}

// TestPrecedence gives one setting in all four ways, and then in fewer.
func TestPrecedence(t *testing.T) {
	path := write(t, "state: [LISTEN]\nbuffer: 4\n")
	for _, test := range []struct {
		args   []string
		env    []string
		states []string
		buffer int
		source string
	}{
		{[]string{"--state", "CLOSE", "--buffer=1", "--config", path}, []string{"FINWAIT_STATE=CLOSING", "FINWAIT_BUFFER=2"}, []string{"CLOSE"}, 1, "--buffer"},
		{[]string{"--config", path}, []string{"FINWAIT_STATE=CLOSING", "FINWAIT_BUFFER=2"}, []string{"CLOSING"}, 2, "FINWAIT_BUFFER"},
		{nil, []string{"FINWAIT_CONFIG=" + path}, []string{"LISTEN"}, 4, path + ":2"},
		{[]string{"--config="}, []string{"FINWAIT_CONFIG=" + path}, nil, 8, ""},
		{nil, nil, nil, 8, ""},
	} {
		flags, s := newFlags()
		qt.Assert(t, qt.IsNil(flags.Parse(test.args)))
		qt.Assert(t, qt.IsNil(Load(flags, test.env)))
		qt.Check(t, qt.DeepEquals(s.states, test.states))
		qt.Check(t, qt.Equals(s.buffer, test.buffer))
		qt.Check(t, qt.Equals(Source(flags, "buffer"), test.source))
	}
}

// TestLoadNothing has files that say nothing.
func TestLoadNothing(t *testing.T) {
	for _, text := range []string{"", "\n\n", "# log: x\n", "---\n", "---\n...\n", "{}", "\ufeff# log: x\n"} {
		flags, s := newFlags()
		_, want := newFlags()
		want.config = write(t, text)
		qt.Assert(t, qt.IsNil(flags.Parse([]string{"--config", want.config})))
		qt.Check(t, qt.IsNil(Load(flags, nil)), qt.Commentf("%q", text))
		qt.Check(t, qt.CmpEquals(s, want, byValue...), qt.Commentf("%q", text))
	}
}

// mistakes are files, and the environment, with something wrong.
var mistakes = []struct {
	name, text string
	env        []string
}{
	{"unknown key", "log-max-size: 1MiB\nlog-max-sise: 1MiB\n", nil},
	{"underscores", "log_max_size: 1MiB\n", nil},
	{"nothing near", "colour: red\n", nil},
	{"empty key", "'': red\n", nil},
	{"hostile key", "\"\\e[31m\\u202e\": red\n", nil},
	{"several", "buffer: many\nlogg: x\nsample: 1\nipv4: yes\n", nil},
	{"bool", "ipv4: on\n", nil},
	{"int", "buffer: 8MiB\n", nil},
	{"unsigned", "count: -1\n", nil},
	{"float", "sample: half\n", nil},
	{"duration", "log-max-age: 1d\n", nil},
	{"size", "log-max-size: 100M\n", nil},
	{"list of numbers", "service-ports: [80, http]\n", nil},
	{"list of maps", "state: [{a: b}]\n", nil},
	{"list of lists", "state: [[a]]\n", nil},
	{"list with nothing", "state: [a, ~]\n", nil},
	{"list for one", "log: [a, b]\n", nil},
	{"map", "log:\n  max-size: 1MiB\n", nil},
	{"no value", "log:\n", nil},
	{"null", "log: ~\n", nil},
	{"line break", "log: |\n  a\n  b\n", nil},
	{"list with bad quotes", "comm: a,\"b\n", nil},
	{"twice", "log: a\nbuffer: 4\nlog: b\n", nil},
	{"two documents", "log: a\n---\nlog: b\n", nil},
	{"two documents, one broken", "log: a\n---\nlog: [\n", nil},
	{"anchor", "log: &x a\n", nil},
	{"alias", "state: &x [a]\ncomm: *x\n", nil},
	{"merge", "<<: {log: a}\n", nil},
	{"tag", "log: !!binary aGVsbG8=\n", nil},
	{"key is a list", "? [a]\n: b\n", nil},
	{"list", "- log\n", nil},
	{"one value", "log\n", nil},
	{"dash", "log: -\n", nil},
	{"no YAML", "log: a: b\n", nil},
	{"tab", "log: a\n\tbuffer: 1\n", nil},
	{"NUL", "log: a\nbuffer: \x00\n", nil},
	{"not UTF-8", "log: a\n# \xff\n", nil},
	{"UTF-16", "\xff\xfel\x00o\x00", nil},
	{"command line alone", "check: true\n", nil},
	{"help", "help: true\n", nil},
	{"another file", "config: b.yaml\n", nil},
	{"environment", "", []string{
		"FINWAIT_LOGG=x", "FINWAIT_BUFFER=x", "FINWAIT_log=x", "FINWAIT_LOG_MAX-SIZE=1", "FINWAIT_CHECK=1", "FINWAIT_=x", "FINWAIT_IPV4=", "FINWAIT_LOG=a\x1bb",
	}},
	{"environment and file", "buffer: x\n", []string{"FINWAIT_SAMPLE=x"}},
	{"no file", "", []string{"FINWAIT_CONFIG=nowhere.yaml"}},
	{"directory", "", []string{"FINWAIT_CONFIG=/"}},
	{"endless", "", []string{"FINWAIT_CONFIG=/dev/zero"}},
	{"many mistakes", strings.Repeat("? [a]\n: b\n", 100_000), nil},
}

func TestMistakes(t *testing.T) {
	t.Chdir(t.TempDir())
	var got strings.Builder
	for _, m := range mistakes {
		flags, _ := newFlags()
		qt.Assert(t, qt.IsNil(os.WriteFile("finwait.yaml", []byte(m.text), 0o600)))
		if m.text != "" {
			qt.Assert(t, qt.IsNil(flags.Parse([]string{"--config=finwait.yaml"})))
		}
		err := Load(flags, m.env)
		qt.Assert(t, qt.IsNotNil(err), qt.Commentf("%s", m.name))
		fmt.Fprintf(&got, "== %s\n%v\n", m.name, err)
	}
	checkGolden(t, "mistakes.txt", got.String())
}

// testdata is the full path: a test may be in another directory.
var testdata = func() string {
	path, err := filepath.Abs("testdata")
	if err != nil {
		panic(err)
	}
	return path
}()

func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join(testdata, name)
	if *update {
		qt.Assert(t, qt.IsNil(os.MkdirAll(testdata, 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(got), 0o644)))
	}
	want, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(got, string(want)), qt.Commentf("go test -update rewrites %s", path))
}

func TestChanges(t *testing.T) {
	flags := func(text string) *pflag.FlagSet {
		flags, _ := newFlags()
		qt.Assert(t, qt.IsNil(flags.Parse([]string{"--buffer=4", "--config=" + write(t, text)})))
		qt.Assert(t, qt.IsNil(Load(flags, nil)))
		return flags
	}
	reloadable := []string{"config", "state", "comm", "sample"}
	for _, test := range []struct {
		before, after   string
		reload, restart []string
	}{
		{everything, everything + "# more\n", nil, nil},
		{"", "log-max-size: 104857600\nstate: []\nbuffer: 64\n", nil, nil}, // as before in other words, or overruled
		{"state: [a]\nlog: x\n", "state: a,b\nlog: x\n", []string{"state"}, nil},
		{"state: [a]\nlog: x\nsample: 0.1\n", "listen: \"\"\ncomm: [x]\nlog-max-age: 1h\n", []string{"state", "comm", "sample"}, []string{"log", "log-max-age", "listen"}},
	} {
		before, after := flags(test.before), flags(test.after)
		qt.Assert(t, qt.IsNil(after.Lookup("config").Value.Set(before.Lookup("config").Value.String())))
		reload, restart := Changes(before, after, reloadable)
		qt.Check(t, qt.DeepEquals(reload, test.reload))
		qt.Check(t, qt.DeepEquals(restart, test.restart))
	}
}

func TestExample(t *testing.T) {
	flags, _ := newFlags()
	checkGolden(t, "example.yaml", Example(flags))

	// All that is commented out is the default.
	text := settingLine.ReplaceAllString(Example(flags), "$1")
	again, s := newFlags()
	_, want := newFlags()
	want.config = write(t, text)
	qt.Assert(t, qt.IsNil(again.Parse([]string{"--config", want.config})))
	qt.Assert(t, qt.IsNil(Load(again, nil)), qt.Commentf("%s", text))
	qt.Check(t, qt.CmpEquals(s, want, byValue...))
	qt.Check(t, qt.Equals(Source(again, "buffer"), fmt.Sprintf("%s:%d", want.config, 1+strings.Count(text[:strings.Index(text, "\nbuffer:")+1], "\n"))))
}

// settingLine is one that is commented out.
var settingLine = regexp.MustCompile(`(?m)^#([a-z0-9-]+: )`)

func TestExampleOfSettings(t *testing.T) {
	flags, s := newFlags()
	qt.Assert(t, qt.IsNil(flags.Parse([]string{"--config", write(t, everything)})))
	qt.Assert(t, qt.IsNil(Load(flags, nil)))
	example := Example(flags)
	again, t2 := newFlags()
	qt.Assert(t, qt.IsNil(again.Parse([]string{"--config", write(t, example)})))
	qt.Assert(t, qt.IsNil(Load(again, nil)), qt.Commentf("%s", example))
	t2.config = s.config
	qt.Check(t, qt.CmpEquals(t2, s, byValue...), qt.Commentf("%s", example))
}
