#!/usr/bin/env bash
# build.sh [DIR] builds the .deb and the .rpm into DIR (default dist). The same
# commit makes the same bytes: every time in them is the commit's. GOARCH chooses
# another architecture, PACKAGERS one of the two.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=${1:-dist}
arch=${GOARCH:-$(go env GOARCH)}
NFPM=${NFPM:-go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

# version prints what the commit is called: 1.2.0 by its tag, 1.2.0+3.gabcdef0 by
# one that is three commits back, 0.0.0+gabcdef0 without any.
version() {
	local described
	if described=$(git describe --tags --match 'v[0-9]*' --dirty=.dirty 2>/dev/null); then
		sed -E 's/^v//; s/-([0-9]+)-(g[0-9a-f]+)/+\1.\2/' <<<"$described"
	else
		echo "0.0.0+g$(git describe --always --dirty=.dirty)"
	fi
}

# at prints the commit's time in a format of date.
at() { LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" "$1"; }

# stage fills the folder with what is made for the packages.
stage() {
	local host=$stage/finwait shell
	local linker="-s -w -X github.com/finwait/finwait/cmd/finwait/internal/build.version=$version"
	GOARCH=$arch CGO_ENABLED=0 go build -trimpath -ldflags="$linker" -tags noserve -o "$stage/finwait" ./cmd/finwait
	GOARCH=$arch CGO_ENABLED=0 go build -trimpath -ldflags="$linker" -o "$stage/finwait-serve" ./cmd/finwait
	if [ "$arch" != "$(go env GOHOSTARCH)" ]; then
		host=$stage/host
		GOARCH='' CGO_ENABLED=0 go build -trimpath -o "$host" ./cmd/finwait
	fi
	mkdir "$stage/man" "$stage/completion" "$stage/examples"
	for shell in bash zsh fish; do
		"$host" completion "$shell" >"$stage/completion/$shell"
	done
	FINWAIT_MAN_DIR=$stage/man go test ./cmd/finwait -run '^TestManPages$' -count=1 >/dev/null
	gzip -9n "$stage"/man/*
	gzip -9nc CHANGELOG.md >"$stage/changelog.gz"
	printf 'finwait (%s-1) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- %s  %s\n' \
		"$version" "$(sed -n 's/^maintainer: //p' deploy/packages/nfpm.yaml)" "$(at '+%a, %d %b %Y %T +0000')" |
		gzip -9n >"$stage/changelog.Debian.gz"
	cp deploy/prometheus/{rules,scrape}.yml "$stage/examples/"
	cp deploy/otelcol/collector.yaml "$stage/examples/otel-collector.yaml"
	cp deploy/kubernetes/finwait.yaml "$stage/examples/kubernetes.yaml"
	cp deploy/kubernetes/{podmonitor,networkpolicy}.yaml "$stage/examples/"
	cp deploy/grafana/finwait.json "$stage/examples/grafana.json"
	# Times, which the packager takes from the files.
	find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

version=${VERSION:-$(version)}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
stage
sed -e "s|@ARCH@|$arch|; s|@VERSION@|$version|; s|@STAGE@|$stage|; s|@MTIME@|$(at +%FT%TZ)|" \
	deploy/packages/nfpm.yaml >"$stage/nfpm.yaml"
mkdir -p "$dist"
for packager in ${PACKAGERS:-deb rpm}; do
	GOARCH='' $NFPM package --config "$stage/nfpm.yaml" --packager "$packager" --target "$dist"
done
