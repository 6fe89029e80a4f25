# shellcheck shell=bash
# The guest's files as cpio archives, sourced by run.sh. The kernel takes
# several in a row; they are not compressed, since a guest would need longer to
# decompress them than to read them.

# Modules that the tests need, with whatever these need. What a kernel has
# built in is no error.
modules=(inet_diag tcp_diag tun)

# The system's own programs for the tests and for whoever looks into a guest.
# The first are needed; of the others, TestPrograms has to have all but hping3.
tools=(bash ip ss nsenter bpftool netstat setpriv unshare prlimit)
optional_tools=(hping3 nginx wrk curl redis-server redis-benchmark)

# pack DIR FILE makes an archive of a folder.
pack() {
	(cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$2"
}

# add_program DIR PATH copies a program and the libraries that it is linked with.
add_program() {
	local dir=$1 path=$2 library
	for library in "$path" $(ldd "$path" | grep -o '/[^ ]*'); do
		[ -e "$dir$library" ] || install -D "$library" "$dir$library"
	done
}

# busybox_path prints the busybox of the kernel's architecture, which is the
# only foreign one.
busybox_path() {
	if [ "$arch" = amd64 ]; then
		command -v busybox
	else
		find "$kernel_dir/busybox" -path '*bin/busybox'
	fi
}

# add_tools DIR copies the system's own programs.
add_tools() {
	local tool path
	for tool in "${tools[@]}" "${optional_tools[@]}"; do
		if path=$(command -v "$tool"); then
			add_program "$1" "$path"
		elif [[ " ${tools[*]} " == *" $tool "* ]]; then
			die "$tool is not installed"
		fi
	done
}

# pack_system FILE makes the archive of what is in every guest of $arch.
pack_system() {
	local dir=$work/$arch-system applet
	mkdir -p "$dir"/{bin,sbin,etc,dev,proc,sys,tmp,run,root,usr/bin,usr/sbin,usr/local/bin}
	install "$(busybox_path)" "$dir/bin/busybox"
	for applet in $(busybox --list); do
		[ "$applet" = busybox ] || ln -s busybox "$dir/bin/$applet"
	done
	[ "$arch" != amd64 ] || add_tools "$dir"
	printf '%s\n' root:x:0:0:root:/root:/bin/sh nobody:x:65534:65534:nobody:/:/bin/false >"$dir/etc/passwd"
	printf '%s\n' root:x:0: nogroup:x:65534: >"$dir/etc/group"
	printf '%s\n' '127.0.0.1 localhost' '::1 localhost' >"$dir/etc/hosts"
	install "$here/init" "$dir/init"
	cp -r "$here/checks" "$dir/"
	pack "$dir" "$1"
}

# module_paths prints the modules' files in the order in which they are loaded.
module_paths() {
	local module
	for module in "${modules[@]}"; do
		modprobe -d "$kernel_dir/root" -S "$release-cloud-$arch" --show-depends "$module" ||
			die "Linux $release has no module $module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

# pack_modules FILE makes the archive of the modules, numbered in that order.
pack_modules() {
	local file=$1 dir path n=100
	dir=$(mktemp -d "$work/modules.XXXXXX")
	mkdir "$dir/modules"
	for path in $(module_paths); do
		n=$((n + 1))
		case $path in
		*.xz) xz -dc "$path" >"$dir/modules/$n-$(basename "$path" .xz)" ;;
		*) cp "$path" "$dir/modules/$n-$(basename "$path")" ;;
		esac
	done
	pack "$dir" "$file"
}

# pack_command FILE builds the command into an archive.
pack_command() {
	local dir=$work/$arch-command
	(cd "$root" && GOARCH=$arch CGO_ENABLED=0 go build -buildvcs=false -trimpath -o "$dir/usr/local/bin/finwait" ./cmd/finwait) ||
		die "finwait does not build"
	pack "$dir" "$1"
}

# test_packages prints the folders with tests that need a kernel.
test_packages() {
	(cd "$root" && go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./tracer ./test/...) |
		sed "s,^$root/,,"
}

# pack_tests FILE builds the tests into an archive: each under /src in the
# folder of its package, which is where it is to be run.
pack_tests() {
	local dir=$work/$arch-tests package
	for package in $(test_packages); do
		mkdir -p "$dir/src/$package"
		(cd "$root" && GOARCH=$arch CGO_ENABLED=0 go test -c -trimpath -ldflags=-s -o "$dir/src/$package/" "./$package") ||
			die "the tests of $package do not build"
		[ ! -d "$root/$package/testdata" ] || cp -r "$root/$package/testdata" "$dir/src/$package/"
	done
	pack "$dir" "$1"
}
