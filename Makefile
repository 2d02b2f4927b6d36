# make demo    everything from data to report on a CPU, in minutes      make test    the tests
# make check   format, lint, types, layers, tests                      make clean   remove the environment
#
# Each target sets up what it needs in .venv; Python 3.11 or newer and make are all that must be there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint check clean

demo: $(VENV)/ready
	$(BIN)/footsteps run configs/demo.toml

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

clean:
	rm -rf $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[train]'
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(PIP) --editable '.[train,dev,remote]'
	touch $@
