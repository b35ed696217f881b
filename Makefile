# `make quickstart` and `make test` need only Python 3.11+; the targets install everything else.
# Tiers of tests: test-fast < test; CI adds test-wheel, test-product, test-faults, test-slurm, test-ray and audit.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast test-wheel test-product test-faults test-slurm test-ray test-gpu lint audit constraints clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true # as pip does, but on all cores; errors are expected, since some templates are not valid Python
	@touch $@

quickstart: $(VENV)/.installed ## repeat the study `quickstart` from scratch and write reports/my_quickstart
	$(BIN)/bench train -m experiment=quickstart study=my_quickstart
	$(BIN)/bench report study=my_quickstart

lint: $(VENV)/.installed ## ruff and mypy
	$(BIN)/ruff check bench tests examples .ci
	$(BIN)/ruff format --check bench tests examples .ci
	$(BIN)/mypy

test-fast: $(VENV)/.installed ## quick tests, in 90 seconds: no whole commands, nothing slow
	$(PYTEST) -m 'not (slow or product or faults or slurm or ray or gpu)'

test: lint ## lint, types and tests, contracts on one representative per capability, in 7 minutes
	$(PYTEST)

test-wheel: ## build the wheel, install it elsewhere and run a tiny study from it, in 3 minutes
	PYTHON=$(PYTHON) .ci/installed.sh

test-product: $(VENV)/.installed ## the full product of strategies and tasks, other precisions and layouts of ranks
	$(PYTEST) -m product

test-faults: $(VENV)/.installed ## 50 kills, full disks and other damage; what `make test` has no time for
	$(PYTEST) -m faults

test-slurm: $(VENV)/.installed ## a study on a real Slurm of one node, made of Debian's packages where root may
	@tests/e2e/one_node_slurm.sh start; case $$? in \
	0) $(BIN)/pytest -m slurm tests/e2e/test_slurm.py ;; \
	3) echo '=== SKIPPED: the tests on Slurm, for the reason above ===' ;; \
	*) exit 1 ;; esac

test-ray: $(VENV)/.installed ## runs on Ray, an optional package of 80 MB that this installs
	@if $(BIN)/pip install --quiet --editable '.[ray]'; then $(BIN)/pytest -m ray tests/e2e/test_ray.py; \
	else echo '=== SKIPPED: the tests on Ray, which cannot be installed ==='; fi

test-gpu: $(VENV)/.installed ## strategies, tasks, layouts and a study on a GPU, held against the CPU; skipped without one
	$(BIN)/pytest -m gpu -rs

audit: $(VENV)/.installed ## dependencies: do they fit, their licences, their known vulnerabilities
	$(BIN)/pip install --quiet --editable '.[audit]'
	$(BIN)/python .ci/audit.py

constraints: $(VENV)/.installed ## write constraints.txt, the versions in .venv; for after .ci/run has passed
	$(BIN)/python .ci/constraints.py >constraints.txt

clean: ## remove the environment and prepared data; records and reports stay
	rm -rf $(VENV) data .mypy_cache .ruff_cache .pytest_cache
