# Two commands: `make quickstart` and `make test`. Both make the environment (.venv) first if there is none.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12,$(if $(shell command -v $(name)),$(name))))
# "cpu", or "gpu" for CUDA (Python 3.12).
STACK ?= cpu
# Where torch's CPU build is, should the indexes that pip is configured with not have it. PyPI has not.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Of `make test`. A third would wait: most of the time goes to runs that need two cores themselves.
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MEGARL := $(BIN)/megarl

.PHONY: help setup quickstart smollm2 results test slurm-test test-all lint format clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(READY)  ## the environment in .venv: megarl, Megatron-core, vLLM, Ray (2 minutes; STACK=gpu for CUDA)

$(READY): pyproject.toml tools/set_up.py $(wildcard constraints-*.txt)
	@command -v "$(PYTHON)" >/dev/null || { echo "megarl needs Python 3.11 or 3.12, and found $(if $(PYTHON),no $(PYTHON),neither); set PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) tools/set_up.py $(STACK) --venv $(VENV) --torch-index $(TORCH_INDEX)
	@touch $(READY)

quickstart: setup  ## warm up a small model, train it by RLVR, show the run (under 8 minutes on 2 cores)
	$(BIN)/python tools/quickstart.py

smollm2: setup  ## SmolLM2-135M-Instruct on chain_sum (about 20 minutes on 2 cores)
	test -d models/smollm2-135m || $(BIN)/python tools/smollm2.py models/smollm2-135m
	$(MEGARL) train configs/smollm2-135m.toml

results: setup  ## docs/results/*.md and their figures, from docs/results/tables
	$(BIN)/python tools/write_results.py

test: setup  ## every test but the slow ones, in two processes
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES)

slurm-test: setup  ## submit to a real Slurm of two nodes on this machine (root; apt-get install slurm-wlm munge)
	$(BIN)/python -m tests.cluster.two_nodes true
	$(BIN)/python -m pytest -q -m slow tests/cluster

test-all: setup  ## every test
	$(BIN)/python -m pytest -q -m "slow or not slow"

lint: setup  ## ruff, mypy, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment; runs/ and models/ stay
	rm -rf $(VENV)
