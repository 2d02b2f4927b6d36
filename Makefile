# make demo      everything from data to report on a CPU, in minutes     make test      the tests but the slow ones
# make check     format, lint, types, layers, tests                      make test-all  every test
# make test-lowest   the fast tests at the lowest versions promised      make clean     remove the environments
# make test-wheel    sdist and wheel, installed elsewhere and run         make docs      the docs site, in build/docs/site
# make resolve     the pins have a wheel for every Python promised; uv asks the index, and nothing is installed
#
# Each target but resolve, which needs uv, sets up what it needs in .venv; Python 3.11 or newer and make are all that must be there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PYTEST := -m pytest -n auto --dist loadfile
# Tests that take seconds and pass through every room that a declared library serves.
FAST := tests/test_dependencies.py tests/trainer/test_config.py tests/trainer/test_training_arguments.py \
	tests/cache_builder/format tests/cache_builder/cache tests/cache_builder/cli tests/cache_builder/data \
	tests/cache_builder/sharing tests/cache_builder/interchange tests/trainer/stages/test_lora.py \
	tests/trainer/report/test_plots.py

.PHONY: demo docs test test-all test-lowest test-wheel resolve lint check clean

demo: $(VENV)/ready
	$(BIN)/footsteps demo

docs: $(VENV)/ready-dev
	$(BIN)/python -m tools.docs_site build/docs
	cd build/docs && $(abspath $(BIN))/zensical build --strict --clean --config-file zensical.toml

test: $(VENV)/ready-dev
	$(BIN)/python $(PYTEST) -m "not slow"

test-all: $(VENV)/ready-dev
	$(BIN)/python $(PYTEST)

test-lowest: $(VENV)-lowest/ready
	$(VENV)-lowest/bin/python $(PYTEST) -W ignore::DeprecationWarning -m "not slow and not s3 and not browser" $(FAST)

# From the wheel alone: a small install reads a cache; torch and its like are shared, and the demo runs in another folder.
test-wheel: $(VENV)/ready-dev
	rm -rf $(VENV)-wheel
	$(BIN)/python -m build --outdir $(VENV)-wheel/dist .
	$(BIN)/python -m twine check --strict $(VENV)-wheel/dist/*
	$(PYTHON) -m venv $(VENV)-wheel/small
	$(VENV)-wheel/small/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt $(VENV)-wheel/dist/*.whl
	$(VENV)-wheel/small/bin/footsteps cache verify tests/fixtures/cache_v1
	$(PYTHON) -m venv $(VENV)-wheel/train
	$(VENV)-wheel/train/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(VENV)-wheel/dist/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(VENV)-wheel/train/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	cd $(VENV)-wheel && PYTHONPATH= train/bin/footsteps demo --quick && test -s runs/demo-quick/report/index.html

# The docs site's generator needs 3.11.5; all else 3.11.0.
resolve:
	for python in 3.11.5 3.12 3.13; do \
		uv pip compile --quiet --output-file /dev/null --python-version $$python --python-platform x86_64-manylinux_2_28 \
			--only-binary :all: --extra train --extra dev --extra remote --constraint constraints.txt pyproject.toml || exit 1; \
	done

lint: $(VENV)/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-wheel

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[train]'
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(PIP) --editable '.[train,dev,remote]'
	touch $@

# What is pinned lowest lies in front of what is installed already, so that torch is not installed twice.
$(VENV)-lowest/ready: $(VENV)/ready-dev constraints-lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(VENV)-lowest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/newest.pth"
	$(VENV)-lowest/bin/python -m pip --disable-pip-version-check install --quiet --requirement constraints-lowest.txt
	touch $@
