# Two commands do everything on a fresh clone: `make study` and `make test`.
PYTHON ?= python3
VENV ?= .venv
ROOT ?= studies
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: study test parity plan slurm arena lint bench clean
.DEFAULT_GOAL := study

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

study: $(INSTALLED)
	@$(BIN)/mmdit study run quickstart --root $(ROOT)

test: lint
	$(BIN)/python -m pytest

# Forward passes and gradients beside the public torch classes; `make test` checks goldens of the same instead.
parity: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/python -m pytest tests/parity

# `mmdit plan`, live: programs compiled for TPU pods and GPUs, in an environment of their own.
plan:
	$(PYTHON) -m venv $(VENV)-plan
	$(VENV)-plan/bin/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,plan]'
	$(VENV)-plan/bin/python -m pytest tests/plan

# Faults on a real Slurm, which the tests start and take down: needs root and Debian's packages, else it says so.
slurm: $(INSTALLED)
	$(BIN)/python -m pytest -n 0 tests/slurm

# Votes in a real browser and on a real PostgreSQL, which the tests start and take down; Debian's packages, else skipped.
arena: $(INSTALLED)
	$(BIN)/python -m pytest -n 0 tests/arena

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy mmdit_jax scaling launch experiments

# Figures of docs/results/benchmarks.md; needs torch and diffusers, on a quiet machine.
bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/python -m benchmarks.train_step_vs_diffusers
	$(BIN)/python -m benchmarks.compile_time
	$(BIN)/python -m benchmarks.loop_overhead
	$(BIN)/python -m benchmarks.replicas --onednn

clean:
	rm -rf $(VENV) $(VENV)-plan build *.egg-info .pytest_cache .mypy_cache .ruff_cache
