package tracer

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"testing/fstest"

	"github.com/go-quicktest/qt"
)

func TestDiagnoseHost(t *testing.T) {
	failure := fmt.Errorf("evidence by timer: %w", errNoSymbols)
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	for _, test := range []struct {
		name     string
		host     fstest.MapFS
		noHelper bool
		want     string
	}{
		{"no BTF", fstest.MapFS{}, false, "not supported: the kernel has no BTF .*CONFIG_DEBUG_INFO_BTF.*"},
		{"lockdown", fstest.MapFS{"sys/kernel/security/lockdown": file("none integrity [confidentiality]\n")}, false, "not supported: kernel lockdown is in confidentiality mode.*"},
		{"old", fstest.MapFS{"proc/sys/kernel/osrelease": file("5.10.0-30\n")}, true, `not supported: the kernel is too old \(it is 5.10.0-30; finwait needs Linux 5.12.*`},
		{"symbols hidden", fstest.MapFS{"proc/kallsyms": file("0000000000000000 T x\n")}, false, "not supported: the kernel hides its symbols' addresses.*kptr_restrict.*"},
		{"else", fstest.MapFS{"proc/kallsyms": file("ffffffff81000000 T x\n")}, false, failure.Error()},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name != "no BTF" {
				test.host["sys/kernel/btf/vmlinux"] = file("")
			}
			err := diagnoseHost(test.host, func() bool { return test.noHelper }, failure)
			qt.Assert(t, qt.ErrorMatches(err, test.want))
			qt.Assert(t, qt.Equals(errors.Is(err, ErrNotSupported), test.name != "else"))
		})
	}
}

func TestNewWithoutPrivileges(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("needs a user without privileges; test/ runs the command as one")
	}
	_, err := New(nil)
	qt.Assert(t, qt.ErrorIs(err, os.ErrPermission))
	qt.Assert(t, qt.ErrorMatches(err, "tracing needs root, or CAP_BPF, CAP_PERFMON and CAP_SYSLOG.*"))
}

// The probe behind "the kernel is too old" does not say so of a kernel that is not.
func TestHelperMissing(t *testing.T) {
	requireRoot(t)
	qt.Assert(t, qt.IsFalse(helperMissing()))
}
