# Every target sets up what it needs: a virtual environment with the project and its tools.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.ready

.PHONY: demo test check lint bench clean setup

demo: $(STAMP)  ## live-migrate a running guest between two processes, once for each clear policy
	$(BIN)/precopy demo

test: $(STAMP)  ## all tests, fast ones first; what was skipped is listed with its reason
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## what CI runs

bench: $(STAMP)
	$(BIN)/precopy bench migrate

setup: $(STAMP)

$(STAMP): pyproject.toml requirements-dev.txt scripts/setup
	PYTHON=$(PYTHON) scripts/setup $(VENV)
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
