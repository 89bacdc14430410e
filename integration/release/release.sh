#!/usr/bin/env bash
# Builds all files of a release.
#
#   release.sh VERSION OUT
#
# VERSION is v1.2.3 or v1.2.3-rc.1. OUT, which must not exist yet, gets images/, manifests, the chart, archives of the
# kubectl plugin, bills of materials, the changelog and SHA256SUMS. IMAGE_PLATFORMS (linux/amd64,linux/arm64) and
# PLUGIN_PLATFORMS (words such as darwin/arm64) restrict the platforms. The tools helm and cyclonedx-gomod come from
# TOOLS_DIR (.tools).
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
tools=${TOOLS_DIR:-$root/.tools}
image_platforms=${IMAGE_PLATFORMS:-linux/amd64,linux/arm64}
plugin_platforms=${PLUGIN_PLATFORMS:-linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64}

fail() { echo "release: $*" >&2; exit 1; }
say() { echo "release: $*" >&2; }

[ $# -eq 2 ] || fail "usage: release.sh VERSION OUT"
version=$1 out=$2
[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || fail "$version is no version: want v1.2.3 or v1.2.3-rc.1"
[ ! -e "$out" ] || fail "$out is there already"
for tool in helm cyclonedx-gomod; do [ -x "$tools/$tool" ] || fail "$tools/$tool is missing: make release installs it"; done
# Programs report the version that Go finds in the tag of their commit.
if [ -z "${TRIAL:-}" ]; then
	[ -z "$(git -C "$root" status --porcelain)" ] || fail "the checkout has changes that are not committed; TRIAL=1 builds all the same"
	git -C "$root" tag --points-at HEAD | grep -qxF "$version" || fail "the commit has no tag $version; TRIAL=1 builds all the same"
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"
# The same commit gives the same bytes: all times are the commit's.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

# build PROGRAM FILE OS ARCH
build() {
	GOOS=$3 GOARCH=$4 CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$2" "./cmd/$1"
}

# pack DIR FILE: an archive of a directory's files, without owners, with the commit's time.
pack() { tar -C "$1" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - . | gzip -9n >"$2"; }

images() {
	go run -C integration/images . -version "$version" -platforms "$image_platforms" -out "$out/images"
}

chart() {
	"$tools/helm" package manifests/charts/inference-waypoint --version "${version#v}" --app-version "$version" --destination "$out" >&2
	cp manifests/istio/overlay.yaml "$out/istio-overlay.yaml"
	render >"$out/install.yaml"
	render --set monitoring.enabled=true >"$out/install-monitoring.yaml"
}

# render VALUES...: the objects for kubectl apply. It leaves out Helm's only hook, which uninstalls.
render() {
	cat manifests/base/namespace.yaml
	"$tools/helm" template inference-waypoint "$out/inference-waypoint-${version#v}.tgz" --namespace inference-system --no-hooks "$@"
}

plugins() {
	local platform dir name
	for platform in $plugin_platforms; do
		dir=$(mktemp -d)
		name=kubectl-inference
		[ "${platform%/*}" != windows ] || name+=.exe
		build kubectl-inference "$dir/$name" "${platform%/*}" "${platform#*/}"
		cp LICENSE "$dir/"
		pack "$dir" "$out/kubectl-inference_${version}_${platform/\//_}.tar.gz"
		rm -rf "$dir"
	done
}

# Each image has a bill of materials of its own beside it; these are the programs' bills.
materials() {
	local program dir
	dir=$(mktemp -d)
	for program in controller picker kubectl-inference; do
		build "$program" "$dir/$program" linux amd64
		"$tools/cyclonedx-gomod" bin -json -std -version "$version" -output "$out/$program.cdx.json" "$dir/$program" 2>"$dir/log" ||
			{ cat "$dir/log" >&2; fail "the bill of materials of $program could not be made"; }
	done
	rm -rf "$dir"
}

# A change is a line that begins with its kind, and the lines up to the next such line, in docs/changes/unreleased.
changelog() {
	local kind title changes
	echo "# $version"
	for kind in breaking security feature fix; do
		changes=$(awk -v kind="$kind: " '
			FNR == 1 { on = 0 }
			/^(breaking|security|feature|fix): / { on = index($0, kind) == 1; if (on) print "- " substr($0, length(kind) + 1); next }
			on { print ($0 == "" ? "" : "  " $0) }' docs/changes/unreleased/*.md)
		[ -n "$changes" ] || continue
		case $kind in breaking) title="Breaking changes" ;; security) title=Security ;; feature) title="New" ;; fix) title="Mended" ;; esac
		printf '\n## %s\n\n%s\n' "$title" "$changes"
	done
}

say "images for $image_platforms"; images
say "chart and manifests"; chart
say "the plugin for $plugin_platforms"; plugins
say "bills of materials"; materials
changelog >"$out/CHANGELOG.md"
(cd "$out" && find . -type f ! -name SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum >SHA256SUMS)
say "$version is in $out: $(wc -l <"$out/SHA256SUMS") files, $(du -sh "$out" | cut -f1)"
