# `make demo` and `make test` do everything: they make an environment, install into it and run.
# PYTHON  another interpreter, 3.10 or later: make demo PYTHON=python3.12
# TORCH   which torch to install, as pip's arguments: make test TORCH=torch==2.13.0
# `make docs` builds the pages of docs/ as a site in build/site.
# MATRIX  which environments `make test-matrix` runs (default all): make test-matrix MATRIX=newest-3.12
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
MATRIX ?=
BIN := $(VENV)/bin
export TORCH

.PHONY: demo test test-matrix lint docs clean

demo: $(VENV)/.installed
	$(BIN)/lipstream demo -o demo
	@echo "The result is demo/lipstream-demo.mp4"

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -n 2

test-matrix:
	$(PYTHON) tools/test_matrix.py $(MATRIX)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_vocabulary.py

docs:
	$(PYTHON) -m venv build/docs-venv
	build/docs-venv/bin/python -m pip install --quiet "mkdocs-material>=9.5"
	build/docs-venv/bin/mkdocs build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "lipstream needs Python 3.10 or later: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "this Python cannot make virtual environments: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Unless TORCH says otherwise, uv picks the build for this machine: the CPU build where there is no GPU, which saves
# gigabytes. Where its index cannot be reached, pip takes the package index's default build.
$(VENV)/.torch: | $(VENV)/bin/python
	@echo "Installing torch into $(VENV): 200 MB to download for a CPU, about 3 GB with CUDA; this takes a while"
	@if [ -n "$(TORCH)" ]; then $(BIN)/python -m pip install $(TORCH); else \
	  $(BIN)/python -m pip install --quiet uv \
	  && UV_HTTP_RETRIES=1 $(BIN)/uv pip install --python $(BIN)/python --torch-backend auto torch \
	  || { echo "Taking the default build of torch; to choose another: make clean $(MAKECMDGOALS) TORCH='torch --index-url URL'"; \
	       $(BIN)/python -m pip install torch; }; fi
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	@echo "Installing lipstream and what it needs into $(VENV): half a minute"
	@$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what tests and linting need into $(VENV)"
	@$(BIN)/python -m pip install --quiet -e ".[dev]" -e ./lab
	@touch $@

clean:
	rm -rf $(VENV) .matrix demo build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} +
