# make vectors needs Go and a POSIX shell. make test also needs PostgreSQL and pgbouncer, which it finds or installs, as
# docs/operations.md (Testing) says. lint also installs its linter, into .bin/.

.DEFAULT_GOAL := help

# Every folder with a go.mod is a module of its own, and every target below goes through all of them.
MODULES := $(patsubst %/go.mod,%,$(wildcard ./go.mod cmd/*/go.mod benchmarks/go.mod))

GO           ?= go
GOLANGCI     := v2.15.0
GOLANGCI_BIN := $(CURDIR)/.bin/golangci-lint-$(GOLANGCI)

# The oldest and the newest PostgreSQL that keyhold promises to work with and that can be had.
POSTGRES_VERSIONS ?= 14.3.0-beta.6 18.4.0-beta.17

FUZZTIME ?= 10s

# Where there is no PostgreSQL or pgbouncer, tests that run as root may install Debian's; empty forbids it.
export KEYHOLD_TEST_INSTALL ?= 1

# The root package may export so many names, and no more. Raising it takes a reason in the commit message.
EXPORTED_MAX ?= 86

# each runs a command in every module and stops at the first that fails: $(call each,command)
each = @set -e; for dir in $(MODULES); do echo "== $$dir: $(1)"; (cd "$$dir" && $(1)); done

.PHONY: help
help: ## Say what the targets are
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Tests of all packages of all modules are one go test: if each module had its own, the processors would wait for the last
# test of one before the next begins. And as most packages wait about half their time, for seconds to pass or for a
# database, half as many more of them run at a time than there are processors.
EVERYTHING := -p $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n + (n + 1) / 2)))
PACKAGES   := ./... $(patsubst %,./%/...,$(filter-out .,$(MODULES)))

.PHONY: test
test: ## Run the tests of all modules
	$(GO) test -timeout 20m $(EVERYTHING) $(PACKAGES)

# How often make endure has each race and each failover run. From 50 on, the tests of fleets use their full figures.
REPEAT ?= 100

.PHONY: endure
endure: ## Repeat races and failovers REPEAT (100) times, and test fleets with the full figures
	KEYHOLD_TEST_REPEAT=$(REPEAT) $(GO) test -count=1 -timeout 120m -v \
		-run '^Test(Race|Fleet|Failover|NothingSealsThatWasNotCommitted)' .
	KEYHOLD_TEST_REPEAT=$(REPEAT) $(GO) test -count=1 -timeout 30m -v -run '^TestFaultTransition' ./dekmanager

.PHONY: test-postgres-versions
test-postgres-versions: ## Run the tests on PostgreSQL on its oldest and newest version (needs npm)
	@GO=$(GO) sh .ci/postgres-versions $(POSTGRES_VERSIONS)

# SQLite is C that was translated to Go. It locks by means of its own, so that watching its every access to memory finds
# nothing, and makes the tests three times as slow.
UNWATCHED := -gcflags=modernc.org/sqlite/lib=-race=false -gcflags=modernc.org/libc=-race=false

# What one goroutine does alone, and takes long, is left to make test: models, what statements and messages that fail leave
# in a database, how its catalogue is compared, and the search for secrets in all that is printed. What operations leave
# that fail is watched over the store in memory. So are commands that follow each other, and what processes leave that
# are killed.
LONELY := ^TestEvery(Raw)?OperationSurvivesEveryFault$$/^(postgres|sqlite)$$
LONELY := $(LONELY)|^TestConformance$$/./^model$$|^TestConformanceOnAnotherDriver$$/^model$$
LONELY := $(LONELY)|^TestAnyMessageMayBeTheLast$$|^TestAnyStatementMayFail$$
LONELY := $(LONELY)|^TestScripts$$|^TestAKilled|^TestFleet.*Killed|^TestProcesses$$/^that_are_killed
LONELY := $(LONELY)|^TestCreateScopesWhateverBecomesOfTheWrites$$/^(postgres|sqlite)$$
LONELY := $(LONELY)|^TestIntegrity|^TestEveryRuleOfTheTables|^TestRootsNoErrorHoldsASecret$$

# Without GORACE each process waits a second before it ends, and the tests of the command line start hundreds. make verify
# vets everything, so that this need not do it for other build tags.
.PHONY: race
race: ## Run the tests where goroutines meet under the race detector (needs cgo and a C compiler)
	GORACE=atexit_sleep_ms=10 CGO_ENABLED=1 $(GO) test -race -vet=off -timeout 25m -skip '$(LONELY)' $(UNWATCHED) $(EVERYTHING) $(PACKAGES)

# The root in a token of PKCS #11 is only in programs that are built with this tag, since it is C. Its tests make their own
# token with SoftHSM.
.PHONY: pkcs11
pkcs11: $(GOLANGCI_BIN) ## Lint and test what is built with the tag pkcs11 (needs cgo, a C compiler and SoftHSM)
	cd cmd/keyhold && CGO_ENABLED=1 $(GO) vet -tags pkcs11 ./...
	cd cmd/keyhold && CGO_ENABLED=1 $(GOLANGCI_BIN) run --build-tags pkcs11 --config $(CURDIR)/.golangci.yml ./internal/roots/...
	cd cmd/keyhold && CGO_ENABLED=1 $(GO) test -tags pkcs11 -run 'Token|PKCS11' ./internal/roots
	cd cmd/keyhold && CGO_ENABLED=1 $(GO) test -tags pkcs11 ./internal/roots/pkcs11

# The stores and dekmanager use no algorithm, and what many processes do is no other than what one does. What an operation
# leaves that was interrupted is no matter of algorithms, and is looked at over the store in memory.
.PHONY: fips
fips: ## Run the tests of all modules with every algorithm that FIPS 140-3 does not approve refused
	GODEBUG=fips140=only $(GO) test -vet=off \
		-skip '^Test(Fleet|Failover|Race|EveryRawOperation)|^TestEveryOperationSurvivesEveryFault$$/^(postgres|sqlite)$$' \
		$(EVERYTHING) $$($(GO) list $(PACKAGES) | grep -vE '/store|/dekmanager')

.PHONY: lint
lint: $(GOLANGCI_BIN) ## Run golangci-lint over all modules
	$(call each,$(GOLANGCI_BIN) run --config $(CURDIR)/.golangci.yml ./...)

$(GOLANGCI_BIN):
	mkdir -p $(@D)
	GOWORK=off GOBIN=$(@D) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	mv $(@D)/golangci-lint $@

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (10s)
	@FUZZTIME=$(FUZZTIME) GO=$(GO) sh .ci/fuzz $(MODULES)

# The whole run takes about half an hour; RUNS and KEYHOLD_BENCH_KEYS make it shorter.
.PHONY: bench
bench: ## Run all benchmarks, beside other libraries, and write docs/benchmarks.md
	@GO=$(GO) sh .ci/bench

.PHONY: bench-short
bench-short: ## Run each benchmark once, and fail where a promised ratio does not hold
	$(GO) test -timeout 3m -run '^$$' -short -bench . -benchtime 1x $(EVERYTHING) $(PACKAGES)
	@GO=$(GO) sh .ci/bench-short

.PHONY: vectors
vectors: ## Make fresh test vectors and check them, and those of the repository
	@set -e; file=$$(mktemp); trap 'rm -f "$$file"' EXIT; \
	$(GO) run ./vectors/gen >"$$file"; \
	echo "== $$(wc -c <"$$file") bytes of fresh vectors"; \
	KEYHOLD_VECTORS=$$file $(GO) test -count=1 ./vectors/...; \
	$(GO) test -count=1 ./vectors/...

.PHONY: verify
verify: ## Check what tests do not: tidy modules, formatting, vet, size of the API, wording
	@EXPORTED_MAX=$(EXPORTED_MAX) GO=$(GO) sh .ci/verify $(MODULES)
