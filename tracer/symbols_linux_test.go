package tracer

import (
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

const kallsyms = `ffffffff81000000 T _text
ffffffff81200100 t tw_timer_handler
ffffffff81200180 t tw_timer_handler.cold
ffffffff81200200 T inet_twsk_deschedule_put
ffffffff81200200 T alias_of_the_one_before
ffffffff81200280 T __pfx_inet_twsk_purge
ffffffff81200290 T inet_twsk_purge
ffffffff81200300 D tcp_abort
ffffffff81200310 t handle_softirqs.constprop.0
ffffffff81200400 T __inet_twsk_schedule
ffffffffc0000000 t reqsk_timer_handler	[dccp]
ffffffffc0000100 t something	[dccp]
`

func TestParseSymbols(t *testing.T) {
	got, err := parseSymbols(strings.NewReader(kallsyms))
	qt.Assert(t, qt.IsNil(err))
	for i, want := range map[bpfFinwaitSymbol]bpfFinwaitRange{
		bpfFinwaitSymbolSYMBOL_TW_TIMER_HANDLER:    {Start: 0xffffffff81200100, End: 0xffffffff81200180},
		bpfFinwaitSymbolSYMBOL_TWSK_DESCHEDULE:     {Start: 0xffffffff81200200, End: 0xffffffff81200280},
		bpfFinwaitSymbolSYMBOL_TWSK_PURGE:          {Start: 0xffffffff81200290, End: 0xffffffff81200300},
		bpfFinwaitSymbolSYMBOL_TCP_ABORT:           {}, // data of that name is no function
		bpfFinwaitSymbolSYMBOL_HANDLE_SOFTIRQS:     {Start: 0xffffffff81200310, End: 0xffffffff81200400},
		bpfFinwaitSymbolSYMBOL_REQSK_TIMER_HANDLER: {Start: 0xffffffffc0000000, End: 0xffffffffc0000100},
	} {
		qt.Check(t, qt.Equals(got[i], want), qt.Commentf("%s", symbolNames[i]))
	}
	qt.Check(t, qt.IsNil(got.complete()))
}

// Without CAP_SYSLOG, or with kptr_restrict=2, all addresses read 0.
func TestParseSymbolsHidden(t *testing.T) {
	got, err := parseSymbols(strings.NewReader("0000000000000000 t tw_timer_handler\n0000000000000000 T tcp_abort\n"))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(got, symbols{}))
	qt.Check(t, qt.ErrorIs(got.complete(), errNoSymbols))
}

func FuzzParseSymbols(f *testing.F) {
	f.Add(kallsyms)
	f.Add("0 t tw_timer_handler\nnonsense\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseSymbols(strings.NewReader(text))
		if err != nil {
			return
		}
		for i, r := range got {
			if r.End != 0 && r.End <= r.Start {
				t.Errorf("%s ends at %#x before it starts at %#x", symbolNames[i], r.End, r.Start)
			}
		}
	})
}
