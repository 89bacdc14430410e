#!/usr/bin/env bash
# Builds the preview's programs into DIR. Then DIR/preview -bin DIR -envoy TOOLS_DIR/envoy runs the preview. The picker is
# built without its Kubernetes code, which is half of it.
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
# Go's own packages need no download: they are compiled during the downloads of modules.
go build net/http html/template log/slog 2>/dev/null &
# build MODULE PACKAGE: without debug information, as a program is then linked in half the time.
build() { go build -C "$1" -tags standalone -ldflags='-s -w' -o "$out/" "$2"; }
mkdir -p "$dir"
out=$(cd "$dir" && pwd)
# Three modules, one after the other: parallel builds would each compile the shared packages. Go's lines about module
# downloads are hidden unless the build fails.
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
