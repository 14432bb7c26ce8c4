#!/usr/bin/env bash
# The linters. Every finding is printed; the exit code says whether there was one.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
step() {
	local name=$1
	shift
	if out=$("$@" 2>&1); then
		echo "ok    $name"
	else
		echo "FAIL  $name"
		printf '%s\n' "$out"
		failed=1
	fi
}
tool() { go tool -modfile=test/tools/go.mod "$@"; }

formatted() {
	local bad
	bad=$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$' | xargs gofmt -l)
	[ -z "$bad" ] || { echo "run gofmt -w on:"; echo "$bad"; return 1; }
}
tidy() {
	local dir
	for dir in . test/tools test/interop/h2spec; do (cd "$dir" && go mod tidy -diff) || return 1; done
}
generated() {
	command -v protoc >/dev/null || { [ -z "${CI:-}" ] && { echo "skipped: no protoc"; return 0; }; echo "protoc is missing"; return 1; }
	local before after
	before=$(sums)
	./test/generate.sh || return 1
	after=$(sums)
	[ "$before" = "$after" ] || { echo "make generate changed:"; diff <(echo "$before") <(echo "$after"); return 1; }
}
sums() { git ls-files -co --exclude-standard '*.pb.go' 'docs/reference/*' | sort | xargs sha256sum; }
vulnerabilities() {
	local out
	out=$(tool govulncheck ./... 2>&1) && return 0
	# Without the vulnerability database there is nothing to say.
	if grep -qE 'fetching vulnerabilities|dial tcp|no such host|403|connection refused|Forbidden' <<<"$out"; then
		echo "note  govulncheck: the vulnerability database is not reachable, not checked" >&3
		return 0
	fi
	echo "$out"
	return 1
}
exec 3>&1

step gofmt formatted
step "go vet" go vet ./...
step staticcheck tool staticcheck ./...
step "go.mod current" tidy
step "generated code current" generated
step govulncheck vulnerabilities
exit $failed
