# serve: a running server from a fresh clone. test: the whole suite. check: what CI runs. verify: what takes longer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help serve test check verify bench bench-quick bench-peers lock stubs recipes clean
help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: ## set up if needed, and serve the shipped models on http://127.0.0.1:8000
	@PYTHON=$(PYTHON) scripts/setup.sh server
	@exec $(BIN)/headway serve

test: ## set up if needed, and run the whole suite
	@PYTHON=$(PYTHON) scripts/setup.sh test
	@scripts/test.sh

check: ## format, lint, types and tests: what CI runs
	@PYTHON=$(PYTHON) scripts/setup.sh test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@scripts/test.sh

verify: ## what takes too long for check; writes docs/verification/
	@PYTHON=$(PYTHON) scripts/setup.sh test
	@scripts/verify.sh

bench: ## the benchmark, to docs/benchmarks/benchmark.*; needs a quiet machine
	@PYTHON=$(PYTHON) scripts/setup.sh test
	@scripts/debian.sh wrk:wrk gcc:cc libc6-dev:
	@$(BIN)/python -m bench.run

bench-quick: ## the same in under three minutes
	@PYTHON=$(PYTHON) scripts/setup.sh test
	@scripts/debian.sh wrk:wrk gcc:cc libc6-dev:
	@$(BIN)/python -m bench.run --quick

bench-peers: ## the same with the servers a user would pick instead; installs 2 GB in .venv-peers
	@PYTHON=$(PYTHON) scripts/setup.sh test
	@scripts/debian.sh wrk:wrk gcc:cc libc6-dev:
	@$(BIN)/python -m bench.run --peers

stubs: ## make the messages of gRPC anew from protocol/
	@PYTHON=$(PYTHON) scripts/stubs.sh

lock: ## make requirements/*.txt anew from pyproject.toml
	@scripts/lock.sh

recipes: ## an environment for recipes/, in .venv-recipes
	@PYTHON=$(PYTHON) VENV=.venv-recipes scripts/setup.sh recipes

clean: ## remove the environments and caches
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache
