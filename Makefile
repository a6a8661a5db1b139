# Makefile - every command of the project. Each works from a clean clone, given python3 (3.11 or
# later, with venv), gcc and make; what else they need goes into .venv.

PYTHON ?= python3
VENV   := .venv
JOBS   ?= $(shell cores=$$(nproc); echo $$((cores < 8 ? cores : 8)))
ifeq ($(origin CC),default)
CC     := gcc
endif

BIN          := $(VENV)/bin
CORE_C       := $(wildcard shm_engine/core/*.c)
CORE_SOURCES := $(CORE_C) $(wildcard shm_engine/core/*.h shm_engine/*.[ch] shm_engine/*.pyx shm_engine/*.px[di])
C_WARNINGS   := -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -Ishm_engine/core

.DEFAULT_GOAL := help
.PHONY: help .venv demo test test-core test-python bench bench-short lint c-warnings clean

help: ## this list
	@grep -hE '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## /\1|/' | \
		while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

.venv: $(VENV)/.built ## the virtual environment, with the package installed in place

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name it with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# Touching the stamp is the last step, so that an interrupted installation is done again.
$(VENV)/.installed: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# After a change in C only what changed is compiled; build_ext itself knows when there is nothing.
$(VENV)/.built: $(VENV)/.installed $(CORE_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

demo: .venv ## the main job: a pool of agents surveys a source tree
	$(BIN)/shm-engine demo $(FOLDER)

test: test-core test-python ## all tests

test-core: ## the C core's tests under the sanitizers
	$(MAKE) -j$(JOBS) -C tests/core JOBS=$(JOBS)
	$(MAKE) -C tests/fuzz
	$(MAKE) -C tests/crash

test-python: .venv ## the Python tests
	$(BIN)/python -m pytest -n $(JOBS)

bench: .venv ## every measurement, with JSON and pictures
	$(BIN)/python -m bench

bench-short: .venv ## the same in about a minute
	$(BIN)/python -m bench --short

lint: .venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

c-warnings: ## every C file of the core, warnings being errors
	@for file in $(CORE_C); do \
		echo "$(CC) -fsyntax-only $$file"; $(CC) $(C_WARNINGS) -fsyntax-only $$file || exit 1; \
	done

clean: ## removes what the other commands made
	rm -rf $(VENV) build dist *.egg-info shm_engine/_core*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@for folder in tests/core tests/fuzz tests/crash; do \
		if [ -f $$folder/Makefile ]; then $(MAKE) -C $$folder clean; fi \
	done
