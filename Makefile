# On a bare machine with python3 and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := $(VENV)/.demo
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo classroom test lint types unit test-wheel docs docs-tables clean

help: ## Show the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1|\2/' | awk -F'|' '{printf "  %-18s %s\n", $$1, $$2}'

# What is installed depends on pyproject.toml alone: a second run reuses the environment unless that changed.
$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "'$(PYTHON)' was not found. nnrepair needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "nnrepair needs Python 3.11 or newer, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)."; \
	  echo "Name a newer one: make PYTHON=python3.11 ..."; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian or Ubuntu its files come with the package python3-venv."; exit 1; }

$(STAMP): pyproject.toml | $(BIN)/python
	@echo "Installing what developers need; this takes some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(DEMO): pyproject.toml | $(BIN)/python
	@test -e $(STAMP) || echo "Installing torch and what the demonstration needs; this takes some minutes."
	@test -e $(STAMP) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

demo: $(DEMO) ## Repair a real digits classifier, prove it, write a report
	$(BIN)/nnrepair demo

classroom: $(STAMP) ## Open the classroom: repair digits in the browser
	$(BIN)/nnrepair classroom

test: lint types unit ## Lint, check types and run the tests

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)
	$(BIN)/mypy

unit: export OMP_NUM_THREADS = 1
unit: $(STAMP) # by worksteal most files run in one process, so that what their tests share is made once
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-wheel: export OMP_NUM_THREADS = 1
test-wheel: $(STAMP) ## Test the package as installed, without extras, outside the checkout
	$(BIN)/python tests/wheel/run.py

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(STAMP) ## Build the documentation as a site in build/docs; a warning is an error
	$(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

docs-tables: $(STAMP) ## Write the tables of the docs from the committed benchmark results
	$(BIN)/python -m benchmarks table

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
