package config

import (
	"testing"

	"github.com/go-quicktest/qt"
)

func TestSize(t *testing.T) {
	for text, want := range map[string]struct {
		size    Size
		written string
	}{
		"0":                   {0, "0"},
		"1":                   {1, "1"},
		"1024":                {1024, "1KiB"},
		"1000":                {1000, "1kB"},
		"100MiB":              {100 << 20, "100MiB"},
		"100 MiB":             {100 << 20, "100MiB"},
		"100mib":              {100 << 20, "100MiB"},
		"100MB":               {100_000_000, "100MB"},
		"1536KiB":             {1536 << 10, "1536KiB"},
		"1024GiB":             {1 << 40, "1TiB"},
		"12B":                 {12, "12"},
		"8191PiB":             {8191 << 50, "8191PiB"},
		"9223372036854775807": {1<<63 - 1, "9223372036854775807"},
	} {
		var s Size
		qt.Check(t, qt.IsNil(s.Set(text)))
		qt.Check(t, qt.Equals(s, want.size), qt.Commentf("%s", text))
		qt.Check(t, qt.Equals(s.String(), want.written))
	}
	for text, want := range map[string]string{
		"":                    `"" is not a size such as 100MiB, 1GB or 1048576`,
		"MiB":                 `"MiB" is not a size such as .*`,
		"-1":                  `"-1" is not a size such as .*`,
		"+1":                  `"\+1" is not a size such as .*`,
		"1.5GiB":              `"1.5GiB" is not a size such as .*`,
		"1MiBB":               `"1MiBB" is not a size such as .*`,
		"1i":                  `"1i" is not a size such as .*`,
		"1 MiB ":              `"1 MiB " is not a size such as .*`,
		"100M":                `"100M" can be read in two ways: say 100MiB \(steps of 1024\) or 100MB \(of 1000\)`,
		"8k":                  `"8k" can be read in two ways: say 8KiB \(steps of 1024\) or 8KB \(of 1000\)`,
		"8192PiB":             `"8192PiB" is more than there can be`,
		"9223372036854775808": `"9223372036854775808" is more than there can be`,
	} {
		s := Size(5)
		qt.Check(t, qt.ErrorMatches(s.Set(text), want))
		qt.Check(t, qt.Equals(s, Size(5)))
	}
}

func FuzzSize(f *testing.F) {
	for _, seed := range []string{"", "1", "100MiB", "5 kB", "8191PiB", "99999999999999999999", "1M"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, err := ParseSize(text)
		if err != nil {
			return
		}
		if size < 0 {
			t.Fatalf("%q is %d", text, size)
		}
		again, err := ParseSize(size.String())
		if err != nil || again != size {
			t.Fatalf("%q is %d, and %q is %d, %v", text, size, size.String(), again, err)
		}
	})
}
