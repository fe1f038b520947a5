# make sweep       run a sweep and print its Pareto front
# make ui          open MLflow over mlflow_runs/
# make test        install the test extras and run the tests
#
# Variables of `make sweep`: SPACE TRIALS STEPS REPEATS NAME ADDRESS BASE_MODEL DATA
# (each passed to qlora-sweep run as the flag of that name; unset ones are chosen for the machine).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
FLAGS := $(foreach v,SPACE TRIALS STEPS REPEATS NAME ADDRESS BASE_MODEL DATA,$(if $($(v)),--$(shell echo $(v) | tr A-Z_ a-z-) "$($(v))"))

.PHONY: sweep ui test test-all lint demo clean

sweep: $(VENV)/installed
	@$(BIN)/qlora-sweep run $(FLAGS)

ui: $(VENV)/installed
	@$(BIN)/qlora-sweep ui

test: $(VENV)/installed-test
	@$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/installed-test
	@$(BIN)/python -m pytest

lint: $(VENV)/installed-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

demo: $(VENV)/installed
	@$(BIN)/python -m trainables.demo.build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "Setting up $(VENV) (once; a few minutes, most of it PyTorch)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(PIP) --constraint constraints.txt --editable '.[test]'
	@touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build *.egg-info
