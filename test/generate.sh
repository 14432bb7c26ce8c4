#!/usr/bin/env bash
# Makes everything that is generated: protobuf code from *.proto, and the
# configuration reference from the structs that the programs decode.
# Needs protoc (Debian: protobuf-compiler); the plugins are pinned in
# test/tools/go.mod.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v protoc >/dev/null || { echo "generate: protoc is missing (Debian: apt-get install protobuf-compiler)" >&2; exit 1; }
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
go build -C test/tools -o "$plugins/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
spire=$(go list -m -f '{{.Dir}}' github.com/spiffe/spire-api-sdk)/proto
mapfile -t protos < <(find audit policy identity -name '*.proto' | sort)
PATH="$plugins:$PATH" protoc -I . -I "$spire" \
	--go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative "${protos[@]}"
# The version of the compiler is not part of what it makes.
find audit policy identity -name '*.pb.go' -exec sed -i -E '/^\/\/ (- )?\s*protoc +v/d' {} +
go run ./internal/docgen
