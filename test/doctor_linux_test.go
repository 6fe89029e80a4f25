package test

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
)

// condition is something that is wrong with a host.
type condition struct {
	name string
	// finds are the ids of all that finwait doctor must find; it must find nothing else,
	// but for those of may.
	finds, may []string
	// alone is a word for what it needs for itself in a namespace, such as the counters of
	// all its listeners. Of those with the same word there is one at a time.
	alone string
	// plant makes it. What it leaves running with patient.meanwhile ends with the test.
	plant func(*patient)
	// check looks at the numbers; nil for nothing to look at.
	check func(*testing.T, *diagnosis)
}

// wholeNetns is the word for what needs all of a namespace.
const wholeNetns = "namespace"

var conditions = slices.Concat(
	portConditions, timeWaitConditions, openingConditions, listenerConditions, closingConditions,
	resetConditions, conntrackConditions, memoryConditions, settingConditions,
)

// patient is a network namespace that has something.
type patient struct {
	t  *testing.T
	ns *netns.NS
}

// inhabited makes a namespace with a thread in it: one that nothing but a descriptor keeps
// is not found.
func inhabited(t testing.TB) *netns.NS {
	t.Helper()
	ns, leave := netns.New(t), make(chan struct{})
	var there sync.WaitGroup
	arrived := make(chan struct{})
	there.Go(func() {
		ns.Do(func() {
			close(arrived)
			<-leave
		})
	})
	<-arrived
	t.Cleanup(func() {
		close(leave)
		there.Wait()
	})
	return ns
}

// meanwhile calls f again and again in the namespace, on a thread of its own, until the
// test ends. f must not block for long.
func (p *patient) meanwhile(f func()) {
	p.t.Helper()
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		p.ns.Do(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	})
	p.t.Cleanup(func() {
		close(stop)
		running.Wait()
	})
}

// diagnosis is what finwait doctor says as JSON.
type diagnosis struct {
	code           int
	stderr         string
	WatchedSeconds float64           `json:"watched_seconds"`
	Sockets        map[string]uint64 `json:"sockets"`
	Findings       []finding         `json:"findings"`
	Settings       []judgement       `json:"settings"`
	Traffic        *struct {
		Source       string
		Since, Until time.Time
		Opened, Lost uint64
	}
	Time   time.Time
	Unseen []struct{ What, Why string }
}

type finding struct {
	ID, Severity, Subject, Summary, Check string
	Netns                                 uint32
	Facts                                 map[string]any
	Application                           []string
	Sysctls                               []struct{ Line, Note, File, Command string }
}

// ids are those of the findings, each once.
func (d *diagnosis) ids() (ids []string) {
	for _, f := range d.Findings {
		ids = append(ids, f.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// find returns the finding of that id; there must be one.
func (d *diagnosis) find(t *testing.T, id string) finding {
	t.Helper()
	i := slices.IndexFunc(d.Findings, func(f finding) bool { return f.ID == id })
	qt.Assert(t, qt.IsTrue(i >= 0), qt.Commentf("%s is not among %v", id, d.ids()))
	return d.Findings[i]
}

// diagnose runs finwait doctor for the namespace.
func (p *patient) diagnose(args ...string) *diagnosis {
	p.t.Helper()
	return runDoctor(p.t, slices.Concat([]string{"--netns", p.ns.Path(), "--for", "3s"}, args)...)
}

func runDoctor(t *testing.T, args ...string) *diagnosis {
	t.Helper()
	return diagnosed(t, exec.Command(binary(t), slices.Concat([]string{"doctor", "--format", "json"}, args)...))
}

// diagnosed runs a command that is finwait doctor in the end.
func diagnosed(t *testing.T, cmd *exec.Cmd) *diagnosis {
	t.Helper()
	proc := spawn(t, cmd)
	<-proc.ended
	d := &diagnosis{code: cmd.ProcessState.ExitCode(), stderr: proc.stderr.String()}
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(proc.stdout.String()), d)), qt.Commentf("%s%s", proc.stdout.String(), d.stderr))
	return d
}

// check compares what was found with what should have been.
func (d *diagnosis) check(t *testing.T, planted ...condition) {
	t.Helper()
	var want, may []string
	for _, c := range planted {
		want, may = append(want, c.finds...), append(may, c.may...)
	}
	slices.Sort(want)
	got := slices.DeleteFunc(d.ids(), func(id string) bool { return slices.Contains(may, id) && !slices.Contains(want, id) })
	qt.Check(t, qt.DeepEquals(got, slices.Compact(want)), qt.Commentf("%+v\n%s", d.Findings, d.stderr))
	code := 0
	if slices.ContainsFunc(d.Findings, func(f finding) bool { return f.Severity != "info" }) {
		code = 3
	}
	qt.Check(t, qt.Equals(d.code, code))
	qt.Check(t, qt.Equals(d.stderr, ""))
}

// Each condition is found, and nothing else. They are not looked at side by side, for the
// kernel's list can miss a socket when others of its hash slot end (inet_diag_dump_icsk).
func TestDoctor(t *testing.T) {
	for _, c := range conditions {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			p := &patient{t, inhabited(t)}
			c.plant(p)
			d := p.diagnose()
			d.check(t, c)
			if c.check != nil {
				c.check(t, d)
			}
		})
	}
}

// Three conditions in one namespace are each found as if it were alone.
func TestDoctorThreeAtOnce(t *testing.T) {
	for i := range conditions {
		if conditions[i].alone == wholeNetns {
			continue
		}
		three := []condition{conditions[i]}
		three = append(three, companion(three, i+5))
		three = append(three, companion(three, i+11))
		var names []string
		for _, c := range three {
			names = append(names, strings.ReplaceAll(c.name, " ", "_"))
		}
		t.Run(strings.Join(names, "+"), func(t *testing.T) {
			t.Parallel()
			p := &patient{t, inhabited(t)}
			for _, c := range three {
				c.plant(p)
			}
			p.diagnose().check(t, three...)
		})
	}
}

// companion returns the first condition from the i-th on that can stand beside others.
func companion(others []condition, i int) condition {
	for ; ; i++ {
		c := conditions[i%len(conditions)]
		cannot := func(o condition) bool { return o.name == c.name || c.alone != "" && o.alone == c.alone }
		if c.alone != wholeNetns && !slices.ContainsFunc(others, cannot) {
			return c
		}
	}
}
