#!/usr/bin/env bash
# Runs the tests in virtual machines with other kernels than the host's.
# README.md tells how.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/finwait/vm

JOBS=${JOBS:-2}                      # guests at once
RUN=${RUN:-}                         # a regular expression, to run some tests alone
runs=$here/${RUNS:-runs}             # what is run where
GUEST_SECONDS=${GUEST_SECONDS:-2400} # how long one may take

say() { echo "vm: $*" >&2; }
die() {
	say "$@"
	exit 1
}

# shellcheck source-path=SCRIPTDIR
. "$here/fetch.sh"
# shellcheck source-path=SCRIPTDIR
. "$here/image.sh"
# shellcheck source-path=SCRIPTDIR
. "$here/guest.sh"

usage() {
	cat >&2 <<-'END'
		usage: run.sh [KERNEL]...        run the tests
		       run.sh --exec KERNEL COMMAND [--file PATH]... [--tests] [--timeout SECONDS]
		       run.sh --shell KERNEL [--file PATH]... [--tests]
	END
	exit 2
}

# plan KERNEL prints "KERNEL TIER CHECK..." for each guest that it is to run in.
plan() {
	local pattern tiers checks tier
	while read -r pattern tiers checks; do
		# shellcheck disable=SC2053 # it is a pattern
		[[ $pattern != '#'* && $1 == $pattern ]] || continue
		for tier in ${tiers//,/ }; do
			echo "$1 $tier $checks"
		done
	done <"$runs"
}

# tests_of CHECK prints the regular expression of the tests that are run.
tests_of() {
	case ${RUN:+set}$1 in
	set*) echo "$RUN" ;;
	*:*) echo "${1#*:}" ;;
	*) echo . ;;
	esac
}

# test_job TIER CHECK... prints what a guest runs.
test_job() {
	local tier=$1 check package
	[ "$tier" = - ] || echo "export FINWAIT_TEST_EVIDENCE=$tier"
	cat <<-'END'
		check() {
			printf '\n@@ run %s\n' "$1"
			begun=$(date +%s)
			cd "$2"
			shift 2
			"$@"
			printf '\n@@ done %s %s\n' $? $(($(date +%s) - begun))
		}
	END
	for check in "${@:2}"; do
		package=${check%%:*}
		if [ -d "$root/$package" ]; then
			echo "check $package /src/$package ./${package##*/}.test" \
				"-test.v=test2json -test.timeout=${GUEST_SECONDS}s '-test.run=$(tests_of "$check")'"
		else
			echo "check $check /root /checks/$check"
		fi
	done
	echo true
}

# pack_common builds what all guests of $arch have; the tests with "tests" alone.
pack_common() {
	[ -e "$work/$arch-common" ] && return
	mkdir "$work/$arch-common"
	pack_system "$work/$arch-common/system.cpio"
	pack_command "$work/$arch-common/command.cpio"
	[ "${1-}" != tests ] || pack_tests "$work/$arch-common/tests.cpio"
}

# prepare DIR writes a guest's initrd: what all have, its kernel's modules, and
# DIR/guest.
prepare() {
	pack_modules "$1/modules.cpio"
	pack "$1/guest" "$1/guest.cpio"
	cat "$work/$arch-common"/*.cpio "$1"/*.cpio >"$1/initrd"
	rm -r "$1"/*.cpio "$1/guest"
}

# run_guest KERNEL TIER CHECK... runs a guest, and leaves its report in its
# folder of $logs.
run_guest() {
	local kernel=$1 tier=$2 dir=$logs/$1,$2
	fetch_kernel "$kernel"
	mkdir -p "$dir/guest/job"
	test_job "${@:2}" >"$dir/guest/job/run"
	prepare "$dir"
	attempt "$kernel/$tier" "$dir"
	if fails "$dir/report.new"; then
		# An emulated CPU stalls now and then for longer than any test waits.
		say "$kernel $tier has failed, once more; see $dir/report.1"
		mv "$dir/report.new" "$dir/report.1"
		attempt "$kernel/$tier" "$dir"
		first_attempt "$dir/report.1" >>"$dir/report.new"
	fi
	rm "$dir/initrd"
	mv "$dir/report.new" "$dir/report"
	say "$kernel $tier has ended"
}

# attempt GUEST DIR boots a guest and writes its report.
attempt() {
	boot_well "$2" "$2/initrd" "$GUEST_SECONDS" >/dev/null
	report "$1" "$2" >"$2/report.new"
}

# fails FILE tells whether a report has a failure.
fails() {
	awk '/^= / { failed += $5 } END { exit !failed }' "$1"
}

# first_attempt FILE prints what a report that is not the last one says has failed.
first_attempt() {
	echo "what failed at the first attempt, of which $1 has all:"
	awk '/^= / && $5 { print "  " $2, $3 ": " $5 " failed" } /: failed: / { print "  " $0 }' "$1"
}

# report GUEST DIR prints what became of a guest: for each check a line "= GUEST
# CHECK PASSED FAILED SKIPPED SECONDS", and before it what failed.
report() {
	local trouble
	awk -v guest="$1" -v skips="$here/skips" -v partial="$RUN" -f "$here/report.awk" "$2/output"
	trouble=$(trouble "$2/console") || true
	if [ -n "$trouble" ]; then
		printf '%s\n= %s console 0 1 0 -\n' "$trouble" "$1"
	fi
	if ! grep -q '^@@ exit 0' "$2/output"; then
		echo "the guest did not end by itself; the last of its console:"
		tail -n 40 "$2/console"
		echo "= $1 guest 0 1 0 -"
	fi
}

# summary GUESTS prints what failed, then all guests' checks as a table, and
# fails if one failed or a guest has no report.
summary() {
	cat "$logs"/*/report | grep -v '^= ' || true
	awk -v missing=$(($1 - $(find "$logs" -name report | wc -l))) '
		function row(guest, check, passed, failed, skipped, seconds) {
			printf "%-18s %-24s %7s %7s %7s %8s\n", guest, check, passed, failed, skipped, seconds
		}
		BEGIN { row("kernel/tier", "check", "passed", "failed", "skipped", "seconds") }
		/^= / { row($2, $3, $4, $5, $6, $7); passed += $4; failed += $5; skipped += $6 }
		END {
			if (missing) print missing " guests have no report"
			printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
			exit !passed || failed || missing
		}' <(cat "$logs"/*/report)
}

