# make sweep       run a sweep and print its Pareto front
# make ui          open MLflow over mlflow_runs/, on this machine only; others: HOST PORT ALLOWED_HOSTS and a password
# make audit       hold constraints.txt against the known advisories (needs the package index's)
# make report      say what a sweep came to: NAME, or else the newest
# make card        fill MODEL_CARD.md from the sweep NAME; what stands there is replaced
# make test              the unit tests and a demo sweep through the command line
# make test-integration  real Ray clusters, ports, Chromium, PostgreSQL, the notebook, the short form of the fault suite
# make test-all          every test, those that take minutes too
# make faults            the whole fault suite: killed drivers, workers, nodes and heads, damaged files, a full disk, ...
#
# make bench       every bench that this machine can run: bench-measurement, bench-memory, bench-rank-rule, bench-speed
#                  (trials an hour beside Ray Tune with the Hugging Face Trainer), bench-overhead (2,000 no-op trials),
#                  bench-load (10,000 recorded ones)
# make bench-search  GPU-seconds to 95 % of a recorded front, beside other searches; ask + tell behind 10,000 trials
#
# make bench-cluster   whether one driver keeps up with 256 trials at once (simulated; 5,000 trials)
# make bench-mlflow-faults   how much later a sweep ends over an MLflow that is locked, away or silent
#
# Variables stand below as TARGET_takes, each passed on as the flag of that name; any other is refused. ARGS goes to the
# program as it is: make sweep ARGS='--max-hours 2'. Of `make sweep`, unset ones are chosen for the machine.
# `make stand-in CONFIG=folder DATA=rows OUT=folder [SECONDS=120]` trains a base where none can be downloaded.

sweep_takes := SPACE TRIALS STEPS FINALIST_SEEDS NAME ADDRESS DEVICE DEVICE_KIND GPUS_PER_TRIAL STORAGE TRACKING_URI \
	BASE_MODEL DATA DATA_SPLIT COLUMNS
ui_takes := HOST PORT ALLOWED_HOSTS
report_takes := NAME
card_takes := NAME
bench-measurement_takes := BASE_MODEL DATA DEVICE
bench-memory_takes := SEED OUTPUT FROM
bench-speed_takes := BASE_MODEL DATA DEVICE TRIALS STEPS PEER PEER_STEPS SWEEP
bench-overhead_takes := TRIALS
bench-load_takes := TRIALS
bench-cluster_takes := AT_ONCE TRIALS TRIAL_SECONDS SAMPLER TRACKING_URI
bench-mlflow-faults_takes := TRIALS STEPS ONLY
bench-search_takes := TABLE SEEDS PROCESSES
stand-in_takes := CONFIG DATA OUT SECONDS SEED
benches := $(addprefix bench-,measurement memory rank-rule speed overhead load)
bench_takes := $(sort $(foreach b,$(benches),$($(b)_takes)))
bench-memory_file := memory_shapes

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
quoted = '$(subst ','\'',$(value $(1)))'
flags = $(foreach v,$(or $(1),$($@_takes)),$(if $(value $(v)),--$(shell echo $(v) | tr A-Z_ a-z-) $(call quoted,$(v)))) \
	$(value ARGS)
named = $(if $(value NAME),$(call quoted,NAME)) $(value ARGS)

given := $(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $(v))),$(v)))
known := ARGS PYTHON $(sort $(foreach goal,$(or $(MAKECMDGOALS),sweep),$($(goal)_takes)))
unknown := $(firstword $(filter-out $(known) VENV SHELL MAKEFLAGS,$(given)))
match := import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], n=1))
nearest = $(addprefix ; did you mean ,$(shell $(PYTHON) -c '$(match)' '$(unknown)' $(known)))
$(if $(unknown),$(error there is no variable $(unknown) here$(nearest) (have: $(known))))

.PHONY: sweep ui report card test test-integration test-all faults lint audit demo clean bench $(benches) \
	bench-cluster bench-mlflow-faults bench-search stand-in

sweep: $(VENV)/installed
	@$(BIN)/qlora-sweep run $(flags)

ui: $(VENV)/installed
	@$(BIN)/qlora-sweep ui $(flags)

report: $(VENV)/installed
	@$(BIN)/qlora-sweep report $(named)

card: $(VENV)/installed
	@$(BIN)/qlora-sweep card --force $(named)

pytest = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
quick = OMP_NUM_THREADS=1 $(pytest) -m "not slow" --numprocesses 2 --dist loadfile
test: $(VENV)/installed-test
	@$(quick) tests/unit tests/integration/test_sweep.py $(value ARGS)

test-integration: $(VENV)/installed-test
	@$(quick) tests/integration tests/faults --ignore tests/integration/test_sweep.py $(value ARGS)

test-all: $(VENV)/installed-test
	@$(pytest) $(value ARGS)

faults: $(VENV)/installed-test
	@OMP_NUM_THREADS=1 $(pytest) tests/faults $(value ARGS)

audit: $(VENV)/installed-audit
	@$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

lint: $(VENV)/installed-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

demo: $(VENV)/installed
	@$(BIN)/python -m trainables.demo.build

bench: $(benches)

$(benches) bench-cluster bench-mlflow-faults bench-search: bench-%: $(VENV)/installed
	@PYTHONPATH=. $(BIN)/python tests/bench/$(or $($@_file),$(subst -,_,$*)).py $(flags)

bench-search: $(VENV)/installed-bench

stand-in: $(VENV)/installed
	@$(BIN)/python tests/bench/stand_in.py $(foreach v,CONFIG DATA OUT,$(call quoted,$(v))) $(call flags,SECONDS SEED)

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

$(VENV)/installed-audit: pyproject.toml constraints.txt | $(VENV)/installed
	@$(PIP) --constraint constraints.txt '.[audit]'
	@touch $@

# Alone: of what it depends on, xgboost brings a CUDA 12 NCCL that would lie where PyTorch's own lies; MOASHA needs none.
$(VENV)/installed-bench: constraints.txt | $(VENV)/installed
	@$(PIP) --constraint constraints.txt --no-deps syne-tune
	@$(PIP) --constraint constraints.txt sortedcontainers dill
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
