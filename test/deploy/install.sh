#!/usr/bin/env bash
# install.sh DIR DEB RPM installs, upgrades, removes and purges the packages in a
# copy of this system: an overlay whose changes are kept in memory and end with
# the mount namespace, which it has to be started in (unshare --mount). It fails if
# something is left.
set -euo pipefail
dir=$1 deb=$2 rpm=$3

die() {
	echo "install.sh: $*" >&2
	exit 1
}

inside() { chroot "$dir/root" "$@"; }

make_copy() {
	mount -t tmpfs tmpfs "$dir"
	mkdir "$dir"/{upper,work,root}
	mount -t overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" overlay "$dir/root"
	mount -t proc proc "$dir/root/proc"
	mount -t sysfs sysfs "$dir/root/sys"
	mount -t bpf bpf "$dir/root/sys/fs/bpf"
	mount -t tmpfs tmpfs "$dir/root/run"
	mount --rbind /dev "$dir/root/dev"
	cp "$deb" "$dir/root/finwait.deb"
	cp "$rpm" "$dir/root/finwait.rpm"
}

# files lists what differs from this system: what is in the overlay and is no
# directory of the system's. The package managers' own records are left out.
files() {
	local path
	(cd "$dir/upper" && find . \( -path ./var/lib/dpkg -o -path ./var/lib/rpm -o -path ./var/cache -o -path ./var/log/dpkg.log \
		-o -path ./var/log/alternatives.log -o -path ./root/.rpmdb -o -path ./tmp \) -prune -o -print) |
		while read -r path; do
			[ -d "$dir/upper/$path" ] && [ -d "/$path" ] || echo "$path"
		done | sort
	inside find /run /sys/fs/bpf | sort
}

# use does what a service that has run leaves behind.
use() {
	mkdir -p "$dir/root/var/log/finwait" "$dir/root/var/lib/finwait" "$dir/root/run/finwait" "$dir/root/sys/fs/bpf/finwait"
	echo '{}' >"$dir/root/var/log/finwait/finwait.log"
	echo lock >"$dir/root/run/finwait/lock"
	echo users >"$dir/root/etc/finwait/web.yaml"
}

runs() {
	inside finwait explain TIME_WAIT >/dev/null || die "finwait does not run"
	inside finwait serve --help | grep -q -- --listen || die "the agent does not run"
	inside finwait completion bash | cmp - "$dir/root/usr/share/bash-completion/completions/finwait" ||
		die "the completion is another program's"
	[ -s "$dir/root/usr/share/man/man1/finwait.1.gz" ] || die "there is no man page"
	[ -e "$dir/root/usr/lib/systemd/system/finwait.service" ] || die "there is no unit"
}

check_deb() {
	files >"$dir/before"
	inside dpkg -i /finwait.deb
	runs
	[ -L "$dir/root/etc/systemd/system/multi-user.target.wants/finwait.service" ] || die "the service is not enabled"
	use
	echo 'listen: ""' >>"$dir/root/etc/finwait/finwait.yaml"
	inside dpkg -i /finwait.deb
	grep -q '^listen: ""' "$dir/root/etc/finwait/finwait.yaml" || die "an upgrade changes the configuration"
	inside dpkg --remove finwait
	[ -e "$dir/root/etc/finwait/finwait.yaml" ] || die "removal takes the configuration"
	[ -e "$dir/root/var/log/finwait/finwait.log" ] || die "removal takes the log"
	[ ! -e "$dir/root/sys/fs/bpf/finwait" ] || die "removal leaves pins"
	inside dpkg --purge finwait
	files >"$dir/after"
	diff "$dir/before" "$dir/after" || die "the .deb leaves that"
}

check_rpm() {
	files >"$dir/before"
	inside rpm --force-debian --nodeps -i /finwait.rpm
	runs
	use
	rm "$dir/root/etc/finwait/web.yaml" # rpm leaves what is not its own
	inside rpm --force-debian -e finwait
	[ ! -e "$dir/root/sys/fs/bpf/finwait" ] || die "removal leaves pins"
	rm -r "$dir/root/var/log/finwait" "$dir/root/var/lib/finwait"
	files >"$dir/after"
	diff "$dir/before" "$dir/after" || die "the .rpm leaves that"
}

make_copy
check_deb
check_rpm
echo "nothing is left"
