# make demo    a .venv, the program, and its main job on real input (handwritten digits): demo/report.html
# make test    the same set-up, then the linters, the type checker, the import contracts and all tests
# make help    this text
#
# PYTHON=...     another Python 3.11 or newer            (make demo PYTHON=/opt/python3.12/bin/python3)
# PIP_FLAGS=...  further flags for pip                   (make demo PIP_FLAGS="--extra-index-url URL-of-CPU-builds")
# ARGS=...       arguments for the demo or for pytest    (make demo ARGS="--seed 1", make test ARGS="-k graph")

PYTHON ?= python3.11
VENV ?= .venv
PIP_FLAGS ?=
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt $(PIP_FLAGS)

# Two tests run at once; one thread for each keeps them from standing in each other's way.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test check lint install clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,8p'

demo: $(VENV)/.installed
	$(BIN)/metanet demo $(ARGS)

test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory check

# The checks alone, in an environment that stands.
check: lint
	$(BIN)/python -m pytest $(ARGS)

lint:
	$(BIN)/ruff check --output-format concise .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed-dev

# setuptools comes first and builds without isolation, so that the version in constraints.txt builds the package.
$(VENV)/.setuptools: constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "make: could not make a virtual environment with '$(PYTHON)';" \
		"install Python 3.11 with its venv module, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PIP) setuptools
	@touch $@

$(VENV)/.installed: $(VENV)/.setuptools pyproject.toml setup.py
	@echo "Installing metanet and what it stands on into $(VENV) (PyTorch is large: minutes on a slow line)"
	$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.setuptools pyproject.toml setup.py
	@echo "Installing metanet, what it stands on and the tools for its tests into $(VENV)"
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
