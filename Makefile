# One virtual environment, made once, with the versions of constraints.txt; remade when they change.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
STAMP  := $(VENV)/.installed
TORCH  := $(shell sed -n 's/^torch==\([0-9.]*\).*/torch==\1/p' constraints.txt)

.PHONY: demo test lint format wheel clean
.DEFAULT_GOAL := demo

demo: $(STAMP)  ## generate a patient with a tumour, segment it, say how well that went
	$(BIN)/diffugts demo --output demo

test: $(STAMP)  ## the whole suite
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "diffugts needs Python 3.10 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# torch comes first and by itself, so that nothing that follows can choose another build of it.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (once; a few minutes)"
	$(PIP) $(TORCH)
	$(PIP) -c constraints.txt hatchling editables
	$(PIP) -c constraints.txt --no-build-isolation -e '.[text,dicom,serve,dev]'
	@touch $@
