package logfile

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// The real logrotate moves files away while records are written, and nothing is
// lost. With copytruncate that cannot be had: it cuts off what came after it has
// copied, and its copy may end in the middle of what was just being written.
func TestLogrotate(t *testing.T) {
	program := findLogrotate(t)
	for _, tt := range []struct {
		directives string
		signal     bool
	}{
		{"create 0640", true},
		{"nocreate", true},
		{"create", false}, // nobody says that the file was moved
		{"copytruncate", false},
	} {
		t.Run(tt.directives, func(t *testing.T) {
			path := logPath(t)
			other := t.TempDir()
			config := filepath.Join(other, "config")
			text := fmt.Sprintf("%q {\n\trotate 100\n\tstart 1\n\tmissingok\n\t%s\n}\n", path, tt.directives)
			qt.Assert(t, qt.IsNil(os.WriteFile(config, []byte(text), 0o600)))
			l := mustOpen(t, Options{Path: path})
			done := make(chan error)
			const rounds = 5
			go func() {
				var err error
				for i := 0; i < rounds && err == nil; i++ {
					var out []byte
					if out, err = exec.Command(program, "-f", "-s", filepath.Join(other, "state"), config).CombinedOutput(); err != nil {
						err = fmt.Errorf("%w: %s", err, out)
					}
					if tt.signal {
						l.Reopen()
					}
				}
				done <- err
			}()
			sent := 0
			for running := true; running; sent += 10 {
				select {
				case err := <-done:
					qt.Assert(t, qt.IsNil(err))
					running = false
				default:
				}
				mustSend(t, l, newBatch(sent, 5, 5))
				time.Sleep(50 * time.Microsecond) // what logrotate has to copy and sync is not to be too much
			}
			names := rotated(t, path)
			qt.Check(t, qt.IsTrue(len(names) >= rounds-1), qt.Commentf("%q", names)) // it may have found no file
			// The largest number is the oldest.
			slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) + slices.Compare([]byte(b), []byte(a)) })
			var got []int
			for _, name := range names {
				data := readLog(t, filepath.Join(filepath.Dir(path), name))
				if tt.directives == "copytruncate" {
					data = data[:bytes.LastIndexByte(data, '\n')+1]
				}
				got = append(got, numbers(t, data)...)
			}
			got = append(got, numbers(t, readLog(t, path))...)
			if tt.directives != "copytruncate" {
				checkNumbers(t, got, upTo(0, sent))
				return
			}
			qt.Check(t, qt.IsTrue(slices.IsSorted(got)))
			qt.Check(t, qt.HasLen(slices.Compact(slices.Clone(got)), len(got)))
			qt.Check(t, qt.Equals(got[len(got)-1], sent-1))
		})
	}
}

func findLogrotate(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"logrotate", "/usr/sbin/logrotate"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI_PRIVILEGED") == "1" {
		t.Fatal("CI_PRIVILEGED=1 and no logrotate")
	}
	t.Skip("needs logrotate")
	return ""
}
