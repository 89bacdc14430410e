# Every command says with `make help` what it does. All but test-unit and check run the mesh and need root.
.DEFAULT_GOAL := help
SHELL := /bin/bash

TOOLS_DIR := .tools
# Those that take longest first, as two are built at a time.
MESH_TOOLS := envoy istiod kube-apiserver istioctl etcd
# The browser comes by npm; where there is none, the test of the picker's page is left out and says so.
TEST_TOOLS := gotestsum cyclonedx-gomod helm prometheus reference-epp $(if $(shell command -v npm),chromium)
# The modules whose code is ours, by folder: those that are tested, and those that are checked. Those under integration/tools
# hold no code, and the conformance suite is a test of its own.
TESTED_MODULES := . samples/modelserver integration integration/images
MODULES := $(TESTED_MODULES) integration/conformance
# What these have in common they have in one version. The images' module takes the versions of ko, which it is made of.
SAME_VERSIONS := . samples/modelserver integration integration/conformance
# What runs the tests: it says at the end which failed, and what they said.
GOTESTSUM := $(TOOLS_DIR)/gotestsum --format standard-quiet --hide-summary skipped
# How long a test binary may run: the mesh's take ten minutes, and more where the machine is busy.
TEST_TIMEOUT ?= 60m

# Where goroutines share what calls are made of. With the race detector they take a minute on two cores, all packages
# several.
RACED := ./internal/picker/extproc ./internal/picker/poolstate ./internal/picker/selection

.PHONY: help
help: ## Show this.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the controller, the picker and the model server stand-in into bin/.
	go build -o bin/ ./cmd/...
	go build -C samples/modelserver -o ../../bin/ .

.PHONY: tools
tools: ## Build or install what the mesh runs (once a version; kept outside the checkout).
	@integration/tools/install.sh $(TOOLS_DIR) $(MESH_TOOLS)

.PHONY: modules
modules: ## Download the Go modules that tests and checks read, since namespaces without a network cannot.
	@integration/tools/install.sh --modules

.PHONY: demo
demo: $(if $(filter vllm,$(ENGINE)),engines) ## Start a mesh, call a model through its waypoint, compare with round robin. KEEP=1 leaves it running; ENGINE=vllm has real engines.
	@integration/demo/run.sh $(TOOLS_DIR) "$(MESH_TOOLS)" $(if $(KEEP),-keep) $(if $(ENGINE),-engine=$(ENGINE))

.PHONY: preview
preview: ## Show picking with Envoy, the picker and model servers alone: no mesh, no root, three minutes at most.
	@integration/preview/build.sh $(TOOLS_DIR) bin/standalone
	@bin/standalone/preview -bin bin/standalone -envoy $(TOOLS_DIR)/envoy

# Real engines need no GPU, and no model that would have to be downloaded.
ENGINE_MODEL := bin/engines/tiny
.PHONY: engines
engines: ## Install a real vLLM for the CPU, and make a small model for it (once a version; 2.5 GB).
	@integration/tools/install.sh $(TOOLS_DIR) vllm
	@$(MAKE) --no-print-directory $(ENGINE_MODEL)/config.json

$(ENGINE_MODEL)/config.json: integration/engines/model.py
	@echo "engines: making a small model, its tokenizer and its adapters in $(ENGINE_MODEL) (about 20 s)"
	@"$$(dirname "$$(readlink -f $(TOOLS_DIR)/vllm)")/python" $< . $(ENGINE_MODEL)

.PHONY: test-engines
test-engines: tools modules engines ## Run the tests with real engines: several minutes. They are no part of make test.
	@cd integration && go test -tags engines -count=1 -v -timeout 60m ./engines

.PHONY: test
test: tools modules ## Run all tests, those in the real mesh among them, and some with the race detector.
	@integration/tools/install.sh $(TOOLS_DIR) $(TEST_TOOLS)
	$(GOTESTSUM) --raw-command -- $(SHELL) -c 'trap "exit 130" INT; for m in $(TESTED_MODULES); do \
		go test -C $$m -json -timeout $(TEST_TIMEOUT) ./... || failed=1; done; exit $${failed:-0}'
	$(GOTESTSUM) -- -race -short -timeout $(TEST_TIMEOUT) $(RACED)

.PHONY: test-unit
test-unit: ## Run the tests that need neither root nor tools, with the race detector.
	go test -race -timeout $(TEST_TIMEOUT) ./...
	go test -C samples/modelserver -race -timeout $(TEST_TIMEOUT) ./...

