# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test lint bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## a virtual environment with the tested versions of everything

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## the whole journey on the built-in synthetic world, a few minutes on two cores
	$(BIN)/infnet demo --out demo

test: setup  ## all tests
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: setup  ## style and types
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

bench: setup  ## the measurements of docs/performance.md that need no data of yours
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/batches.py
	$(BIN)/python benchmarks/gauc.py
	$(BIN)/python benchmarks/embedding_step.py
	$(BIN)/python benchmarks/preparation.py --millions 1 5 20

clean:  ## remove what make made
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
