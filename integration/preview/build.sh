#!/usr/bin/env bash
# Builds what the preview runs into DIR: DIR/preview -bin DIR -envoy TOOLS_DIR/envoy is the preview then. The picker is
# built without what it has for Kubernetes, which is half of it.
#
#   build.sh TOOLS_DIR DIR
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=$1 dir=$2
log=$(mktemp)
installing=
trap 'rm -f "$log"; [ -z "$installing" ] || kill -- -$installing 2>/dev/null || true' EXIT

setsid integration/tools/install.sh "$tools" envoy &
installing=$!
# Go's own packages need no download: they are compiled while modules come.
go build net/http html/template log/slog 2>/dev/null &
# build MODULE PACKAGE: without debug information a program is linked in half the time.
build() { go build -C "$1" -tags standalone -ldflags='-s -w' -o "$out/" "$2"; }
mkdir -p "$dir"
out=$(cd "$dir" && pwd)
# Three modules, one after the other, as builds side by side would each compile what the programs share. Go says of each
# module that it downloads it, which is of interest only where that fails.
(build . ./cmd/picker && build integration ./preview && build samples/modelserver .) 2>"$log" &
building=$!
start=$SECONDS
while kill -0 $building 2>/dev/null; do
	sleep 1
	(((SECONDS - start) % 30 != 29)) || echo "preview: building the picker and the model servers … $((SECONDS - start + 1)) s" >&2
done
wait $building || { cat "$log" >&2; exit 1; }
wait $installing
installing=
