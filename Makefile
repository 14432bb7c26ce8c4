# Everything a person or CI does with this checkout. `make` alone lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PROGRAMS := writd writ-agent writ-sidecar policyctl
# A pure Go build: one file, no C compiler, runs anywhere Linux does.
GOBUILD  := CGO_ENABLED=0 go build -trimpath -ldflags '-s -w'
TOOL     := go tool -modfile=test/tools/go.mod
# The race detector needs a C compiler; without one the tests run without it.
RACE     := $(shell command -v cc >/dev/null 2>&1 && echo -race)
DATA_DIR ?= build/quickstart

.PHONY: help build quickstart test lint bench bench-policy bench-spire bench-storm interop generate clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build the four programs into bin/
	@mkdir -p bin
	@$(GOBUILD) -o bin/ $(PROGRAMS:%=./cmd/%)

quickstart: build ## Run the example mesh and drive traffic through it (ARGS="--once --output json")
	@bin/policyctl up --data-dir $(DATA_DIR) $(ARGS)

# What the race detector makes too slow, or hides, runs once more without it.
test: ## Run the tests (with the race detector where a C compiler exists), and compare compiled policy a million times
	go test $(RACE) -timeout 15m ./...
	@if command -v cc >/dev/null 2>&1; then echo "go test -tags pkcs11 ./identity/keys/..."; go test -tags pkcs11 ./identity/keys/... && go vet -tags pkcs11 ./cmd/writd; \
		elif [ "$$CI" = true ]; then echo "PKCS #11 needs a C compiler" >&2; exit 1; \
		else echo "PKCS #11 is not tested: no C compiler"; fi
	go test -timeout 15m ./policy/program ./policy/compile -run 'Bounds|Allocations|AgainstReference'
	go test -timeout 15m ./identity/issuer -run TestStorm -storm 5000
	go test -timeout 15m ./policy/server -run ManyActivations -activations 10000
	go test -timeout 15m -v ./test/equality -run Generated -policies 2020 -inputs 500

lint: ## gofmt, vet, staticcheck, govulncheck, generated code and go.mod current
	./test/lint.sh

bench: build ## Measure, print a table, write build/bench/*.json (ARGS="-run pair")
	go run ./test/bench $(ARGS)

bench-policy: ## Measure compiled policy beside OPA
	go run ./test/bench -run policy $(ARGS)

bench-spire: ## Measure issuer and agent beside stock SPIRE, hold them against their budgets
	@mkdir -p bin
	$(GOBUILD) -o bin/ ./cmd/writd ./cmd/writ-agent
	go run ./test/bench -run spire,idle $(ARGS)

bench-storm: ## Measure 5,000 agents at one issuer: what they hold, and how they come back after an outage
	@mkdir -p bin
	$(GOBUILD) -o bin/ ./cmd/writd
	go run ./test/bench -run storm $(ARGS)

interop: ## Run against software that we did not write (ARGS="spire opa h2spec envoy nginx kube containers kubelet")
	./test/interop/run.sh $(ARGS)

generate: ## Make the generated code and reference pages again (needs protoc)
	./test/generate.sh

clean: ## Remove what was built
	rm -rf bin build
