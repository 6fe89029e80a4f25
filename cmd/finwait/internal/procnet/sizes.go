package procnet

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Sizes are how many bytes of kernel memory things take, with what the kernel's
// allocator adds to each. 0 is unknown.
type Sizes struct {
	// TimeWait and TimeWait6 are of one socket in TIME_WAIT, IPv4 and IPv6: a
	// mini-socket.
	TimeWait, TimeWait6 uint64
	// Bind is of what is kept for each local port that is in use, and Bind2 for
	// each of its local addresses, since Linux 6.1. All sockets that have them
	// share them. They are known to root only.
	Bind, Bind2 uint64
}

// caches are the kernel's allocators of them.
func (s *Sizes) caches() map[string]*uint64 {
	return map[string]*uint64{
		"tw_sock_TCP": &s.TimeWait, "tw_sock_TCPv6": &s.TimeWait6,
		"tcp_bind_bucket": &s.Bind, "tcp_bind2_bucket": &s.Bind2,
	}
}

// ReadSizes asks the allocator, which answers root at once, or reckons from the
// kernel's types (BTF), which takes anyone some 50 ms and 4 MiB: a caller asks once,
// and only if it is going to tell. The error says why the size of a socket in
// TIME_WAIT could not be found.
func ReadSizes() (Sizes, error) {
	var errs []error
	for _, source := range []func() (Sizes, error){slubSizes, slabinfoSizes, typeSizes} {
		s, err := source()
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
	}
	return Sizes{}, fmt.Errorf("find the size of a socket in TIME_WAIT: %w", errors.Join(errs...))
}

// slubSizes has them from SLUB, which tells of caches that it has merged with
// others too.
func slubSizes() (Sizes, error) {
	return sizesBy(func(cache string) (uint64, error) {
		return readCount("/sys/kernel/slab/" + cache + "/slab_size")
	})
}

// slabinfoSizes has them from SLAB, Linux 6.7 and before, and where sysfs is not
// to be seen.
func slabinfoSizes() (Sizes, error) {
	text, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return Sizes{}, err
	}
	return sizesBy(func(cache string) (uint64, error) { return slabSize(string(text), cache) })
}

// typeSizes reckons those of mini-sockets from the kernel's types: tcp6_timewait_sock,
// where there is one, is tcp_timewait_sock and no more. Debugging kernels add to it. Those of buckets are aligned to the CPU's cache lines and may
// be merged with others, of which types say nothing.
func typeSizes() (Sizes, error) {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return Sizes{}, fmt.Errorf("read the kernel's BTF: %w", err)
	}
	var miniSocket *btf.Struct
	if err := types.TypeByName("tcp_timewait_sock", &miniSocket); err != nil {
		return Sizes{}, fmt.Errorf("read the kernel's BTF: tcp_timewait_sock: %w", err)
	}
	size := slubSize(uint64(miniSocket.Size))
	return Sizes{TimeWait: size, TimeWait6: size}, nil
}

// slubSize is what SLUB takes for an object of so many bytes that is read by RCU
// when it is free (SLAB_TYPESAFE_BY_RCU): whole words, and behind them the pointer
// to the next free one (calculate_sizes). tw_prot_init asks for no alignment.
func slubSize(object uint64) uint64 {
	const word = bits.UintSize / 8
	return (object+word-1)/word*word + word
}

// sizesBy asks for each of them. Those that do not exist are unknown, but one of
// them must.
func sizesBy(size func(cache string) (uint64, error)) (Sizes, error) {
	var s Sizes
	for cache, into := range s.caches() {
		n, err := size(cache)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Sizes{}, err
		}
		*into = n
	}
	if s.TimeWait == 0 {
		return Sizes{}, errors.New("no tw_sock_TCP")
	}
	return s, nil
}

// slabSize returns the size of a cache's objects from the text of /proc/slabinfo,
// lines of "name active total size", and more.
func slabSize(text, cache string) (uint64, error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[0] != cache {
			continue
		}
		n, err := strconv.ParseUint(fields[3], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read /proc/slabinfo: %s: %w", cache, err)
		}
		return n, nil
	}
	return 0, fs.ErrNotExist
}
