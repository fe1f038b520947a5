# make sweep             run a sweep and print its Pareto front
# make report            say in eight lines what a sweep came to, and where report.html lies: NAME, or else the newest
# make card              fill MODEL_CARD.md from the sweep NAME; what stands there is replaced
# make card-evidence     run the sweeps behind a model card, one after the other, and fill it: BASE_MODEL, DATA
# make ui                open MLflow over mlflow_runs/, on this machine only; others: HOST PORT ALLOWED_HOSTS, a password
# make test              the unit tests and a demo sweep through the command line
# make test-integration  real Ray clusters, ports, Chromium, PostgreSQL, the notebook, the short form of the fault suite
# make test-all          every test, those that take minutes too
# make faults            the whole fault suite: killed drivers, workers, nodes and heads, damaged files, a full disk, ...
# make bench             the benches by name; ARGS=NAME runs one, ARGS='NAME --help' says what it takes
# make lint              style and calls;  make audit: constraints.txt against the known advisories (needs the package index's)
# make demo              the demo's files anew;  make clean: away with .venv;  make help: this
#
# What a target takes stands below, each passed on as the flag of that name; any other is refused. ARGS goes to the
# program as it is: make sweep ARGS='--max-hours 2'. Of `make sweep`, unset ones are chosen for the machine.

sweep_takes := SPACE TRIALS STEPS FINALIST_SEEDS NAME ADDRESS DEVICE DEVICE_KIND GPUS_PER_TRIAL STORAGE TRACKING_URI \
	BASE_MODEL DATA DATA_SPLIT COLUMNS KEEP_16BIT
ui_takes := HOST PORT ALLOWED_HOSTS
report_takes := NAME
card_takes := NAME
card-evidence_takes := BASE_MODEL DATA DATA_SPLIT COLUMNS DEVICE NAME ONLY OUTPUT LICENSE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
quoted = '$(subst ','\'',$(value $(1)))'
# Terminals keep their width under the name COLUMNS: it counts where it was said to make itself.
said = $(if $(filter-out COLUMNS,$(1))$(filter command,$(origin $(1))),$(value $(1)))
flags = $(foreach v,$($@_takes),$(if $(call said,$(v)),--$(shell echo $(v) | tr A-Z_ a-z-) $(call quoted,$(v)))) $(value ARGS)
named = $(if $(value NAME),$(call quoted,NAME)) $(value ARGS)
pytest = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
quick = OMP_NUM_THREADS=1 $(pytest) -m "not slow" --numprocesses 2 --dist loadfile

given := $(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $(v))),$(v)))
known := ARGS PYTHON $(sort $(foreach goal,$(MAKECMDGOALS),$($(goal)_takes)))
unknown := $(firstword $(filter-out $(known) VENV SHELL MAKEFLAGS,$(given)))
match := import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], n=1))
nearest = $(addprefix ; did you mean ,$(shell $(PYTHON) -c '$(match)' '$(unknown)' $(known)))
taking := sweep ui report card card-evidence
owner := $(firstword $(foreach target,$(taking),$(if $(filter $(unknown),$($(target)_takes)),$(target))))
$(if $(owner),$(error $(unknown) is of another target: make $(owner) $(unknown)=...))
$(if $(unknown),$(error there is no variable $(unknown) here$(nearest); a flag of its program: ARGS='--flag value' (have: $(known))))

.DEFAULT_GOAL := help
.PHONY: sweep ui report card card-evidence test test-integration test-all faults bench lint audit demo clean help
sweep: $(VENV)/installed      ; @$(BIN)/qlora-sweep run $(flags)
ui: $(VENV)/installed         ; @$(BIN)/qlora-sweep ui $(flags)
report: $(VENV)/installed     ; @$(BIN)/qlora-sweep report $(named)
card: $(VENV)/installed       ; @$(BIN)/qlora-sweep card --force $(named)
card-evidence: $(VENV)/installed
	@$(BIN)/python -m orchestrator.cli.evidence $(flags)
test: $(VENV)/installed-test  ; @$(quick) tests/unit tests/integration/test_sweep.py $(value ARGS)
test-integration: $(VENV)/installed-test
	@$(quick) tests/integration tests/faults --ignore tests/integration/test_sweep.py $(value ARGS)
test-all: $(VENV)/installed-test ; @$(pytest) $(value ARGS)
faults: $(VENV)/installed-test   ; @OMP_NUM_THREADS=1 $(pytest) tests/faults $(value ARGS)
bench: $(VENV)/installed$(if $(filter search,$(firstword $(ARGS))),-bench) ; @$(BIN)/python -m tests.bench $(value ARGS)
lint: $(VENV)/installed-test     ; @$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
audit: $(VENV)/installed-audit
	@$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off
demo: $(VENV)/installed ; @$(BIN)/python -m trainables.demo.build
clean:                  ; rm -rf $(VENV) build *.egg-info
help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
	@$(foreach target,$(taking),echo 'make $(target): $($(target)_takes)' | fold -s -w 78; )

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "Setting up $(VENV) (once; a few minutes, most of it PyTorch)"
	@$(PYTHON) -m venv $(VENV)
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(PIP) --editable . && touch $@
$(VENV)/installed-test $(VENV)/installed-audit: $(VENV)/installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(PIP) --editable '.[$*]' && touch $(VENV)/installed $@
# Alone: of what it depends on, xgboost brings a CUDA 12 NCCL that would lie where PyTorch's own lies; MOASHA needs none.
$(VENV)/installed-bench: constraints.txt | $(VENV)/installed
	@$(PIP) --no-deps syne-tune && $(PIP) sortedcontainers dill && touch $@
