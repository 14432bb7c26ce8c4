#!/usr/bin/env bash
# Runs Writ against software that others wrote, and ends with a line that says
# how many checks passed and failed. What is missing is built once into
# ${XDG_CACHE_HOME:-~/.cache}/writ-interop.
#
#   test/interop/run.sh [spire] [opa] [h2spec] [envoy] [nginx] [kube] [containers] [kubelet]      all when none is named
#
# A suite that cannot run says why; in CI (CI=true) that is a failure, but where the
# machine cannot do such a thing.
set -uo pipefail
cd "$(dirname "$0")/../.."
passed=0 failed=0 skipped=0
declare -A tests=([spire]='^Test(Agents|X509PoP|SPIREServerCLI(Same)?|SPIFFEConformance|Migration|WithoutIssuer|SPIREFederation|SPIRENested)$' [opa]='^TestOPA(Bundles)?$' [h2spec]='^TestH2Spec$' [envoy]='^TestEnvoy(CRL|Revoked)?$' [nginx]='^TestNginx$' [kube]='^TestKube$' [containers]='^TestContainers$' [kubelet]='^TestKubelet$')
suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(opa h2spec envoy nginx spire kube containers kubelet)
for suite in "${suites[@]}"; do
	[ -n "${tests[$suite]:-}" ] || { echo "no suite is called $suite (there are: ${!tests[*]})" >&2; exit 2; }
done

make --no-print-directory build || exit 1
go vet -tags interop ./test/interop || exit 1

# leaves prints the outcome of every test that holds no other: a test whose
# children tell already would count twice.
leaves() {
	awk '/^ *--- (PASS|FAIL|SKIP): / {
		name = $3; outcome[name] = substr($2, 1, 4)
		if (!(name in seen)) { seen[name] = 1; order[n++] = name }
		while (sub(/\/[^\/]*$/, "", name)) parent[name] = 1
	}
	END { for (i = 0; i < n; i++) if (!(order[i] in parent)) print outcome[order[i]], order[i] }'
}

for suite in "${suites[@]}"; do
	echo "== $suite"
	log=$(mktemp)
	cache=$(test/interop/install.sh "$suite" 2> >(tee "$log" >&2))
	code=$?
	if [ $code != 0 ]; then
		if [ "${CI:-}" = true ] && [ $code != 3 ]; then
			echo "FAIL $suite cannot run: $(tail -1 "$log")"
			failed=$((failed + 1))
		else
			echo "SKIP $suite cannot run: $(tail -1 "$log")"
			skipped=$((skipped + 1))
		fi
		rm -f "$log"
		continue
	fi
	WRIT_BIN=$PWD/bin WRIT_INTEROP=$cache go test -tags interop -count=1 -timeout 10m -v -run "${tests[$suite]}" ./test/interop >"$log" 2>&1
	code=$?
	outcomes=$(leaves <"$log")
	echo "${outcomes:-no test ran}"
	sed -n 's/^ *[a-z0-9_]*_test.go:[0-9]*: deviates: /note: /p' "$log" | sort -u
	p=$(grep -c '^PASS' <<<"$outcomes") f=$(grep -c '^FAIL' <<<"$outcomes") s=$(grep -c '^SKIP' <<<"$outcomes")
	# A test that skips in CI, a suite that crashes, one that runs nothing.
	if [ "${CI:-}" = true ]; then f=$((f + s)) s=0; fi
	if [ "$f" = 0 ] && { [ $code != 0 ] || [ "$((p + s))" = 0 ]; }; then f=1; fi
	[ "$f" = 0 ] && [ "$s" = 0 ] || cat "$log"
	rm -f "$log"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
[ $skipped = 0 ] || echo "$skipped skipped"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
