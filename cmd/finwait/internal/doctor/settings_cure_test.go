package doctor

import (
	"fmt"
	"slices"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

// Where a line is to go, its place is named, and what sets the default until the next start.
func TestSettingsCure(t *testing.T) {
	const fin, vendors = "net.ipv4.tcp_fin_timeout", "/usr/lib/sysctl.d/50-v.conf"
	of30 := sysctl.Values{fin: "30"}
	abroad := configured(nil)
	abroad.Namespaces = append(abroad.Namespaces, observe.Netns{Inode: 2, Sysctls: of30})
	unread := configured(of30)
	unread.Settings = nil
	byDefault := []Setting{{fin + " = 60", "the kernel's default"}}
	for _, test := range []struct {
		name          string
		host          *observe.Host
		advice        string
		sysctls, once []Setting
	}{
		{"a line", configured(of30, lines(tuning, fin+" = 30")...), "Delete /etc/sysctl.d/99-tuning.conf:1.", nil, byDefault},
		{"a line that does not run yet", configured(nil, lines(tuning, fin+" = 30")...), "Delete /etc/sysctl.d/99-tuning.conf:1.", nil, nil},
		{"the command line", configured(of30, sysctl.Line{Key: fin, Value: "30", File: sysctl.Cmdline}), "Take it off the kernel's command line, in the configuration of the boot loader.", nil, byDefault},
		{"a pattern", configured(of30, lines(tuning, "net.ipv4.tcp_fin_* = 30")...), "Override /etc/sysctl.d/99-tuning.conf:1, which has a pattern, by a line of your own.",
			[]Setting{{fin + " = 60", "the kernel's default, which overrides /etc/sysctl.d/99-tuning.conf:1"}}, nil},
		{"a package's line", configured(of30, lines(vendors, fin+" = 30")...), "Override /usr/lib/sysctl.d/50-v.conf:1, which comes with a package, by a line of your own.",
			[]Setting{{fin + " = 60", "the kernel's default, which overrides /usr/lib/sysctl.d/50-v.conf:1"}}, nil},
		{"no line", configured(of30), "Look for what has set it: no sysctl file does, so it is gone at the next start unless that sets it again.", nil, byDefault},
		{"another line", configured(of30, lines(tuning, fin+" = 61")...), "Look for what has set it since the start: /etc/sysctl.d/99-tuning.conf:1 says 61.", nil, byDefault},
		{"files not known", unread, "Look for what has set it: the sysctl files could not be read.", nil, byDefault},
		{"a container", abroad, "Look at what describes the namespace's container, and delete it there.", byDefault, nil},
		{"what does not exist", configured(nil, lines(tuning, keyRecycle+" = 1", keyRecycle+" = 0")...), "Delete /etc/sysctl.d/99-tuning.conf:1, /etc/sysctl.d/99-tuning.conf:2.", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			findings := Diagnose(test.host)
			f := findings[slices.IndexFunc(findings, func(f Finding) bool { return f.Rule.ID == sysctlFinTimeout || f.Rule.ID == sysctlRecycle })]
			qt.Check(t, qt.Equals(f.Advice()[0], test.advice))
			qt.Check(t, qt.Equals(fmt.Sprint(f.Settings()), fmt.Sprint(test.sysctls)))
			qt.Check(t, qt.Equals(fmt.Sprint(f.Once), fmt.Sprint(test.once)))
		})
	}
}

