package sysctl

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Names are the sysctls that bear on the states of TCP sockets. The kernel of a host
// need not have all of them, and a network namespace lacks those that are the whole
// host's, such as net.ipv4.tcp_mem.
var Names = []string{
	"net.core.somaxconn",
	"net.ipv4.ip_local_port_range",
	"net.ipv4.ip_local_reserved_ports",
	"net.ipv4.tcp_abort_on_overflow",
	"net.ipv4.tcp_ehash_entries",
	"net.ipv4.tcp_fin_timeout",
	"net.ipv4.tcp_keepalive_intvl",
	"net.ipv4.tcp_keepalive_probes",
	"net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_max_orphans",
	"net.ipv4.tcp_max_syn_backlog",
	"net.ipv4.tcp_max_tw_buckets",
	"net.ipv4.tcp_mem",
	"net.ipv4.tcp_migrate_req",
	"net.ipv4.tcp_orphan_retries",
	"net.ipv4.tcp_retries2",
	"net.ipv4.tcp_rfc1337",
	"net.ipv4.tcp_rto_max_ms",
	"net.ipv4.tcp_syn_linear_timeouts",
	"net.ipv4.tcp_syn_retries",
	"net.ipv4.tcp_synack_retries",
	"net.ipv4.tcp_syncookies",
	"net.ipv4.tcp_timestamps",
	"net.ipv4.tcp_tw_reuse",
	"net.ipv4.tcp_tw_reuse_delay",
	"net.netfilter.nf_conntrack_count",
	"net.netfilter.nf_conntrack_max",
	"net.netfilter.nf_conntrack_tcp_timeout_close_wait",
	"net.netfilter.nf_conntrack_tcp_timeout_established",
	"net.netfilter.nf_conntrack_tcp_timeout_fin_wait",
	"net.netfilter.nf_conntrack_tcp_timeout_time_wait",
}

// Values are the running values of sysctls by name, such as "net.core.somaxconn".
// Several numbers have one space between them. A name is absent if the kernel has no
// such sysctl, or may not be asked for it.
type Values map[string]string

// ReadValues reads the running values of those names that there are. Those below net are
// of the calling thread's network namespace: the kernel looks them up in the
// namespace of whoever opens the file (proc_sys_lookup). A goroutine that has entered
// one and is locked to its thread gets that one's.
func ReadValues(names []string) Values {
	values := Values{}
	for _, name := range names {
		path, ok := procPath(name)
		if !ok {
			continue
		}
		if text, ok := readValue(path); ok {
			values[name] = strings.Join(strings.Fields(text), " ")
		}
	}
	return values
}

// Exists reports whether the running kernel has a sysctl of that name, in the calling
// thread's network namespace if it is below net.
func Exists(key string) bool {
	path, ok := procPath(key)
	if !ok {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// procPath is the file of a sysctl. A key of a file may lead anywhere.
func procPath(key string) (string, bool) {
	path := filepath.FromSlash(swap.Replace(key))
	return filepath.Join("/proc/sys", path), filepath.IsLocal(path)
}

// readValue reads a sysctl in a single read, as large as it must be: what does not
// fit is lost, for the kernel answers the next one with the end of the file (in
// proc_do_large_bitmap as in all others). The list of reserved ports can have some
// hundred kilobytes.
func readValue(path string) (string, bool) {
	for size := 4 << 10; size <= 1<<20; size <<= 4 {
		f, err := os.Open(path)
		if err != nil {
			return "", false
		}
		buf := make([]byte, size)
		n, err := f.Read(buf)
		f.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			return "", false
		}
		if n < size {
			return string(buf[:n]), true
		}
	}
	return "", false
}

// Int is the value of a sysctl that is one number, and false if it is absent or
// something else.
func (v Values) Int(name string) (int64, bool) {
	n, err := strconv.ParseInt(v[name], 10, 64)
	return n, err == nil
}

// Ints is the value of a sysctl that is some numbers, such as net.ipv4.tcp_mem, and
// false if it is absent or something else.
func (v Values) Ints(name string) ([]int64, bool) {
	var ints []int64
	for word := range strings.FieldsSeq(v[name]) {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return nil, false
		}
		ints = append(ints, n)
	}
	return ints, len(ints) > 0
}

// Ports is the value of a sysctl that is a list of ports, which is
// net.ipv4.ip_local_reserved_ports, in order and without overlap. It is empty if no
// port is in the list, and false if there is no such list.
func (v Values) Ports(name string) ([]PortRange, bool) {
	text, ok := v[name]
	if !ok {
		return nil, false
	}
	return parsePorts(text)
}
