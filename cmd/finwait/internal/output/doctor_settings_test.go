package output

import (
	"encoding/json"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

// The lines of sysctl files that bear on TCP are told, whatever they hold; what is not
// known is absent.
func TestDoctorSettings(t *testing.T) {
	host := &observe.Host{
		Namespaces: []observe.Netns{{Inode: 1, Host: true, Sysctls: sysctl.Values{"net.ipv4.tcp_syncookies": "1"}}},
		Settings: &sysctl.Files{Lines: []sysctl.Line{
			{Key: "net.ipv4.tcp_syncookies", Value: "1", File: "/etc/sysctl.d/a.conf", Number: 3},
			{Key: "net.ipv4.tcp_sack", Value: "\x1b[2J\xff", File: sysctl.Cmdline},
		}},
	}
	var got struct{ Settings []map[string]any }
	text := AppendDoctorJSON(nil, host, nil)
	qt.Assert(t, qt.IsNil(json.Unmarshal(text, &got)), qt.Commentf("%s", text))
	qt.Assert(t, qt.HasLen(got.Settings, 2))
	qt.Check(t, qt.DeepEquals(got.Settings[0], map[string]any{
		"sysctl": "net.ipv4.tcp_syncookies", "value": "1", "file": "/etc/sysctl.d/a.conf", "line": 3.0, "running": "1",
		"verdict": "default", "why": "It is the kernel's default: the line changes nothing.",
	}))
	qt.Check(t, qt.DeepEquals(got.Settings[1], map[string]any{
		"sysctl": "net.ipv4.tcp_sack", "value": "\x1b[2J\ufffd", "file": "/proc/cmdline",
		"verdict": "effective", "why": "Whether selective acknowledgements are used. The default is 1.",
	}))

	host.Settings = nil
	var none map[string]any
	qt.Assert(t, qt.IsNil(json.Unmarshal(AppendDoctorJSON(nil, host, nil), &none)))
	_, has := none["settings"]
	qt.Check(t, qt.IsFalse(has))
}