// What is in force together is compared, and the text says when it is.
func TestSettingsTense(t *testing.T) {
	const reuse, timestamps, buckets = "net.ipv4.tcp_tw_reuse", "net.ipv4.tcp_timestamps", "net.ipv4.tcp_max_tw_buckets"
	both := lines(tuning, reuse+" = 1", timestamps+" = 0")
	for _, test := range []struct {
		name    string
		running sysctl.Values
		set     []sysctl.Line
		id      string
		want    string // none is ""
	}{
		{"both run", sysctl.Values{reuse: "1", timestamps: "0"}, nil, sysctlReuseNoTimestamps, reuse + " = 1 does nothing without timestamps: net.ipv4.tcp_timestamps is 0, as it runs"},
		{"both run and are in files", sysctl.Values{reuse: "1", timestamps: "0"}, both, sysctlReuseNoTimestamps,
			reuse + " = 1 (/etc/sysctl.d/99-tuning.conf:1) does nothing without timestamps: net.ipv4.tcp_timestamps is 0, by /etc/sysctl.d/99-tuning.conf:2"},
		{"both are in files", sysctl.Values{reuse: "2", timestamps: "1"}, both, sysctlReuseNoTimestamps,
			reuse + " = 1 (/etc/sysctl.d/99-tuning.conf:1): from the next start (2 runs now) it does nothing without timestamps: net.ipv4.tcp_timestamps is 0, by /etc/sysctl.d/99-tuning.conf:2"},
		{"both are in files, and one runs", sysctl.Values{reuse: "1", timestamps: "1"}, both, sysctlReuseNoTimestamps,
			reuse + " = 1 (/etc/sysctl.d/99-tuning.conf:1): from the next start it does nothing without timestamps: net.ipv4.tcp_timestamps is 0, by /etc/sysctl.d/99-tuning.conf:2"},
		{"one in a file, the other runs", sysctl.Values{reuse: "2", timestamps: "0"}, both[:1], sysctlReuseNoTimestamps, ""},
		{"one runs, the other in a file", sysctl.Values{reuse: "1", timestamps: "1"}, both[1:], sysctlReuseNoTimestamps, ""},
		{"both run, and one is in a file", sysctl.Values{reuse: "1", timestamps: "0"}, both[:1], sysctlReuseNoTimestamps,
			reuse + " = 1 (/etc/sysctl.d/99-tuning.conf:1) does nothing without timestamps: net.ipv4.tcp_timestamps is 0, as it runs"},
		{"lower, in a file", nil, lines(tuning, buckets+" = 5000"), sysctlMaxTimeWait,
			buckets + " = 5000 (/etc/sysctl.d/99-tuning.conf:1): from the next start (131072 runs now) it is lower than the default, 131,072: it breaks TIME_WAIT rather than sparing it"},
		{"lower, and runs", sysctl.Values{buckets: "5000"}, lines(tuning, buckets+" = 5000"), sysctlMaxTimeWait,
			buckets + " = 5000 (/etc/sysctl.d/99-tuning.conf:1) is lower than the default, 131,072: it breaks TIME_WAIT rather than sparing it"},
		{"raised, and runs", sysctl.Values{"net.ipv4.tcp_max_syn_backlog": "8192"}, lines(tuning, "net.ipv4.tcp_max_syn_backlog = 8192"), sysctlSynBacklog,
			"net.ipv4.tcp_max_syn_backlog = 8192 (/etc/sysctl.d/99-tuning.conf:1) does nothing, as net.ipv4.tcp_syncookies is not 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got string
			for _, f := range Diagnose(configured(test.running, test.set...)) {
				if f.Rule.ID == test.id {
					got = f.Summary
				}
			}
			qt.Check(t, qt.Equals(got, test.want))
		})
	}
}

// Of what was not applied there is one line to set, or that of another finding, and none
// that another finding says is better not had.
func TestSettingsNotApplied(t *testing.T) {
	const retries, abort = "net.ipv4.tcp_syn_retries", "net.ipv4.tcp_abort_on_overflow"
	for _, test := range []struct {
		key, running, file string
		want, ids          []string
	}{
		{retries, "3", "4", []string{retries + " = 4"}, []string{sysctlNotApplied}},
		{retries, "3", "", nil, []string{sysctlNotApplied}},
		{abort, "0", "1", nil, []string{sysctlAbortOnOverflow}},
		{abort, "1", "0", []string{abort + " = 0"}, []string{sysctlAbortOnOverflow, sysctlNotApplied}},
	} {
		findings, got := Diagnose(configured(sysctl.Values{test.key: test.running}, lines(tuning, test.key+" = "+test.file)...)), []string(nil)
		for _, f := range findings {
			for _, s := range slices.Concat(f.Settings(), f.Once) {
				got = append(got, s.Line)
			}
		}
		qt.Check(t, qt.DeepEquals(got, test.want), qt.Commentf("%+v", test))
		qt.Check(t, qt.DeepEquals(idsOf(findings), test.ids))
	}
}

// What is harmless may stay, wherever it is set.
func TestSettingsCureOfTheHarmless(t *testing.T) {
	const key = "net.ipv4.tcp_rfc1337"
	f := Diagnose(configured(sysctl.Values{key: "1"}, lines(tuning, key+" = 1")...))[0]
	qt.Check(t, qt.DeepEquals(f.Advice(), []string{"Keep it if this is what you want.", "Else: delete /etc/sysctl.d/99-tuning.conf:1."}))
	f = Diagnose(configured(sysctl.Values{key: "1"}))[0]
	qt.Check(t, qt.Equals(f.Advice()[0], "Keep it if this is what you want."))
	qt.Check(t, qt.StringContains(f.Advice()[1], "no sysctl file does"))
}
