# `make demo` and `make test` work as the first command after `git clone`: both set up .venv themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format bench clean

BIN := .venv/bin
READY := .venv/.installed
JOBS ?= 2

# One thread per process: small models train fastest so, and results do not depend on the number of cores.
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@echo 'make demo    compare five methods on handwritten digits, table and report page (about 3 minutes)'
	@echo 'make test    ruff, mypy and the test-suite (JOBS=2 processes)'
	@echo 'make lint    ruff and mypy only'
	@echo 'make format  let ruff mend style and formatting'
	@echo 'make bench   benchmarks; needs an idle machine'
	@echo 'make clean   remove .venv, caches and build outputs (runs/ stays)'

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 none; do \
	    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && break; \
	done; \
	if [ "$$python" = none ]; then \
	    echo 'Espalier needs Python 3.11, 3.12 or 3.13: install one, or name it with make PYTHON=/path/to/python.' >&2; exit 1; \
	fi; \
	echo "Setting up .venv with $$("$$python" --version) (once; takes some minutes) ..."; \
	"$$python" -m venv .venv
	@$(BIN)/python -m pip install -qq -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install -qq -c constraints.txt hatchling editables
	@$(BIN)/python -m pip install -qq -c constraints.txt --no-build-isolation -e '.[train,vision,export,track,ray,optuna,dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/espalier compare digits --methods dense,one-shot,iterative,agp,ocp --sparsity 0.9,0.95 \
	    --seeds 0,1,2 --jobs 2 --out runs/demo
	@$(BIN)/espalier report runs/demo --out runs/demo/report.html

test: lint
	@$(BIN)/python -m pytest -n $(JOBS)

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

bench: $(READY)
	@env -u OMP_NUM_THREADS $(BIN)/python benchmarks/bench_masks.py
	@env -u OMP_NUM_THREADS $(BIN)/python benchmarks/bench_graph.py
	@env -u OMP_NUM_THREADS $(BIN)/python benchmarks/bench_structured.py
	@env -u OMP_NUM_THREADS $(BIN)/python benchmarks/bench_splitting.py
	@env -u OMP_NUM_THREADS $(BIN)/python benchmarks/bench_files.py
	@if [ -n "$(DATA)" ]; then env -u OMP_NUM_THREADS $(BIN)/python benchmarks/bench_data.py --data "$(DATA)" \
	&& env -u OMP_NUM_THREADS $(BIN)/python benchmarks/bench_training.py --data "$(DATA)"; \
	else echo 'The data path and whole trainings were not measured: name a folder with CIFAR-10 as Parquet, make bench DATA=FOLDER.'; fi

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