# matrix KERNEL... runs the tests on each kernel.
matrix() {
	local kernel guests guest failed=
	# shellcheck disable=SC2046 # they are words
	[ $# -gt 0 ] || set -- $(kernel_names)
	logs=$cache/logs/$(date +%Y%m%d-%H%M%S)-$$
	mkdir -p "$logs"
	fetch_emulator
	for kernel; do
		fetch_kernel "$kernel"
		pack_common tests
	done
	mapfile -t guests < <(for kernel; do plan "$kernel"; done)
	for guest in "${guests[@]}"; do
		while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do
			wait -n || true
		done
		# shellcheck disable=SC2086 # it is a list
		run_guest $guest &
	done
	wait
	summary "${#guests[@]}" || failed=1
	say "consoles and all output are in $logs"
	return ${failed:-0}
}

# in_guest MODE KERNEL [COMMAND] [OPTION]... runs a command, or a shell.
in_guest() {
	local mode=$1 limit=3600 tests='' arguments=() files=()
	shift
	while [ $# -gt 0 ]; do
		case $1 in
		--file) files+=("${2?"no path after --file"}") && shift ;;
		--timeout) limit=${2?"no time after --timeout"} && shift ;;
		--tests) tests=tests ;;
		-*) usage ;;
		*) arguments+=("$1") ;;
		esac
		shift
	done
	[ ${#arguments[@]} -eq "$([ "$mode" = exec ] && echo 2 || echo 1)" ] || usage
	fetch_emulator
	fetch_kernel "${arguments[0]}"
	pack_common $tests
	mkdir -p "$work/run/guest/job" "$work/run/guest/root"
	[ ${#files[@]} -eq 0 ] || cp -r "${files[@]}" "$work/run/guest/root/"
	case $mode in
	exec) guest_exec "$limit" "${arguments[1]}" ;;
	shell) guest_shell ;;
	esac
}

# guest_exec SECONDS COMMAND runs a command and ends with its status.
guest_exec() {
	local status
	echo "$2" >"$work/run/guest/job/run"
	prepare "$work/run"
	boot_well "$work/run" "$work/run/initrd" "$1" | grep --line-buffered -v '^@@ ' || true
	status=$(sed -n 's/^@@ exit //p' "$work/run/output")
	if [ -z "$status" ]; then
		tail -n 60 "$work/run/console" >&2
		die "the guest did not end by itself; above, the last of its console"
	fi
	trouble "$work/run/console" >&2 || true
	return "$status"
}

# guest_shell gives the terminal to a shell.
guest_shell() {
	: >"$work/run/guest/job/shell"
	prepare "$work/run"
	say "exit ends the guest, and so does Ctrl-A X"
	boot_shell "$work/run" "$work/run/initrd"
}

# shellcheck disable=SC2317 # stop calls it
# end_children PID ends all that a process has started, the last first.
end_children() {
	local child
	for child in $(pgrep -P "$1"); do
		end_children "$child"
		kill "$child" 2>/dev/null || true
	done
}

# shellcheck disable=SC2317 # it is called at the end
stop() {
	end_children $$
	wait
	rm -rf "$work"
}

main() {
	work=$(mktemp -d "${TMPDIR:-/tmp}/finwait-vm.XXXXXX")
	trap stop EXIT
	trap 'exit 130' INT TERM
	case ${1-} in
	--exec | --shell) in_guest "${1#--}" "${@:2}" ;;
	-*) usage ;;
	*) matrix "$@" ;;
	esac
}

main "$@"; exit # in one line, which is read at once: the script may change meanwhile
