package measure

import (
	"io"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// enableStats makes the kernel time every run of every BPF program, until the
// result is closed or the process ends. It needs CAP_SYS_ADMIN.
func enableStats() (io.Closer, error) { return ebpf.EnableStats(unix.BPF_STATS_RUN_TIME) }
