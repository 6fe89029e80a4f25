package test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// TestCommandUsage expects a sentence that names what is wrong and what would
// be right. None of it needs privileges: the command line is looked at first.
func TestCommandUsage(t *testing.T) {
	tests := []struct {
		line string
		says []string
	}{
		{"trace --state BORED", []string{`"BORED"`, "--state", "want one of ESTABLISHED", "TIME_WAIT"}},
		{"trace --transition FIN_WAIT2:BORED", []string{"--transition", `"BORED"`, "want one of ESTABLISHED"}},
		{"trace --transition FIN_WAIT2", []string{"--transition", `"FIN_WAIT2"`, "FIN_WAIT2:TIME_WAIT"}},
		{"trace --transition LISTEN:SYN_RECV", []string{"LISTEN→SYN_RECV does not happen", "CLOSE:SYN_RECV"}},
		{"trace --transition LISTEN:ESTABLISHED", []string{"LISTEN→ESTABLISHED does not happen"}},
		{"trace --addr 10.0.0.0/33", []string{"--addr", `"10.0.0.0/33"`, "10.0.0.0/8"}},
		{"trace --addr localhost", []string{"--addr", `"localhost"`, "10.0.0.0/8"}},
		{"trace --port 70000", []string{"--port", `"70000"`, "1 to 65535"}},
		{"trace --port 0", []string{"--port", `"0"`, "1 to 65535"}},
		{"trace --lport 90-80", []string{"--lport", `"90-80"`, "8000-8999"}},
		{"trace --rport http", []string{"--rport", `"http"`, "1 to 65535"}},
		{"trace -4 -6", []string{"--ipv4", "--ipv6", "contradict"}},
		{"trace -4 --addr 2001:db8::/32", []string{"IPv4", "IPv6", "lets nothing through"}},
		{"trace --state LISTEN --transition FIN_WAIT2:TIME_WAIT", []string{"lets nothing through", "FIN_WAIT2→TIME_WAIT", "LISTEN"}},
		{"trace --format yaml", []string{"--format", `"yaml"`, "table", "json", "csv", "logfmt"}},
		{"trace --count 0", []string{"--count 0"}},
		{"trace --count many", []string{"--count", `"many"`}},
		{"trace --duration -1s", []string{"--duration -1s", "10s"}},
		{"trace --duration 10", []string{"--duration", `"10"`}},
		{"trace --buffer 3", []string{"--buffer 3", "power of two", "1 to 1024"}},
		{"trace --netns nosuch", []string{"--netns", `"nosuch"`, "no such file"}},
		{"trace --cgroup nosuch", []string{"--cgroup", `"nosuch"`, "id or the path"}},
		{"trace --uid nosuchuser", []string{"--uid", `"nosuchuser"`, "user id or the name"}},
		{"trace --pid -1", []string{"--pid", `"-1"`, "process id"}},
		{"trace --comm abcdefghijklmnop", []string{"--comm", `"abcdefghijklmnop"`, "1 to 15 bytes"}},
		{"trace --comm=", []string{"--comm", "empty"}},
		{"trace --state=", []string{"--state", "empty"}},
		{"trace --netns 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", []string{"17 network namespaces", "16"}},
		{"trace --frobnicate", []string{"unknown flag", "--frobnicate"}},
		{"trace stray", []string{`"stray"`}},
		{"conns --slow ESTABLISHED", []string{"--slow", `"ESTABLISHED"`, "CLOSE_WAIT:5m"}},
		{"conns --slow BORED:10s", []string{"--slow", `"BORED"`, "want one of ESTABLISHED"}},
		{"conns --slow LISTEN:10s", []string{"--slow", "no connection is in LISTEN"}},
		{"conns --slow ESTABLISHED:soon", []string{"--slow", `"soon"`, "90s"}},
		{"conns --slow TIME_WAIT:10s --wait-timewait=false", []string{"TIME_WAIT"}},
		{"conns --reason bored", []string{"--reason", `"bored"`, "want one of rst_sent, timeout", "rst_received"}},
		{"conns --state LISTEN", []string{"unknown flag", "--state"}},
		{"conns --format yaml", []string{"--format", `"yaml"`, "logfmt"}},
		{"count --watch 1ms", []string{"--watch 1ms", "100ms or more"}},
		{"count --by foo", []string{`"foo"`, "netns, listener, process or remote"}},
		{"count --format csv", []string{`"csv"`, "table or json"}},
		{"count stray", []string{`"stray"`}},
		{"profile --by colour", []string{`"colour"`, "service, remote-port, cgroup, process or state"}},
		{"profile --by=", []string{`--by ""`, "service"}},
		{"profile --format csv", []string{`"csv"`, "table or json"}},
		{"profile --interval 1ms", []string{"--interval 1ms", "100ms or more"}},
		{"profile --interval 0s", []string{"--interval 0s", "100ms or more"}},
		{"profile --duration 0s", []string{"--duration 0s", "10s"}},
		{"profile --top -1", []string{"--top -1"}},
		{"profile --state CLOSE", []string{"nothing to measure", "CLOSE"}},
		{"profile --transition CLOSE:LISTEN", []string{"nothing to measure", "CLOSE"}},
		{"profile --state LISTEN --transition FIN_WAIT2:TIME_WAIT", []string{"nothing to measure"}},
		{"profile --transition LISTEN:SYN_RECV", []string{"LISTEN→SYN_RECV does not happen"}},
		{"profile --lport 0", []string{"--lport", `"0"`}},
		{"profile --evidence magic", []string{`"magic"`, "probe or timer"}},
		{"profile stray", []string{`"stray"`}},
		{"stuck --over BORED:1m", []string{"--over", `"BORED"`, "want one of ESTABLISHED"}},
		{"stuck --over LISTEN:1m", []string{"--over", "no connection is in LISTEN"}},
		{"stuck --over CLOSE:1m", []string{"--over", "no connection is in CLOSE"}},
		{"stuck --over CLOSE_WAIT", []string{"--over", `"CLOSE_WAIT"`, "CLOSE_WAIT:5m"}},
		{"stuck --over CLOSE_WAIT:soon", []string{"--over", `"soon"`, "90s"}},
		{"stuck --over 0s", []string{"--over", `"0s"`, "90s"}},
		{"stuck --over=", []string{"--over", "empty"}},
		{"stuck --by listener", []string{`"listener"`, "want process"}},
		{"stuck --by=", []string{"--by", "want process"}},
		{"stuck --interval 1ms", []string{"--interval 1ms", "100ms or more"}},
		{"stuck --duration -1s", []string{"--duration -1s", "10s"}},
		{"stuck --format yaml", []string{"--format", `"yaml"`, "table", "json", "csv", "logfmt"}},
		{"stuck --evidence hearsay", []string{"--evidence", `"hearsay"`, "probe or timer"}},
		{"stuck --port 0", []string{"--port", `"0"`, "1 to 65535"}},
		{"stuck -4 -6", []string{"--ipv4", "--ipv6", "contradict"}},
		{"stuck -4 --addr 2001:db8::/32", []string{"IPv4", "IPv6", "lets nothing through"}},
		{"stuck --state CLOSE_WAIT", []string{"unknown flag", "--state"}},
		{"stuck stray", []string{`"stray"`}},
		{"doctor --for 100ms", []string{"--for 100ms", "1s or more"}},
		{"doctor --for -1s", []string{"--for -1s", "1s or more"}},
		{"doctor --for 24h1s", []string{"--for 24h0m1s", "24h or less"}},
		{"doctor --format csv", []string{`"csv"`, "table or json"}},
		{"doctor --source agent --netns self", []string{"--source agent and --netns contradict each other"}},
		{"doctor --source hearsay", []string{`"hearsay"`, "auto, agent or kernel"}},
		{"doctor --netns nosuch", []string{"--netns", `"nosuch"`, "no such file"}},
		{"doctor --netns=", []string{"--netns", "empty"}},
		{"doctor --explain close_wait_leek", []string{"--explain", `"close_wait_leek"`, "--list has them all"}},
		{"doctor --explain time-wait", []string{`"time-wait"`, "did you mean time-wait-large", "time-wait-refused?", "--list"}},
		{"doctor --explain TIME_WAIT_LIMITS", []string{`"TIME_WAIT_LIMITS"`, "did you mean time-wait-limit?"}},
		{"doctor --explain=", []string{"--explain", "--list has them all"}},
		{"doctor --explain time-wait-limit --list", []string{"--list", "--explain", "contradict"}},
		{"doctor --log-only", []string{"--log-only", "--replay"}},
		{"doctor --replay x --log-only --for 3s", []string{"--log-only", "--for", "contradict"}},
		{"doctor --replay x --source kernel", []string{"--replay", "--source", "contradict"}},
		{"doctor --replay x --pin-path /x", []string{"--pin-path", "--source agent"}},
		{"doctor --source kernel --pin-path /x", []string{"--pin-path", "--source agent"}},
		{"doctor --explain time-wait-limit,nosuch", []string{`"nosuch"`, "--list has them all"}},
		{"doctor stray", []string{`"stray"`, "takes no arguments", "--netns"}},
		{"doctor time_wait_limit", []string{`"time_wait_limit"`, "did you mean --explain time-wait-limit?"}},
		{"explain NOSUCH", []string{`"NOSUCH"`}},
		{"explain FIN_WAIT2:NOSUCH", []string{`"NOSUCH"`}},
		{"explain --format csv", []string{`"csv"`, "table or json"}},
		{"frobnicate", []string{`"frobnicate"`}},
		{"--frobnicate", []string{"unknown flag", "--frobnicate"}},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			args := strings.Fields(tt.line)
			hint := "Try 'finwait " + args[0] + " --help'.\n"
			if strings.Contains(args[0], "frobnicate") {
				hint = "Try 'finwait --help'.\n"
			}
			res := finwait(t, args...)
			checkFailure(t, res, 2, tt.says...)
			qt.Check(t, qt.IsTrue(strings.HasSuffix(res.stderr, "\n"+hint)), qt.Commentf("%s", res.stderr))
		})
	}
}

