#!/usr/bin/env bash
# Installs the .deb in a virtual machine that runs systemd, has the service do
# what services do, and purges it. SUBJECT=trace runs `finwait trace` in the
# unit's place, with all that confines it, which tells whether that lets a tracer
# work. It needs root, for mmdebstrap; README.md of test/vm tells of the rest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/finwait/vm

KERNEL=${KERNEL:-6.1}
SUBJECT=${SUBJECT:-serve}            # serve or trace
GUEST_SECONDS=${GUEST_SECONDS:-400}  # how long the guest may take
DEB=${DEB:-}                         # a package to install, instead of one built here

say() { echo "systemd: $*" >&2; }
die() {
	say "$@"
	exit 1
}

# shellcheck source-path=SCRIPTDIR/../vm
. "$root/test/vm/fetch.sh"
# shellcheck source-path=SCRIPTDIR/../vm
. "$root/test/vm/image.sh"
# shellcheck source-path=SCRIPTDIR/../vm
. "$root/test/vm/guest.sh"
here=$root/test/vm # what these read is there

guest_suite=bookworm
guest_packages=systemd,systemd-sysv,curl,iproute2,bpftool,procps,kmod

# fetch_system sets system to the archive of a Debian with systemd, which is made
# if it is not there.
fetch_system() {
	local key
	key=$(echo "$guest_suite $guest_packages 1" | sha256sum | cut -c 1-12)
	system=$cache/systemd/$guest_suite-$key.cpio
	[ ! -e "$system" ] || return 0
	mkdir -p "$cache/systemd"
	{
		flock 9
		[ -e "$system" ] || make_system
	} 9>"$cache/lock" || die "the system of the guest cannot be made"
}

make_system() {
	local dir=$work/debian uri
	uri=$(mirror)
	[ -n "$uri" ] || { say "apt knows no source of Debian's packages"; return 1; }
	say "making a Debian $guest_suite with systemd"
	# Documents stay away: nothing reads them, and the guest holds all in memory.
	retry mmdebstrap_into "$dir" "$uri" || return
	rm -f "$cache/systemd/$guest_suite-"*
	pack "$dir" "$system.new" && mv "$system.new" "$system"
	rm -rf "$dir"
}

# shellcheck disable=SC2016,SC2317 # retry calls it, and mmdebstrap has a shell of its own
mmdebstrap_into() {
	rm -rf "$1"
	mmdebstrap --quiet --mode=root --variant=apt --include="$guest_packages" \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
		--aptopt='Acquire::Languages "none"' \
		--customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/*.log' \
		--customize-hook='rm -f "$1"/etc/dpkg/dpkg.cfg.d/* "$1"/etc/hostname' \
		"$guest_suite" "$1" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $2 $guest_suite main" >&2
}

# pack_check FILE makes the archive of what is checked, and of the package.
pack_check() {
	local dir=$work/check unit
	mkdir -p "$dir/root" "$dir/etc/systemd/system/multi-user.target.wants"
	cp "$root/test/deploy/systemd/check" "$dir/root/"
	cp "$root/test/deploy/systemd/check.service" "$dir/etc/systemd/system/"
	ln -s ../check.service "$dir/etc/systemd/system/multi-user.target.wants/"
	# Nobody logs in, and without udev there is no device to wait for.
	for unit in serial-getty@ttyS0.service getty@tty1.service getty-static.service; do
		ln -s /dev/null "$dir/etc/systemd/system/$unit"
	done
	mkdir -p "$dir/etc/systemd/system.conf.d"
	printf '[Manager]\nShowStatus=no\n' >"$dir/etc/systemd/system.conf.d/quiet.conf"
	ln -s usr/lib/systemd/systemd "$dir/init"
	echo guest >"$dir/etc/hostname"
	echo "$SUBJECT" >"$dir/root/subject"
	cp "$DEB" "$dir/root/finwait.deb"
	pack "$dir" "$1"
}

build_package() {
	[ -z "$DEB" ] || return 0
	PACKAGERS=deb "$root/deploy/packages/build.sh" "$work/dist" >&2 || die "the package does not build"
	DEB=$(echo "$work"/dist/*.deb)
}

main() {
	local status
	work=$(mktemp -d "${TMPDIR:-/tmp}/finwait-systemd.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	fetch_emulator
	fetch_kernel "$KERNEL"
	fetch_system
	build_package
	pack_modules "$work/modules.cpio"
	pack_check "$work/check.cpio"
	cat "$system" "$work/modules.cpio" "$work/check.cpio" >"$work/initrd"
	boot_well "$work" "$work/initrd" "$GUEST_SECONDS" | grep --line-buffered -v '^@@ ' || true
	status=$(sed -n 's/^@@ exit //p' "$work/output" | tr -d '\r')
	mkdir -p "$cache/logs/systemd"
	cp "$work/console" "$work/output" "$cache/logs/systemd/"
	if [ -z "$status" ]; then
		tail -n 60 "$work/console" >&2
		die "the guest did not end by itself; above, the last of its console"
	fi
	if trouble "$work/console" >&2; then
		die "the guest's kernel complained"
	fi
	return "$status"
}

main "$@"; exit # in one line, which is read at once: the script may change meanwhile
