# Every target sets up what it needs: a virtual environment in .venv from requirements.lock.
#
#   make demo    the whole way once, on drawn figures, in minutes on two CPU cores
#   make test    the test suite
#   make lint    ruff, mypy, import-linter
#   make bench   the CPU benchmarks behind benchmarks/RESULTS.md
#   make lock    compile requirements.lock anew from pyproject.toml

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
DEMO := data/phantom
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint format bench lock clean

.venv/.ready: requirements.lock
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); \
	  sys.exit(0 if ok else "Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ...")'
	@echo "installing into .venv, once (about 3 GB, mostly torch with CUDA)"
	@set -o pipefail; mkdir -p build; start=$$(date +%s); \
	  $(PYTHON) -m venv .venv \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
	  && $(BIN)/uv pip sync --compile-bytecode --python $(BIN)/python requirements.lock 2>&1 | grep -v '^ [-+~]' \
	  && echo "install  $$(( $$(date +%s) - start )) s" | tee build/install_time.txt
	@touch $@

# $(call stage,NAME,COMMAND): run a command and note its wall time.
stage = @echo; echo "== $(1): $(2)"; start=$$(date +%s); $(2) \
  && echo "$(1)  $$(( $$(date +%s) - start )) s" >> build/demo_times.txt

demo: .venv/.ready
	@mkdir -p build; cat build/install_time.txt > build/demo_times.txt
	$(call stage,phantom,$(BIN)/python -m data_prep phantom out=$(DEMO))
	$(call stage,shards,$(BIN)/python -m data_prep pmc configs/data/phantom.yaml \
	  source=$(DEMO)/articles out=$(DEMO)/shards)
	$(call stage,train,$(BIN)/torchrun --standalone --nproc-per-node 2 train.py configs/demo.yaml)
	$(call stage,eval,$(BIN)/python -m eval configs/eval/phantom.yaml model=runs/demo/model \
	  data_root=$(DEMO))
	@echo; echo "wall time by stage:"; cat build/demo_times.txt

# Files side by side, one for each core; -n 0 runs them one by one.
test: .venv/.ready
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.ready
	$(BIN)/python -m benchmarks.text_tower
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.prep
	$(BIN)/python -m benchmarks.panels
	$(BIN)/python -m benchmarks.curation

lock: .venv/.ready
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --no-emit-index-url \
	  --no-header --annotation-style line --upgrade --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .venv-peer .venv-pubmed build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
