# shellcheck shell=bash
# Kernels from Debian's packages, sourced by run.sh. apt gets a source list,
# lists and a cache of its own, so that the system's stay as they are.

# kernel_row NAME prints the row of the table of kernels.
kernel_row() {
	awk -v name="$1" '$1 == name { print; found = 1 } END { exit !found }' "$here/kernels" ||
		die "no kernel '$1'; there are: $(kernel_names | xargs)"
}

kernel_names() {
	awk '!/^#/ && NF { print $1 }' "$here/kernels"
}

# mirror prints where this system gets Debian from.
mirror() {
	local codename
	codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	# shellcheck disable=SC2016 # apt expands it
	apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk -v codename="$codename" '$1 == codename && $2 == "main" { print $3; exit }'
}

# private_apt COMMAND ARG... runs a command of apt on a list of $suite and $arch alone.
private_apt() {
	local state=$cache/apt/$suite-$arch command=$1
	shift
	"$command" -q -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::State::lists="$state/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$state/cache" \
		-o APT::Architecture="$arch" -o APT::Architectures="$arch" -o APT::Sandbox::User= \
		-o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

# update_lists downloads what packages $suite has.
update_lists() {
	local state=$cache/apt/$suite-$arch uri
	uri=$(mirror)
	[ -n "$uri" ] || die "apt knows no source of Debian's packages"
	mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >"$state/sources.list"
	retry private_apt apt-get update >&2
}

# retry COMMAND ARG... tries three times.
retry() {
	local try
	for try in 1 2 3; do
		"$@" && return
		echo "failed ($try of 3): $*" >&2
		sleep $((try * 3))
	done
	return 1
}

has_package() {
	private_apt apt-cache show "$1" >/dev/null 2>&1
}

# newest_release SERIES prints the newest release that $suite has.
newest_release() {
	private_apt apt-cache pkgnames "linux-image-$1." |
		sed -n "s/^linux-image-\(.*\)-cloud-$arch\$/\1/p" | sort -V | tail -n 1
}

# image_packages RELEASE prints the packages that the image is in: the one of
# that name, and since 7.1 those of the same release that it depends on.
image_packages() {
	local image=linux-image-$1-cloud-$arch
	echo "$image"
	private_apt apt-cache show "$image" | sed -n 's/^Depends: //p' | tr -s ', |' '\n' |
		grep -Fx -e "linux-binary-$1-cloud-$arch" -e "linux-modules-$1-cloud-$arch" || true
}

# unpack_kernel RELEASE DIR downloads a kernel and lays it out: vmlinuz, and
# its modules under root/lib/modules.
unpack_kernel() {
	local release=$1 dir=$2 packages deb
	mapfile -t packages < <(image_packages "$release")
	mkdir -p "$dir/debs" "$dir/root"
	(cd "$dir/debs" && retry private_apt apt-get download "${packages[@]}" >&2) || return
	for deb in "$dir"/debs/*.deb; do
		dpkg-deb -x "$deb" "$dir/root" || return
	done
	mv "$dir/root/boot/vmlinuz-"* "$dir/vmlinuz" 2>/dev/null ||
		mv "$dir/root/usr/lib/modules/"*/vmlinuz "$dir/vmlinuz" || return
	# kmod of Debian 12 looks in /lib alone.
	[ -e "$dir/root/lib" ] || ln -s usr/lib "$dir/root/lib"
	depmod -b "$dir/root" "$release-cloud-$arch" 2>/dev/null || return
	rm -rf "$dir/debs" "$dir/root/boot" "$dir/root/usr/share"
	[ "$arch" = amd64 ] || unpack_busybox "$dir" || return
	echo "$release" >"$dir/release"
}

# unpack_busybox DIR downloads the one program that a guest of another
# architecture gets.
unpack_busybox() {
	mkdir "$1/busybox"
	(cd "$1/busybox" && retry private_apt apt-get download busybox-static >&2) || return
	dpkg-deb -x "$1"/busybox/*.deb "$1/busybox"
}

# fetch_kernel NAME sets kernel_dir to the folder of a kernel, downloaded if it
# is not there, and arch and release.
fetch_kernel() {
	local name=$1 row suite pin series
	row=$(kernel_row "$name") || exit
	read -r _ suite pin arch <<<"$row"
	arch=${arch:-amd64}
	kernel_dir=$cache/kernels/$name=$pin
	if [ ! -e "$kernel_dir/release" ]; then
		series=$(grep -o '^[0-9]*\.[0-9]*' <<<"$name")
		mkdir -p "$cache/kernels"
		# One at a time: runs at once would download the same.
		{
			flock 9
			[ -e "$kernel_dir/release" ] || download_kernel
		} 9>"$cache/lock" || die "$name: cannot be downloaded"
	fi
	release=$(<"$kernel_dir/release")
	[ "$release" = "$pin" ] || say "$name: $pin is superseded, $release is taken"
}

download_kernel() {
	local release=$pin temporary
	update_lists || return
	if ! has_package "linux-image-$release-cloud-$arch"; then
		release=$(newest_release "$series")
		[ -n "$release" ] || { say "$suite has no Linux $series any more; change test/vm/kernels"; return 1; }
	fi
	say "$name: downloading Linux $release"
	# What was interrupted is under another name, and of another pin is of no use.
	rm -rf "$cache/kernels/$name="*
	temporary=$(mktemp -d "$cache/kernels/$name=XXXXXX")
	unpack_kernel "$release" "$temporary" && mv "$temporary" "$kernel_dir"
}

# fetch_emulator sets emulator to a QEMU of Debian 13, with its libraries, in
# the cache: that of Debian 12 translates code without holding it, and then the
# slip that guest.sh tells of is no rare one.
fetch_emulator() {
	local dir=$cache/emulator/$emulator_suite suite=$emulator_suite arch=amd64
	emulator=$dir/run
	[ -e "$emulator" ] && return
	mkdir -p "$cache/emulator"
	{
		flock 9
		[ -e "$emulator" ] || download_emulator
	} 9>"$cache/lock" || die "the emulator cannot be downloaded"
}

emulator_suite=trixie

download_emulator() {
	local temporary deb
	update_lists || return
	say "downloading the emulator"
	retry private_apt apt-get install -y --download-only --no-install-recommends \
		qemu-system-x86 qemu-system-arm >&2 || return
	temporary=$(mktemp -d "$cache/emulator/XXXXXX")
	for deb in "$cache/apt/$suite-$arch"/cache/archives/*.deb; do
		dpkg-deb -x "$deb" "$temporary" || return
	done
	rm -r "$cache/apt/$suite-$arch/cache/archives/"*.deb "$temporary/usr/share/"{doc,man,locale}
	cat >"$temporary/run" <<-'END'
		#!/bin/sh
		usr=${0%/*}/usr
		program=$usr/bin/$1
		shift
		exec "$usr/lib64/ld-linux-x86-64.so.2" --library-path "$usr/lib/x86_64-linux-gnu" \
			"$program" -L "$usr/share/seabios" -L "$usr/share/qemu" "$@"
	END
	chmod +x "$temporary/run"
	"$temporary/run" qemu-system-x86_64 --version >&2 || return
	rm -rf "$dir"
	mv "$temporary" "$dir"
}
