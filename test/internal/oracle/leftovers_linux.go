package oracle

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Leftovers lists what BPF objects the host has: programs, maps and links,
// sorted, each as a short text with its id. A test that compares it before and
// after finds what the code between has left behind; Since does that for a
// host on which others come and go too.
func Leftovers() ([]string, error) {
	var all []string
	for _, list := range []func() ([]string, error){programs, maps, links} {
		some, err := list()
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	slices.Sort(all)
	return all, nil
}

// Since returns what is in after and not in before.
func Since(before, after []string) []string {
	return slices.DeleteFunc(slices.Clone(after), func(s string) bool { return slices.Contains(before, s) })
}

func programs() ([]string, error) {
	var all []string
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("next program: %w", err)
		}
		id = next
		all = append(all, fmt.Sprintf("program %d %s", id, programName(id)))
	}
}

func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "?" // gone since
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "?"
	}
	return info.Name
}

func maps() ([]string, error) {
	var all []string
	for id := ebpf.MapID(0); ; {
		next, err := ebpf.MapGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("next map: %w", err)
		}
		id = next
		all = append(all, fmt.Sprintf("map %d %s", id, mapName(id)))
	}
}

func mapName(id ebpf.MapID) string {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return "?" // gone since
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return "?"
	}
	return info.Name
}

func links() ([]string, error) {
	var all []string
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		all = append(all, fmt.Sprintf("link %d", it.ID))
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("next link: %w", err)
	}
	return all, nil
}