// TestCommandHostileArgument expects what a user typed to come back harmless.
func TestCommandHostileArgument(t *testing.T) {
	for _, args := range [][]string{
		{"trace", "--state", "\x1b[31m"}, {"trace", "--addr", "\x1b[31m"}, {"trace", "--netns", "\x1b[31m"},
		{"trace", "--format", "\x1b[31m"}, {"trace", "\x1b[31m"}, {"count", "\x1b[31m"},
		{"profile", "--by", "\x1b[31m"}, {"profile", "--format", "\x1b[31m"},
		{"stuck", "\x1b[31m"}, {"stuck", "--over", "\x1b[31m:1s"},
		{"doctor", "\x1b[31m"}, {"doctor", "--explain", "\x1b[31m"}, {"doctor", "--source", "\x1b[31m"}, {"doctor", "--netns", "\x1b[31m"},
		{"explain", "\x1b[31m"}, {"\x1b[31m"}, {"trace", "--\x1b[31m"},
	} {
		res := finwait(t, args...)
		checkFailure(t, res, 2)
		qt.Check(t, qt.IsFalse(strings.Contains(res.stderr, "\x1b")), qt.Commentf("%q: %q", args, res.stderr))
	}
}

func TestCommandHelp(t *testing.T) {
	tests := []struct {
		line string
		says []string
	}{
		{"", []string{"Usage:", "trace", "count", "doctor", "explain", "completion"}},
		{"--help", []string{"Usage:", "trace", "count", "doctor", "explain", "completion"}},
		{"trace --help", []string{"finwait trace", "--transition", "--netns", "--duration"}},
		{"stuck --help", []string{"finwait stuck", "CLOSE_WAIT", "--over", "--interval", "--by process"}},
		{"count --help", []string{"finwait count", "--watch", "--by"}},
		{"doctor --help", []string{"finwait doctor", "--explain", "--for", "--log-only", "Exit code 0"}},
		{"explain --help", []string{"finwait explain"}},
		{"completion bash", []string{"__finwait_", "complete "}},
		{"completion zsh", []string{"#compdef finwait"}},
		{"completion fish", []string{"complete -c finwait"}},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			res := finwait(t, strings.Fields(tt.line)...)
			qt.Check(t, qt.Equals(res.code, 0))
			qt.Check(t, qt.Equals(res.stderr, ""))
			for _, word := range tt.says {
				qt.Check(t, qt.StringContains(res.stdout, word))
			}
		})
	}
}

// TestCommandCompletionScript lets bash read the script.
func TestCommandCompletionScript(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(bash, "-n")
	cmd.Stdin = strings.NewReader(finwait(t, "completion", "bash").stdout)
	res := runCommand(t, cmd)
	qt.Check(t, qt.Equals(res, result{}))
}
