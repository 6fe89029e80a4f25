//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// totals are what the kernel keeps count of itself, in one network namespace.
type totals struct {
	// sockets are the full sockets and mini-sockets, IPv4 and IPv6.
	sockets int64
	// established is CurrEstab: ESTABLISHED and CLOSE_WAIT.
	established int64
}

// readTotals reads those of the calling thread's namespace.
func readTotals() (totals, error) {
	var t totals
	for _, part := range []struct {
		file, line string
		fields     []string
		into       *int64
	}{
		{"sockstat", "TCP:", []string{"inuse", "tw"}, &t.sockets},
		{"sockstat6", "TCP6:", []string{"inuse"}, &t.sockets},
		{"snmp", "Tcp:", []string{"CurrEstab"}, &t.established},
	} {
		text, err := os.ReadFile("/proc/thread-self/net/" + part.file)
		if part.file == "sockstat6" && os.IsNotExist(err) {
			continue // no IPv6
		}
		if err != nil {
			return t, err
		}
		for _, field := range part.fields {
			n, err := totalOf(text, part.line, field)
			if err != nil {
				return t, fmt.Errorf("%s: %w", part.file, err)
			}
			*part.into += n
		}
	}
	return t, nil
}

// totalOf returns the number of that name in the line that starts with label:
// after its name, "TCP: inuse 3 orphan 0", or where its name stands in the line
// of that label before, "Tcp: ActiveOpens CurrEstab" and "Tcp: 5 3".
func totalOf(text []byte, label, name string) (int64, error) {
	var names [][]byte
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 0 || string(fields[0]) != label {
			continue
		}
		for i := 1; i < len(fields); i++ {
			switch {
			case i < len(names) && string(names[i]) == name:
				return strconv.ParseInt(string(fields[i]), 10, 64)
			case string(fields[i]) == name && i+1 < len(fields):
				if n, err := strconv.ParseInt(string(fields[i+1]), 10, 64); err == nil {
					return n, nil
				}
			}
		}
		names = fields
	}
	return 0, fmt.Errorf("no %s in %s", name, label)
}
