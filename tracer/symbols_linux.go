//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
)

// symbolNames are the names of enum finwait_symbol in bpf/finwait.h, in its
// order.
var symbolNames = [bpfFinwaitSymbolNUM_SYMBOLS]string{
	bpfFinwaitSymbolSYMBOL_TW_TIMER_HANDLER:        "tw_timer_handler",
	bpfFinwaitSymbolSYMBOL_REQSK_TIMER_HANDLER:     "reqsk_timer_handler",
	bpfFinwaitSymbolSYMBOL_TWSK_DESCHEDULE:         "inet_twsk_deschedule_put",
	bpfFinwaitSymbolSYMBOL_TWSK_PURGE:              "inet_twsk_purge",
	bpfFinwaitSymbolSYMBOL_TIMEWAIT_PROCESS:        "tcp_timewait_state_process",
	bpfFinwaitSymbolSYMBOL_TCP_V4RCV:               "tcp_v4_rcv",
	bpfFinwaitSymbolSYMBOL_TCP_V6RCV:               "tcp_v6_rcv",
	bpfFinwaitSymbolSYMBOL_TCP_V4ERR:               "tcp_v4_err",
	bpfFinwaitSymbolSYMBOL_TCP_V6ERR:               "tcp_v6_err",
	bpfFinwaitSymbolSYMBOL_TCP_ABORT:               "tcp_abort",
	bpfFinwaitSymbolSYMBOL_DIAG_DESTROY:            "tcp_diag_destroy",
	bpfFinwaitSymbolSYMBOL_TWSK_SCHEDULE:           "__inet_twsk_schedule",
	bpfFinwaitSymbolSYMBOL_TCP_TIME_WAIT:           "tcp_time_wait",
	bpfFinwaitSymbolSYMBOL_TCP_RCV_STATE_PROCESS:   "tcp_rcv_state_process",
	bpfFinwaitSymbolSYMBOL_TCP_VALIDATE_INCOMING:   "tcp_validate_incoming",
	bpfFinwaitSymbolSYMBOL_TCP_KEEPALIVE_TIMER:     "tcp_keepalive_timer",
	bpfFinwaitSymbolSYMBOL_TCP_WRITE_TIMER:         "tcp_write_timer",
	bpfFinwaitSymbolSYMBOL_TCP_WRITE_TIMER_HANDLER: "tcp_write_timer_handler",
	bpfFinwaitSymbolSYMBOL_TCP_RELEASE_CB:          "tcp_release_cb",
	bpfFinwaitSymbolSYMBOL_TCP_CLOSE:               "__tcp_close",
	bpfFinwaitSymbolSYMBOL_TCP_DISCONNECT:          "tcp_disconnect",
	bpfFinwaitSymbolSYMBOL_LISTEN_START:            "inet_csk_listen_start",
	bpfFinwaitSymbolSYMBOL_RUN_TIMER_SOFTIRQ:       "run_timer_softirq",
	bpfFinwaitSymbolSYMBOL_HANDLE_SOFTIRQS:         "handle_softirqs",
	bpfFinwaitSymbolSYMBOL_DO_SOFTIRQ:              "__do_softirq",
}

// neededSymbols are those without which the timer tier can tell nothing.
var neededSymbols = []bpfFinwaitSymbol{
	bpfFinwaitSymbolSYMBOL_TW_TIMER_HANDLER,
	bpfFinwaitSymbolSYMBOL_REQSK_TIMER_HANDLER,
	bpfFinwaitSymbolSYMBOL_TWSK_DESCHEDULE,
	bpfFinwaitSymbolSYMBOL_TWSK_SCHEDULE,
}

// symbols says where the functions of symbolNames lie. One that the kernel has
// not, or hides, is empty.
type symbols [bpfFinwaitSymbolNUM_SYMBOLS]bpfFinwaitRange

func readSymbols() (symbols, error) {
	file, err := os.Open("/proc/kallsyms")
	if err != nil {
		return symbols{}, err
	}
	defer file.Close()
	return parseSymbols(file)
}

// parseSymbols reads lines of kallsyms, "ffffffff82008a20 T tcp_abort", which
// stand in the order of their addresses: a function ends where the next begins.
func parseSymbols(r io.Reader) (symbols, error) {
	var found symbols
	open := -1 // the symbol whose end is not known yet
	lines := bufio.NewScanner(bufio.NewReaderSize(r, 1<<20))
	for lines.Scan() {
		address, rest, _ := bytes.Cut(lines.Bytes(), []byte(" "))
		kind, name, ok := bytes.Cut(rest, []byte(" "))
		if !ok {
			return found, fmt.Errorf("kallsyms: line %q", lines.Bytes())
		}
		if open >= 0 {
			if at, err := strconv.ParseUint(string(address), 16, 64); err == nil && at > found[open].Start {
				found[open].End, open = at, -1
			}
		}
		if i := symbolIndex(kind, name); i >= 0 && found[i].Start == 0 {
			at, err := strconv.ParseUint(string(address), 16, 64)
			if err != nil {
				return found, fmt.Errorf("kallsyms: %w", err)
			}
			if found[i].Start = at; at != 0 {
				open = i
			}
		}
	}
	return found, lines.Err()
}

// symbolIndex returns which of symbolNames it is that the line names, or -1.
// The compiler may have made a copy of a function for fewer arguments.
func symbolIndex(kind, name []byte) int {
	if len(kind) != 1 || kind[0]|0x20 != 't' {
		return -1
	}
	plain, suffix, _ := bytes.Cut(name, []byte("."))
	if bytes.HasPrefix(suffix, []byte("cold")) {
		return -1
	}
	plain, _, _ = bytes.Cut(plain, []byte("\t")) // of a module
	for i := range symbolNames {
		if string(plain) == symbolNames[i] {
			return i
		}
	}
	return -1
}

// errNoSymbols says that the timer tier cannot tell its timers from others.
var errNoSymbols = errors.New("kallsyms does not say where the functions are that the timer tracepoints must know")

func (s *symbols) complete() error {
	if slices.ContainsFunc(neededSymbols, func(i bpfFinwaitSymbol) bool { return s[i].Start == 0 }) {
		return errNoSymbols
	}
	return nil
}
