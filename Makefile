# Every target sets up what it needs: a virtual environment with the project and its tools.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.ready
# Tests start hundreds of interpreters, each of which would compile all that it imports where no bytecode is kept.
unexport PYTHONDONTWRITEBYTECODE
SIDE_BY_SIDE := $(BIN)/pytest --numprocesses auto --dist worksteal

.PHONY: demo test test-fast check lint bench clean setup

demo: $(STAMP)  ## live-migrate a running guest between two processes, once for each clear policy
	$(BIN)/precopy demo

test: $(STAMP)  ## all tests: side by side on all cores, then those that compare speeds, one at a time
	status=0; $(SIDE_BY_SIDE) -m "not alone" || status=$$?; [ $$status -le 1 ] || exit $$status; \
	$(BIN)/pytest -m alone || status=$$?; exit $$status

test-fast: $(STAMP)  ## tests that need nothing real, side by side on all cores, with a quarter of the examples
	PRECOPY_EXAMPLES=$${PRECOPY_EXAMPLES:-25} $(SIDE_BY_SIDE) -m "not real"

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
