package observe

import (
	"os"

	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

// readMemory reads what TCP takes on the whole host. sizes says whether the size of a
// mini-socket is of interest: without root it is not read off, but reckoned.
func readMemory(sizes bool) (Memory, error) {
	var m Memory
	stat, err := procnet.ReadSockstat()
	if err != nil {
		return m, err
	}
	m.Pages, m.Orphans, m.PageSize = stat.MemoryPages, stat.Orphans, uint64(os.Getpagesize())
	values := sysctl.ReadValues([]string{"net.ipv4.tcp_mem", "net.ipv4.tcp_max_orphans"})
	if pages, ok := values.Ints("net.ipv4.tcp_mem"); ok && len(pages) == 3 {
		m.PressurePages, m.MaxPages = uint64(pages[1]), uint64(pages[2])
	}
	if most, ok := values.Int("net.ipv4.tcp_max_orphans"); ok && most > 0 {
		m.MaxOrphans = uint64(most)
	}
	m.Pressure, _ = procnet.MemoryPressure() // what is not known is not said
	// Neither is known on every kernel, and then what needs it is not said.
	if sizes {
		s, _ := procnet.ReadSizes()
		m.MiniSocket, m.MiniSocketIPv6 = s.TimeWait, s.TimeWait6
	}
	if slots, shared, err := procnet.EstablishedHash(); err == nil && (shared || netnsOf("self") == hostNetns()) {
		m.EstablishedHash = slots // and not that of a namespace which has its own
	}
	return m, nil
}
