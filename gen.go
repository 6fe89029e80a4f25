// Package finwait holds nothing but the directive that compiles bpf/ into
// tracer/. The results are committed, so that building finwait needs Go alone.
//
// Run it with make generate, which pins the compiler (BPF2GO_CC) and passes
// the header folder of the C library (BPF2GO_CFLAGS). Only little-endian
// objects are made: bpf/finwait.h is read in place by Go. mcpu=v3 gives atomic
// compare-and-swap and 32-bit jumps, both older than the oldest kernel that
// finwait runs on.
package finwait

//go:generate go tool bpf2go -target bpfel -tags linux -output-dir tracer -go-package tracer -no-global-types -type finwait_event -type finwait_conn -type finwait_who -type finwait_ledger -type finwait_endings -type finwait_filter -type finwait_cidr -type finwait_state -type finwait_evidence -type finwait_origin -type finwait_role -type finwait_event_flags -type finwait_reason -type finwait_symbol -type finwait_range -type finwait_gauge -type finwait_netns_file -type finwait_stuck -type finwait_profile_by -type finwait_profile_group -type finwait_profile_key -type finwait_profile_row bpf bpf/finwait.bpf.c -- -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter
//go:generate go tool bpf2go -target bpfel -tags linux -output-dir tracer -go-package tracer -no-global-types -output-suffix _test -type test_filter -type test_emit -type finwait_filter bpfTest bpf/finwait_test.bpf.c -- -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unused-function
