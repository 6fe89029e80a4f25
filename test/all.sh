#!/usr/bin/env bash
# Installs what the tests need on Debian 12 and runs all of them. Needs root
# and Go.
set -euo pipefail
cd "$(dirname "$0")/.."

# ss and netstat are the tests' oracles; bpftool reads the maps as others would.
# clang and libbpf's headers compile bpf/ anew, to see that the committed
# objects are what it says. nginx and the rest of that line are programs that are
# watched. The line after it is for the agent and its packages, the last for the
# virtual machines.
./test/install.sh make git gcc libc6-dev iproute2 net-tools bpftool util-linux procps nftables \
	clang-19 llvm-19 clang-format-19 libbpf-dev shellcheck \
	nginx wrk curl redis-server redis-tools \
	prometheus logrotate lintian rpm systemd mmdebstrap \
	busybox-static cpio xz-utils kmod debian-archive-keyring

export CI_PRIVILEGED=1 # a test that cannot run is a failure
make build
make lint
make check-generate
make test-twice
make bench-smoke
# By number, since go ends a run by time with an error now and then.
make fuzz FUZZTIME="${FUZZTIME:-3000x}"
make test-vm
make test-systemd
echo "all tests passed"
