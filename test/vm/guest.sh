# shellcheck shell=bash
# Booting a guest, sourced by run.sh.

# machine prints the emulator's arguments for $arch: two CPUs, without what costs
# much and tells nothing. They take turns. Did each run by itself, one could be
# left with an old translation of code that the other changes, as attaching a
# program does, and the kernel would die of a breakpoint that is long gone.
machine() {
	case $arch in
	amd64) echo qemu-system-x86_64 -cpu max,-la57 ;;
	arm64) echo qemu-system-aarch64 -machine virt,gic-version=3 -cpu neoverse-n1 ;;
	esac
	echo -accel tcg,thread=single -smp 2 -m 2048 -nodefaults -no-user-config -display none -no-reboot
}

# kernel_arguments prints what every kernel is told: to end at a panic, to show
# warnings, to do without what an emulated CPU does not need. A CPU that waits
# for the host is not locked up, hence no watchdog, and its clock is right.
kernel_arguments() {
	case $arch in
	amd64) echo console=ttyS0 ;;
	arm64) echo console=ttyAMA0 ;;
	esac
	echo "panic=-1 loglevel=5 mitigations=off nowatchdog random.trust_cpu=on tsc=reliable"
}

# emulate SECONDS INITRD ARG... becomes the emulator; 0 seconds are no limit.
emulate() {
	# shellcheck disable=SC2046 # they are words
	exec timeout --foreground -k 5 "$1" "$emulator" $(machine) -kernel "$kernel_dir/vmlinuz" \
		-initrd "$2" -append "$(kernel_arguments | xargs)" "${@:3}"
}

# boot DIR INITRD SECONDS runs a guest to its end. Its console goes to
# DIR/console, what its job says to stdout.
boot() {
	(emulate "$3" "$2" -monitor none -serial "file:$1/console" -serial stdio </dev/null) ||
		[ $? -ne 124 ] || printf '\n@@ killed after %s seconds\n' "$3"
}

# boot_shell DIR INITRD runs a guest whose first serial port is the terminal.
boot_shell() {
	(emulate 0 "$2" -serial mon:stdio -serial "file:$1/output")
}

# boot_well DIR INITRD SECONDS boots up to three times: again if the guest did
# not say a word.
boot_well() {
	local try
	for try in 1 2 3; do
		boot "$@" | tee "$1/output"
		grep -q '^@@ up' "$1/output" && return
		[ "$try" -lt 3 ] || return 0
		cp "$1/console" "$1/console.$try"
		say "$1: did not come up, once more"
		echo >>"$1/retries"
	done
}

# trouble FILE prints what a console says that a sound kernel does not.
trouble() {
	grep -aE -m 3 -A 30 'BUG:|WARNING:|Oops|Kernel panic|general protection fault|double fault' "$1"
}
