# `make` lists what there is. PYTHON=python3.12 picks the interpreter; an environment of another Python is then made anew.
# Only the first `make run` or `make test` installs (several GB with torch's CUDA build); later ones start at once.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-slow lint benchmark install clean remade
SHELL := /bin/bash

BIN := .venv/bin
JOB := jobs/compare_schedules.py
export DS_BUILD_OPS := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Without PYTHON, whatever environment is already here is used.
ifeq ($(origin PYTHON),undefined)
PYTHON := python3
else ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(PYTHON) -c 'import sys; print(*sys.version_info[:2])' 2>&1),$(shell $(BIN)/python -c 'import sys; print(*sys.version_info[:2])' 2>&1))
REMADE := remade
endif
endif

help:
	@echo "make run                    compare four training schedules on the bundled images (ARGS='--seeds 5' adds options)"
	@echo "make test                   the tests, without the slow ones (ARGS='-k plan')"
	@echo "make test-slow              the slow tests"
	@echo "make lint                   ruff and mypy"
	@echo "make benchmark [ONLY=name]  speed and size"
	@echo "make install                only the environment, in .venv"
	@echo "make clean                  remove the environment and caches; runs stay"

run: $(BIN)/.installed
	$(BIN)/llf-ray compare $(JOB) --again $(ARGS)

test: $(BIN)/.installed-test
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(BIN)/.installed-test
	$(BIN)/python -m pytest -m slow --timeout=1800 $(ARGS)

lint: $(BIN)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/mypy

benchmark: $(BIN)/.installed
	$(BIN)/python -m benchmarks $(ONLY)

install: $(BIN)/.installed

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find llf_ray tests jobs benchmarks tune_spaces -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python: $(REMADE)
	@command -v "$(PYTHON)" >/dev/null || { echo "make: no '$(PYTHON)' found; install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { echo "make: $$($(PYTHON) --version) found, but Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: this Python cannot create environments; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv

# A stamp is younger than its inputs when all it stands for is installed.
$(BIN)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing llf_ray and what it needs into .venv: some minutes, several GB with torch's CUDA build ..."
	@$(BIN)/python -m pip install --quiet --quiet -c constraints.txt -e .
	@touch $@

$(BIN)/.installed-%: $(BIN)/.installed
	@echo "Installing the '$*' extra ..."
	@$(BIN)/python -m pip install --quiet --quiet -c constraints.txt -e '.[$*]'
	@touch $@
