package procnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Sockstat is how many TCP sockets there are.
type Sockstat struct {
	// InUse and InUse6 are the network namespace's IPv4 and IPv6 sockets in a
	// state other than CLOSE, without mini-sockets: those in TIME_WAIT, those
	// that wait in FIN_WAIT2 for nobody, and half-open ones.
	InUse, InUse6 uint64
	// TimeWait is the namespace's mini-sockets in TIME_WAIT, and those that wait
	// in FIN_WAIT2, of both families. net.ipv4.tcp_max_tw_buckets limits it.
	TimeWait uint64

	// Orphans is the whole host's sockets that no process holds any more,
	// without mini-sockets. net.ipv4.tcp_max_orphans limits it.
	Orphans uint64
	// Allocated is the whole host's sockets of both families, those in CLOSE too,
	// without mini-sockets.
	Allocated uint64
	// MemoryPages is the whole host's memory in buffers of TCP sockets, in pages,
	// as net.ipv4.tcp_mem limits it. Since Linux 6.0 it is up to 1 MiB for each
	// CPU too much or too little (net.core.mem_pcpu_rsv).
	MemoryPages uint64
}

// ReadSockstat reads it for the calling thread's network namespace.
func ReadSockstat() (Sockstat, error) {
	var s Sockstat
	text, err := os.ReadFile(threadNet + "sockstat")
	if err != nil {
		return s, fmt.Errorf("read how many sockets there are: %w", err)
	}
	text6, err := os.ReadFile(threadNet + "sockstat6")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		text6 = []byte("TCP6: inuse 0\n") // no IPv6, and so no socket of it
	case err != nil:
		return s, fmt.Errorf("read how many sockets there are: %w", err)
	}
	return parseSockstat(string(text), string(text6))
}

func parseSockstat(text, text6 string) (s Sockstat, err error) {
	err = readPairs(text, "TCP", map[string]*uint64{
		"inuse": &s.InUse, "tw": &s.TimeWait,
		"orphan": &s.Orphans, "alloc": &s.Allocated, "mem": &s.MemoryPages,
	})
	if err != nil {
		return Sockstat{}, fmt.Errorf("read %s: %w", threadNet+"sockstat", err)
	}
	if err := readPairs(text6, "TCP6", map[string]*uint64{"inuse": &s.InUse6}); err != nil {
		return Sockstat{}, fmt.Errorf("read %s: %w", threadNet+"sockstat6", err)
	}
	return s, nil
}

// readPairs reads numbers from a line such as "TCP: inuse 3 orphan 0 tw 23", each
// after its name. All must be there; others may be.
func readPairs(text, label string, into map[string]*uint64) error {
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(line, label+":")
		if !found {
			continue
		}
		pairs := map[string]string{}
		for fields := strings.Fields(rest); len(fields) >= 2; fields = fields[2:] {
			pairs[fields[0]] = fields[1]
		}
		for name, number := range into {
			n, err := strconv.ParseUint(pairs[name], 10, 64)
			if err != nil {
				return fmt.Errorf("%s %s: %w", label, name, err)
			}
			*number = n
		}
		return nil
	}
	return fmt.Errorf("no %s", label)
}

// MemoryPressure tells that TCP saves memory, on the whole host: from when its buffers
// have more than the second number of net.ipv4.tcp_mem until they have less than the
// first.
func MemoryPressure() (bool, error) {
	text, err := os.ReadFile(threadNet + "protocols")
	if err != nil {
		return false, fmt.Errorf("read whether TCP saves memory: %w", err)
	}
	return parsePressure(string(text))
}

// parsePressure reads the column press of TCP's line, which is the fifth.
func parsePressure(text string) (bool, error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[0] != "TCP" {
			continue
		}
		switch fields[4] {
		case "yes":
			return true, nil
		case "no":
			return false, nil
		}
	}
	return false, fmt.Errorf("read %s: TCP does not tell whether it saves memory", threadNet+"protocols")
}

// EstablishedHash returns the slots of the hash table in which the kernel looks
// up each packet's connection (net.ipv4.tcp_ehash_entries, Linux 6.1), and
// whether the calling thread's network namespace shares it with the initial one.
// The error is [fs.ErrNotExist] where the kernel does not tell.
func EstablishedHash() (slots uint64, shared bool, err error) {
	const path = "/proc/sys/net/ipv4/tcp_ehash_entries"
	n, err := readNumber(path)
	if err != nil {
		return 0, false, fmt.Errorf("read the size of the connection table: %w", err)
	}
	if n < 0 { // proc_tcp_ehash_entries says so that the table is shared
		return -uint64(n), true, nil
	}
	return uint64(n), false, nil
}
