package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// settingConditions are of values that run in a namespace. Files are only for that of
// the host: see TestDoctorSysctlFiles.
var settingConditions = []condition{
	{
		name: "fin timeout lowered", finds: []string{"sysctl-fin-timeout"},
		plant: func(p *patient) { p.ns.Sysctl("net.ipv4.tcp_fin_timeout", "30") },
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "sysctl-fin-timeout")
			qt.Check(t, qt.Equals(f.Facts["running"], any("30")))
			qt.Check(t, qt.Equals(f.Sysctls[0].Line, "net.ipv4.tcp_fin_timeout = 60"))
		},
	},
	{
		name: "reuse of inbound connections", finds: []string{"sysctl-tw-reuse-inbound"}, alone: outgoingPorts,
		plant: func(p *patient) {
			p.ns.Sysctl("net.ipv4.tcp_tw_reuse", "1")
			p.leaveInbound(5023)
		},
		check: func(t *testing.T, d *diagnosis) {
			qt.Check(t, qt.Equals(d.find(t, "sysctl-tw-reuse-inbound").Facts["time_wait_inbound"], any(float64(connections))))
		},
	},
	{
		name: "reuse without timestamps", finds: []string{"sysctl-tw-reuse-no-timestamps", "sysctl-timestamps-off"},
		plant: func(p *patient) {
			p.ns.Sysctl("net.ipv4.tcp_tw_reuse", "1")
			p.ns.Sysctl("net.ipv4.tcp_timestamps", "0")
		},
	},
	{
		name: "fewer buckets", finds: []string{"sysctl-max-tw-buckets"},
		plant: func(p *patient) { // a namespace starts with the kernel's default
			p.ns.Sysctl("net.ipv4.tcp_max_tw_buckets", strconv.Itoa(p.sysctl("net/ipv4/tcp_max_tw_buckets")-1))
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "sysctl-max-tw-buckets")
			lowered, err := strconv.Atoi(f.Facts["running"].(string))
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(f.Facts["default"], any(strconv.Itoa(lowered+1))))
		},
	},
	{
		name: "rfc1337", finds: []string{"sysctl-rfc1337"},
		plant: func(p *patient) { p.ns.Sysctl("net.ipv4.tcp_rfc1337", "1") },
	},
	{
		name: "abort on overflow", finds: []string{"sysctl-abort-on-overflow"},
		plant: func(p *patient) { p.ns.Sysctl("net.ipv4.tcp_abort_on_overflow", "1") },
	},
	{
		name: "no syncookies", finds: []string{"sysctl-syncookies-off"}, alone: listenerCounters,
		plant: func(p *patient) { p.ns.Sysctl("net.ipv4.tcp_syncookies", "0") },
	},
	{
		name: "always syncookies", finds: []string{"sysctl-syncookies-always"}, alone: listenerCounters,
		plant: func(p *patient) { p.ns.Sysctl("net.ipv4.tcp_syncookies", "2") },
	},
	{
		name: "services among outgoing ports", finds: []string{"sysctl-port-range"}, alone: outgoingPorts,
		plant: func(p *patient) {
			p.ns.Sysctl("net.ipv4.ip_local_port_range", "5300 60999")
			p.ns.Sysctl("net.ipv4.ip_local_reserved_ports", "5323")
			for _, port := range []int{5299, 5301, 5323} {
				p.ns.Do(func() { p.listen(port) })
			}
		},
		check: func(t *testing.T, d *diagnosis) {
			f := d.find(t, "sysctl-port-range")
			qt.Check(t, qt.Equals(f.Facts["ports"], any("5301")))
			qt.Check(t, qt.Equals(f.Sysctls[0].Line, "net.ipv4.ip_local_reserved_ports = 5301,5323"))
		},
	},
}

// sysctl reads one that is a number.
func (p *patient) sysctl(path string) (n int) {
	p.t.Helper()
	p.ns.Do(func() {
		text, err := os.ReadFile("/proc/sys/" + path)
		qt.Assert(p.t, qt.IsNil(err))
		n, err = strconv.Atoi(strings.TrimSpace(string(text)))
		qt.Assert(p.t, qt.IsNil(err))
	})
	return n
}