.PHONY: images
images: ## Build the images for amd64 and arm64 into dist/images, as OCI archives. VERSION=v1.2.3 tags them.
	@cd integration/images && go run . -version $(or $(VERSION),dev)

.PHONY: chart
chart: ## Pack the Helm chart into dist/. VERSION=v1.2.3 is its own and the images'.
	@integration/tools/install.sh $(TOOLS_DIR) helm
	@$(TOOLS_DIR)/helm package manifests/charts/inference-waypoint -d dist --app-version $(or $(VERSION),dev) $(if $(VERSION),--version $(VERSION:v%=%))

.PHONY: conformance
conformance: tools modules ## Run the conformance suite of the Gateway API Inference Extension in the mesh.
	@cd integration/conformance && go test -count=1 -timeout 30m

.PHONY: bench
bench: tools modules ## Measure the picker beside nothing and the reference, and the controller at scale. QUICK=1 is shorter.
	@integration/tools/install.sh $(TOOLS_DIR) reference-epp
	@go build -C integration -o ../bin/ ./bench ./scale
	@bin/bench $(if $(QUICK),-quick)
	@echo "The prefix index, and the reading of a metrics page of 37 KB: µs of the process's own CPU are cpu-µs"
	@go test -run '^$$' -bench 'Match|Fetch|Scraper' $(if $(QUICK),-benchtime 200ms) ./internal/picker/prefixindex ./internal/picker/modelmetrics
	@bin/scale $(if $(QUICK),-quick)

# Mooncake's conversation_trace.jsonl (github.com/kvcache-ai/Mooncake, FAST'25, Apache-2.0). Without it the made-up
# workloads run alone.
TRACE ?= ../shared/traces/conversation_trace.jsonl

.PHONY: quality
quality: ## Measure the picker's choices on simulated fleets; writes docs/quality. TRACE=FILE names the real trace.
	go build -C integration -o ../bin/ ./fleetsim
	bin/fleetsim -trace $(TRACE) -out docs/quality

# How long `make soak` runs, and each target of `make fuzz`.
SOAK ?= 5m
FUZZTIME ?= 10m

.PHONY: soak
soak: modules ## Run the picker at full speed for SOAK=5m; fails where memory grows or anything is left.
	@go build -C integration -o ../bin/ ./bench
	@bin/bench -soak $(SOAK)

.PHONY: fuzz
fuzz: ## Fuzz each target for FUZZTIME=10m.
	@grep -rHoE '^func Fuzz[A-Za-z]+' --include='*_test.go' internal samples | sed 's/:func / /' | while read -r file target; do \
		echo "$$target in $$(dirname $$file)"; \
		go test -C $$(dirname $$file) -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s . || exit 1; \
	done

.PHONY: check
check: modules ## Check format, vet, lint and that generated files and modules are up to date.
	@integration/tools/install.sh $(TOOLS_DIR) golangci-lint helm
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not formatted:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	@awk '$$1 == "require" { sub(/^require /, "") } $$2 ~ /^v[0-9]/ { if (($$1 in v) && v[$$1] != $$2) { \
		print FILENAME ": " $$1 " " $$2 ": another go.mod has " v[$$1]; bad = 1 } v[$$1] = $$2 } END { exit bad }' $(SAME_VERSIONS:%=%/go.mod)
	go vet -tags standalone ./cmd/picker
	go vet -C integration -tags engines ./engines
	go run -C integration ./reference -check
	go test -C integration ./manifests
	@test "$$(integration/tools/install.sh --version istiod)" = "$$(integration/tools/install.sh --version istioctl)" || { echo "istiod and istioctl are of different versions"; exit 1; }
	@set -e; for m in $(MODULES); do \
		echo "the module in $$m: vet, tidy, lint"; \
		go vet -C $$m ./...; \
		go mod tidy -C $$m -diff; \
		(cd $$m && $(abspath $(TOOLS_DIR))/golangci-lint run -c $(CURDIR)/.golangci.yml ./...); \
	done

.PHONY: release
release: ## Build a release into dist/VERSION: images, chart, manifests, plugin, SBOMs, changelog. VERSION=v1.2.3.
	@integration/tools/install.sh $(TOOLS_DIR) helm cyclonedx-gomod
	@integration/release/release.sh "$(VERSION)" "dist/$(VERSION)"

.PHONY: docs
docs: ## Write docs/reference from the code.
	go run -C integration ./reference

.PHONY: clean
clean: ## Remove what was built in the checkout; the cache of tools stays.
	rm -rf bin $(TOOLS_DIR) .mesh
