//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cilium/ebpf"
)

const profileMap = "profiles"

// constant returns the value of profile_by in bpf/profile.h.
func (o *ProfileOptions) constant() uint8 {
	if o == nil {
		return uint8(bpfFinwaitProfileByPROFILE_OFF)
	}
	return uint8(bpfFinwaitProfileByPROFILE_BY_SERVICE) + uint8(o.By)
}

// unfiltered returns the value of profile_all in bpf/transition.h.
func (o *ProfileOptions) unfiltered() bool { return o != nil && o.Unfiltered }

// size returns the number of rows, those of GroupOthers included.
func (o *ProfileOptions) size(cpus int) uint32 {
	if o == nil {
		return 1
	}
	rows := o.rows
	if rows == 0 {
		rows = maxProfileRows
	}
	return uint32(rows + numStates + cpus)
}

// makeOthers makes the rows for what finds no room of its own.
func (o *ProfileOptions) makeOthers(m *ebpf.Map) error {
	if o == nil {
		return nil
	}
	for _, s := range States() {
		key := bpfFinwaitProfileKey{State: uint32(s), Group: uint32(GroupOthers)}
		err := m.Update(key, bpfFinwaitProfileRow{}, ebpf.UpdateNoExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) { // it may be inherited
			return fmt.Errorf("make the row of %v for others: %w", s, err)
		}
	}
	return nil
}

// Profile returns the histograms that Options.Profile has asked for. Each
// number is exact; they are not read at one instant, so what is counted
// meanwhile may be in one number and not yet in another.
func (t *Tracer) Profile() (*Profile, error) {
	if t.profile == nil {
		return nil, errors.New("read profile: none is kept (Options.Profile is not set)")
	}
	p := &Profile{Time: time.Now().UTC(), Since: t.began, By: t.profile.By}
	if t.pins != nil {
		p.Since = time.Unix(0, int64(t.pins.says.ProfileSinceNs)).UTC()
	}
	var (
		key bpfFinwaitProfileKey
		raw bpfFinwaitProfileRow
	)
	all := t.coll.Maps[profileMap].Iterate()
	for all.Next(&key, &raw) {
		row := decodeProfileRow(&key, &raw)
		if !row.empty() {
			p.Rows = append(p.Rows, row)
		}
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read profile: %w", err)
	}
	p.sort()
	return p, nil
}

func decodeProfileRow(key *bpfFinwaitProfileKey, raw *bpfFinwaitProfileRow) ProfileRow {
	return ProfileRow{
		Key: ProfileKey{State(key.State), ProfileGroup(key.Group), key.Value},
		Histogram: Histogram{
			Buckets: raw.Buckets,
			Unknown: raw.Unknown,
			Max:     time.Duration(min(raw.MaxNs, math.MaxInt64)),
			sumHigh: raw.SumCarry,
			sumLow:  raw.SumNs,
		},
		comm: raw.Comm,
	}
}