// listen has a listener in the namespace of the thread until the test ends.
func (p *patient) listen(port int) int {
	p.t.Helper()
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	qt.Assert(p.t, qt.IsNil(err))
	p.t.Cleanup(func() { unix.Close(l) })
	qt.Assert(p.t, qt.IsNil(unix.Bind(l, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})))
	qt.Assert(p.t, qt.IsNil(unix.Listen(l, connections)))
	return l
}

// leaveInbound leaves connections in TIME_WAIT at a listener that stays.
func (p *patient) leaveInbound(port int) {
	p.t.Helper()
	p.ns.Do(func() {
		l := p.listen(port)
		for range connections {
			_, err := connectOnce(l, unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}, serverFirst)
			qt.Assert(p.t, qt.IsNil(err))
		}
	})
}

// judgement is what finwait doctor says of a line of a sysctl file.
type judgement struct {
	Sysctl, Value, File, Running, Verdict, Why, ID string
	Line                                           int
}

// asHost runs finwait doctor where it sees a host of its own: the first process of a PID
// namespace, in a network namespace of its own, and with none but these sysctl files. It
// sets what the lines of "running" say, before.
func asHost(t *testing.T, files map[string]string, running string) *diagnosis {
	t.Helper()
	netns.RequireRoot(t)
	root := t.TempDir()
	for _, folder := range []string{"/etc/sysctl.d", "/usr/lib/sysctl.d"} {
		qt.Assert(t, qt.IsNil(os.MkdirAll(root+folder, 0o755)))
	}
	for path, text := range files {
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(root+path), 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(root, path), []byte(text), 0o644)))
	}
	qt.Assert(t, qt.IsNil(os.WriteFile(root+"/running", []byte(running), 0o644)))
	const script = `set -e
for folder in /etc/sysctl.d /run/sysctl.d /usr/local/lib/sysctl.d /usr/lib/sysctl.d; do
	[ ! -d $folder ] || mount -t tmpfs none $folder
	[ ! -d $1$folder ] || cp $1$folder/* $folder/ 2>/dev/null || true
done
if [ -e /etc/sysctl.conf ]; then
	[ -e $1/etc/sysctl.conf ] || : >$1/etc/sysctl.conf
	mount --bind $1/etc/sysctl.conf /etc/sysctl.conf
fi
if [ -e $1/run/systemd/system ]; then
	mount --bind $1/run /run
else
	mount -t tmpfs none /run
fi
ip link set lo up
sysctl -q -e -p $1/running
shift
exec "$@"`
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh",
		root, binary(t), "doctor", "--format", "json", "--netns", "self", "--for", "1s")
	return diagnosed(t, cmd)
}

// theAdvice is what has been handed on since 2008, and what was added to it.
const theAdvice = `# from a forum
net.ipv4.tcp_syncookies=1
net.ipv4.tcp_tw_reuse=1
net.ipv4.tcp_tw_recycle=1
net.ipv4.tcp_fin_timeout=30
`

const moreAdvice = theAdvice + `net.ipv4.tcp_keepalive_time=1200
net.ipv4.ip_local_port_range=1024 65000
net.ipv4.tcp_max_syn_backlog=8192
net.ipv4.tcp_max_tw_buckets=5000
`

