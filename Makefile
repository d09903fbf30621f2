# Every task of a developer, and of CI, starts here. `make help` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.SUFFIXES:

PYTHON ?= python3
JOBS ?= $(shell nproc)
PYTEST_ARGS ?=
BENCH ?=
BIN := .venv/bin
PYTEST := $(BIN)/pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' $(UPGRADE) pyproject.toml

# pytest ends with 5 where a mark is on no test: said, and no failure.
NONE_YET = || { code=$$?; [ $$code -eq 5 ] && echo "$@: no test carries this mark yet" || exit $$code; }

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.* ## ' $(firstword $(MAKEFILE_LIST)) | sort | sed -E 's/^([a-z-]+):.* ## (.*)/\1\t\2/' | expand -t 16

.PHONY: setup
setup: .venv/.installed generate ## make .venv with everything that is needed, and the generated code

# Quiet and instant where nothing changed; a .venv whose Python is gone is made anew.
.venv/.installed: requirements/dev.lock pyproject.toml hatch_build.py
	@command -v $(PYTHON) >/dev/null || { echo "setup: there is no '$(PYTHON)': install Python 3.11 or newer, and name it if it is called otherwise, as in 'make setup PYTHON=python3.12'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: Rota needs Python 3.11 or newer, '$(PYTHON)' is $$($(PYTHON) --version 2>&1): install one and name it, as in 'make setup PYTHON=python3.12'" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "setup: '$(PYTHON)' lacks the module venv: install it, on Debian and Ubuntu with 'apt-get install python3-venv'" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "setup: making .venv"; $(PYTHON) -m venv --clear .venv; }
	@echo "setup: installing what requirements/dev.lock names"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: generate
generate: .venv/.installed ## make the Python code of proto/ where it is out of date
	@$(BIN)/python -m tools.generate

.PHONY: check
check: setup ## lint, types, import rules, contract, changelog fragments
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --cache-dir .build/import-linter
	$(BIN)/python -m tools.contract check
	$(BIN)/towncrier build --draft --version next >/dev/null

.PHONY: fix
fix: setup ## format, and mend what the linter can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: test
test: setup ## the tests that every change must pass
	$(PYTEST)

.PHONY: test-ci
test-ci: setup ## simulation and process faults at the size of a pull request
	$(PYTEST) -m ci --timeout 900 $(NONE_YET)

.PHONY: test-nightly
test-nightly: setup ## the same at full size, hours if need be
	$(PYTEST) -m nightly --timeout 14400 --hypothesis-profile nightly $(NONE_YET)

.PHONY: bench
bench: setup ## Rota's own benchmarks, beside the machine's limits (one: BENCH=limits; BENCH=--help lists them)
	$(BIN)/python -m bench $(BENCH)

.PHONY: bench-smoke
bench-smoke: setup ## under a minute: the ratios to the machine's limits; fails below half of a bar
	$(BIN)/python -m bench.smoke

.PHONY: bench-report
bench-report: setup ## renew the page and the plot of docs/performance from docs/performance/results
	$(BIN)/python -m bench.page

.PHONY: bench-peers
bench-peers: setup ## install what Rota is measured beside; what cannot be is skipped with a word
	$(BIN)/python -m bench.peers

.PHONY: demo
demo: setup ## a cluster, a real array job and its result, then all is stopped again
	$(BIN)/python examples/demo/run.py

.PHONY: docs
docs: setup ## renew the parts of the documentation that follow from the code
	@$(BIN)/python -m tools.docs

.PHONY: lock
lock: .venv/.installed ## renew requirements/*.lock after pyproject.toml changed (all versions: UPGRADE=--upgrade)
	$(LOCK) --output-file requirements/runtime.lock
	$(LOCK) --group dev --constraint requirements/runtime.lock --output-file requirements/dev.lock

.PHONY: baseline
baseline: setup ## make today's contract the one that changes are measured by; needs a decision record
	$(BIN)/python -m tools.contract baseline

.PHONY: clean
clean: ## remove everything that is made from something else
	rm -rf .venv .build dist src/rota/wire/gen .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests tools examples bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
