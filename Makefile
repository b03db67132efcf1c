# Two commands do everything on a fresh clone: `make study` and `make test`.
PYTHON ?= python3
VENV ?= .venv
ROOT ?= studies
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: study test lint bench clean
.DEFAULT_GOAL := study

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

study: $(INSTALLED)
	@$(BIN)/mmdit study run quickstart --root $(ROOT)

test: lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy mmdit_jax scaling launch experiments

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