var sysctlFileTests = []struct {
	name    string
	files   map[string]string
	running string
	want    []string // of each line, in order
	finds   []string
}{
	{
		name: "as it comes", files: map[string]string{"/etc/sysctl.d/10-a.conf": "#net.ipv4.tcp_syncookies=0\n"},
	},
	{
		name: "the advice", files: map[string]string{"/etc/sysctl.d/99-tuning.conf": theAdvice}, running: theAdvice,
		want: []string{
			"tcp_syncookies 1 default", "tcp_tw_reuse 1 effective", "tcp_tw_recycle  no-effect sysctl-tw-recycle",
			"tcp_fin_timeout 30 no-effect sysctl-fin-timeout",
		},
		finds: []string{"sysctl-fin-timeout", "sysctl-tw-recycle"},
	},
	{
		name: "more advice", files: map[string]string{"/etc/sysctl.d/99-tuning.conf": moreAdvice}, running: moreAdvice,
		want: []string{
			"tcp_syncookies 1 default", "tcp_tw_reuse 1 effective", "tcp_tw_recycle  no-effect sysctl-tw-recycle",
			"tcp_fin_timeout 30 no-effect sysctl-fin-timeout", "tcp_keepalive_time 1200 effective",
			"ip_local_port_range 1024 65000 effective", "tcp_max_syn_backlog 8192 no-effect sysctl-syn-backlog",
			"tcp_max_tw_buckets 5000 harmful sysctl-max-tw-buckets",
		},
		finds: []string{"sysctl-fin-timeout", "sysctl-max-tw-buckets", "sysctl-syn-backlog", "sysctl-tw-recycle"},
	},
	{
		name: "in disorder",
		files: map[string]string{
			"/usr/lib/sysctl.d/10-vendor.conf": "net.ipv4.tcp_syn_retries=5\n",
			"/etc/sysctl.d/20-local.conf":      "net.ipv4.tcp_syn_retries=4\nnet.ipv4.tcp_synackretries=2\nnet.ipv4.tcp_retries2=8\n",
			"/etc/sysctl.d/30-more.conf":       "net.ipv4.tcp_syn_retries=3\n",
		},
		running: "net.ipv4.tcp_syn_retries=3\n",
		want: []string{
			"tcp_syn_retries 3 overridden", "tcp_syn_retries 3 overridden sysctl-overridden", "tcp_synackretries  unknown sysctl-unknown",
			"tcp_retries2 15 effective sysctl-not-applied", "tcp_syn_retries 3 effective",
		},
		finds: []string{"sysctl-not-applied", "sysctl-overridden", "sysctl-unknown"},
	},
}

func TestDoctorSysctlFiles(t *testing.T) {
	for _, test := range sysctlFileTests {
		t.Run(strings.ReplaceAll(test.name, " ", "_"), func(t *testing.T) {
			d := asHost(t, test.files, test.running)
			d.check(t, condition{finds: test.finds})
			var got []string
			for _, j := range d.Settings {
				if j.File == "/proc/cmdline" {
					continue // of the machine that the test runs on
				}
				got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", strings.TrimPrefix(strings.TrimPrefix(j.Sysctl, "net.ipv4."), "net.core."), j.Running, j.Verdict, j.ID)))
				qt.Check(t, qt.IsTrue(j.Why != "" && j.Line > 0))
			}
			qt.Check(t, qt.DeepEquals(got, test.want), qt.Commentf("%+v", d.Settings))
		})
	}
}

// What is in /etc/sysctl.conf has no effect where systemd runs and nothing leads to it.
func TestDoctorSysctlConf(t *testing.T) {
	if _, err := os.Stat("/etc/sysctl.conf"); err != nil {
		t.Skip("no file to put another in place of: ", err)
	}
	conf := map[string]string{"/etc/sysctl.conf": "net.ipv4.tcp_syncookies=0\n"}
	d := asHost(t, conf, "")
	d.check(t, condition{})
	qt.Check(t, qt.HasLen(d.Settings, 0))
	conf["/run/systemd/system/is-there"] = ""
	d = asHost(t, conf, "")
	d.check(t, condition{finds: []string{"sysctl-conf-not-read"}})
	qt.Assert(t, qt.HasLen(d.Settings, 1))
	qt.Check(t, qt.Equals(d.Settings[0].Verdict, "no-effect"))
	qt.Check(t, qt.Equals(d.find(t, "sysctl-conf-not-read").Facts["sysctls"], any("net.ipv4.tcp_syncookies")))
}
