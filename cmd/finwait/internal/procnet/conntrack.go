package procnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Conntrack is what the kernel's connection tracking has in a network namespace.
// Nothing is tracked there until a rule of the namespace asks for it.
type Conntrack struct {
	// Entries is how many connections are tracked in the namespace, those that
	// have ended and wait for their timeout too.
	Entries uint64
	// Max is how many may be, 0 for any number. Each namespace may have so many of
	// its own, but the number is one for all, and set in the initial one.
	Max uint64
	// Drops are what the namespace's packets have met, summed over the CPUs:
	//
	//   - "drop": packets dropped as they could not be tracked, most of all as the
	//     table was full and no entry could give way
	//   - "early_drop": entries that gave way as the table was full, those of
	//     connections that were not assured, as of TCP those whose handshake was not
	//     complete
	//   - "insert_failed": entries that could not be put into the table, most of
	//     all as there was one of the same addresses and ports
	//
	// The kernel counts each in 32 bits on each CPU. One that it does not tell is
	// absent; all are if it is built without CONFIG_NF_CONNTRACK_PROCFS.
	Drops Counters
}

// ReadConntrack reads it for the calling thread's network namespace. The error is
// [fs.ErrNotExist] if the kernel has no connection tracking or has not loaded it.
func ReadConntrack() (Conntrack, error) {
	const what = "read connection tracking: %w"
	entries, err := readCount("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return Conntrack{}, fmt.Errorf(what, err)
	}
	limit, err := readCount("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return Conntrack{}, fmt.Errorf(what, err)
	}
	drops, err := readDrops()
	if err != nil {
		return Conntrack{}, fmt.Errorf(what, err)
	}
	return Conntrack{entries, limit, drops}, nil
}

// dropColumns are those of Conntrack.Drops.
var dropColumns = []string{"drop", "early_drop", "insert_failed"}

func readDrops() (Counters, error) {
	const path = threadNet + "stat/nf_conntrack"
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Counters{}, nil
	}
	if err != nil {
		return nil, err
	}
	drops, err := sumColumns(string(text), dropColumns...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return drops, nil
}

// sumColumns sums the columns of a table with a line of names and then one of
// hexadecimal numbers for each CPU. Columns that the table does not have are
// absent.
func sumColumns(text string, columns ...string) (Counters, error) {
	header, rest, _ := strings.Cut(text, "\n")
	names := strings.Fields(header)
	place := map[string]int{}
	for i, name := range names {
		place[name] = i
	}
	sums := Counters{}
	for line := range strings.Lines(rest) {
		values := strings.Fields(line)
		if len(values) != len(names) {
			return nil, fmt.Errorf("%d names and %d values", len(names), len(values))
		}
		for _, column := range columns {
			i, found := place[column]
			if !found {
				continue
			}
			n, err := strconv.ParseUint(values[i], 16, 32)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", column, err)
			}
			sums[column] += n
		}
	}
	return sums, nil
}
