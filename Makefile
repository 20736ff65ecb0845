# Two commands for a fresh machine that has only Python >= 3.11, git and make:
#   make demo    pre-train on the bundled images, measure the encoder, write a report (a few minutes)
#   make test    everything that must hold: style, types, tests, documentation, wheel
# Each does its own set-up in .venv; a second call skips what is done. PYTHON=... picks another interpreter.

VENV := .venv
BIN := $(VENV)/bin
# One BLAS thread per test process: two processes with two threads each on two cores are ten times slower than one.
TEST_PROCESSES ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help demo test lint types unit docs wheel bench clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@echo "make demo    pre-train on the bundled images, measure, write a report"
	@echo "make test    lint, types, tests, documentation, wheel"
	@echo "make bench   speed of the methods beside their peers (downloads transformers)"
	@echo "make lint | types | unit | docs | wheel   the parts of 'make test'"
	@echo "make clean   delete caches, builds and $(VENV); runs/ stays"

demo: $(VENV)/.installed
	$(BIN)/halfseen demo

test: lint types unit docs wheel
	@echo "All checks passed."

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "Documentation: docs/_build/html/index.html"

wheel: $(VENV)/.installed-dev
	$(BIN)/python scripts/check_wheel.py

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The first interpreter that is new enough and really starts (a shim may exist without its Python).
$(BIN)/python:
	@for python in "$(PYTHON)" python3 python3.13 python3.12 python3.11 python3.14 python; do \
	  if [ -n "$$python" ] && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Setting up $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv $(VENV) && exit 0; \
	    echo "Could not create $(VENV) with $$python. On Debian or Ubuntu: apt install python3-venv." >&2; \
	    rm -rf $(VENV); exit 1; \
	  fi; \
	done; \
	echo "No Python >= 3.11 found. Install one, or say which: make demo PYTHON=/path/to/python3.12" >&2; exit 1

# The editable install with more extras contains the smaller one, so each also marks that one as done.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing halfseen and its dependencies into $(VENV): once, a few minutes, torch is large."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing halfseen with the tools for its tests into $(VENV): once, a few minutes, torch is large."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable ".[dev,docs]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable ".[bench]"
	@touch $(VENV)/.installed $@
