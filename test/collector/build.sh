#!/usr/bin/env bash
# build.sh prints the path of the Collector for tests, which it builds if it is not
# in the user's cache yet: that takes some minutes, once for each version of the
# module. build.sh --have only looks: it fails if it is not there.
set -euo pipefail
cd "$(dirname "$0")"

case ${1-} in
"" | --have) ;;
*)
	echo "usage: build.sh [--have]" >&2
	exit 2
	;;
esac

cache=${XDG_CACHE_HOME:-${HOME:?is not set, nor is XDG_CACHE_HOME}/.cache}/finwait
version=$(cat main.go go.mod go.sum | sha256sum)
binary=$cache/collector-${version:0:16}

if [ "${1-}" = --have ] && [ ! -x "$binary" ]; then
	echo "$binary is not there: test/collector/build.sh builds it, in some minutes" >&2
	exit 1
fi
if [ ! -x "$binary" ]; then
	mkdir -p "$cache"
	# Two that want it at once wait for one build. The file appears when it is whole.
	exec 9>"$cache/collector.lock"
	flock 9
	if [ ! -x "$binary" ]; then
		CGO_ENABLED=0 GOFLAGS='' GOWORK=off go build -trimpath -ldflags='-s -w' -o "$binary.part" . >&2
		mv "$binary.part" "$binary"
	fi
fi
echo "$binary"
