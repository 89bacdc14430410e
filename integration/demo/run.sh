#!/usr/bin/env bash
# The script of make demo. Building the mesh's tools takes minutes; meanwhile the preview shows picking.
#
#   run.sh TOOLS_DIR "TOOL..." [-keep]
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=$1
read -ra mesh <<<"$2"
shift 2
install=integration/tools/install.sh
log=$(mktemp)
building=
# Background builds have a process group of their own, so that all of them end with this script.
trap 'rm -f "$log" "$log.tools"; [ -z "$building" ] || kill -- -$building 2>/dev/null || true' EXIT

# build MODULE PACKAGE...: hides Go's lines about module downloads unless the build fails.
build() { go build -C "$1" -o "$PWD/bin/" "${@:2}" 2>"$log" || { cat "$log" >&2; exit 1; }; }

step=
missing=$($install --missing "${mesh[@]}")
if [ -n "$missing" ]; then
	step="step 3 of 3: "
	minutes=$($install --takes "${mesh[@]}")
	echo "step 1 of 3: picking with Envoy, the picker and model servers alone (to build them takes about two minutes, once)"
	integration/preview/build.sh "$tools" bin/standalone
	# The mesh's tools are built while the preview runs, and not while the preview is built: where the kernel shares the
	# processors between sessions, which is the default, nice(1) does not keep one session from half of them.
	setsid $install "$tools" "${mesh[@]}" >"$log.tools" 2>&1 &
	building=$!
	bin/standalone/preview -bin bin/standalone -envoy "$tools/envoy"
	echo
	echo "step 2 of 3: building what a whole mesh runs, from source (about $minutes min in all on two cores, once)"
	tail -n +1 -f --pid=$building "$log.tools" >&2
	wait $building
	building=
	echo
else
	$install "$tools" "${mesh[@]}"
fi
echo "${step}starting a mesh on this machine, and the same in it (about two minutes)"
# The mesh builds its programs without a network, so their modules are downloaded here.
build . ./cmd/...
build samples/modelserver .
build integration ./demo ./echo ./hangingpicker ./mesh/...
bin/demo "$@"
