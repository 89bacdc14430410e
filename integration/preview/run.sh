#!/usr/bin/env bash
# Builds what the preview needs and runs it.
#
#   run.sh TOOLS_DIR
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=$1
log=$(mktemp)
trap 'rm -f "$log"' EXIT

integration/tools/install.sh "$tools" envoy &
install=$!
# Go says of each module that it downloads it, which is of interest only where that fails.
go build -o bin/ ./integration/preview ./cmd/picker ./samples/modelserver 2>"$log" || { cat "$log" >&2; exit 1; }
wait $install
bin/preview -envoy "$tools/envoy"
