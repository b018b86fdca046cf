# make            what there is
# make demo       two sharded clusters, a load, and a whole migration before your eyes
# make test       everything that must hold before a change goes in

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Tests start real servers: this many at once, one test program after the other.
TEST_THREADS ?= 4
# Tests that are left out, by parts of their names: `make test SKIP='one another'`.
SKIP ?=
# `DOCS=no`: what the documentation in the code links to is not looked at, which takes minutes where nothing is built yet.
DOCS ?=
# `LINTS=no`: clippy does not run by itself, as where it stands in for the compiler (see .ci/run).
LINTS ?=
CARGO ?= cargo
# How long generated schedules of the simulator are tried, in seconds; 0: not at all.
SIM_SECONDS ?= 120
# Optimised: a schedule takes a sixth of the time, and compiling that once pays after some thousands. Sums that overflow
# still end it.
SIM_PROFILE = profile.dev.package.reshard
SIM = $(CARGO) test --locked --config '$(SIM_PROFILE).opt-level=2' --config '$(SIM_PROFILE).debug-assertions=false' \
  --config '$(SIM_PROFILE).codegen-units=16' --test sim
# How long `make chaos` goes on, in seconds; CHAOS_SEED=n repeats the schedule that one printed.
CHAOS_SECONDS ?= 600
# What the demo is told: `make demo DEMO='--topology replica-sets'`.
DEMO ?=
# What bench-migration is told: `make bench-migration BENCH='--only-sharded'`.
BENCH ?=
RELEASE = $(CARGO) run --quiet --release --locked -p reshard-loadtest

# What driver-suite is told: `make driver-suite SUITE='--ways replica-set --only bulk'`.
SUITE ?=

.PHONY: help build demo test check soak chaos bench bench-migration driver-suite

help:
	@echo 'make demo             two sharded clusters, a load, and a move to another shard key (DEMO=--help)'
	@echo 'make test             formatting, lints, dependencies, all tests, drivers among them (TEST_THREADS=4)'
	@echo 'make check            the part of it that starts no server'
	@echo 'make soak             schedules of the simulator that nobody wrote (SIM_SECONDS=120)'
	@echo 'make chaos            real servers under load, and whatever can happen to them (CHAOS_SECONDS=600, CHAOS_SEED=n)'
	@echo "make driver-suite     PyMongo's own tests, directly and through the proxy; an hour and more (SUITE=--help)"
	@echo 'make build            target/release/reshard'
	@echo 'make bench            what the proxy costs: operations beside direct ones'
	@echo 'make bench-migration  copies and moves, beside a plain copy and reshardCollection (BENCH=--help)'

build:
	$(CARGO) build --release --locked -p reshard --bin reshard

demo: build
	$(RELEASE) --bin demo -- $(DEMO)

bench: build
	$(RELEASE) --bin bench

bench-migration: build
	$(RELEASE) --bin bench_migration -- $(BENCH)

driver-suite:
	$(CARGO) build --locked -p reshard --bin reshard
	$(CARGO) build --locked -p reshard-testbed --bin reshard-testbed
	python3 tests/drivers/python/suite.py --bin target/debug --cache target/tmp/drivers-cache $(SUITE)

soak:
	if [ "$(SIM_SECONDS)" -gt 0 ]; then SIM_SECONDS=$(SIM_SECONDS) $(SIM) -- generated_schedules --nocapture; fi

chaos:
	CHAOS_SECONDS=$(CHAOS_SECONDS) $(CARGO) test --locked --test chaos -- --nocapture

check:
	$(CARGO) fmt --all --check
	if [ "$(LINTS)" != no ]; then $(CARGO) clippy --workspace --all-targets --locked -- -D warnings; fi
	if [ "$(DOCS)" != no ]; then RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked --quiet; fi
	if command -v cargo-deny >/dev/null; then cargo deny check; else echo 'cargo-deny is not installed: known vulnerabilities are not looked up'; fi

test: check
	time $(CARGO) test --workspace --locked --no-run
	$(CARGO) test --workspace --locked --no-fail-fast -- --test-threads=$(TEST_THREADS) $(foreach name,$(SKIP),--skip $(name))
	$(MAKE) --no-print-directory soak
