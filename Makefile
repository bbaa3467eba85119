SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=
venv := $(CURDIR)/.venv
run := $(venv)/bin/python
# PETSc reads pytest's arguments too; without this it would end by listing those it does not know.
pytest := PETSC_OPTIONS="$${PETSC_OPTIONS:-} -options_left no" $(run) -m pytest
# Tests of one rank on a worker a core, each taking one after the other; then those that start ranks of their own.
workers := --numprocesses $(shell nproc) --maxschedchunk 1
define both
@$(pytest) $(workers) -m 'not parallel$(1)' $(ARGS)
@$(pytest) -m 'parallel$(1)' $(ARGS)
endef
pip := $(venv)/bin/python -m pip --disable-pip-version-check

export PYTHON
# Open MPI refuses to run as root, as containers do, and more ranks than cores, as the tests do.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export OMPI_MCA_rmaps_base_oversubscribe := 1

.PHONY: help install demo test test-all bench kill fuzz lint doctor clean

help:
	@echo 'make demo      learn handwritten digits on three meshes in turn (ARGS="--help" lists its arguments)'
	@echo 'make test      the tests, without the slow ones (ARGS="-k name" chooses)'
	@echo 'make test-all  all tests'
	@echo 'make bench     the speed of the propagation, beside PyTorch'
	@echo 'make kill      trainings that are killed at random moments and go on (ARGS="--moments 50 --seed 0")'
	@echo 'make fuzz      random uses of the public calls (ARGS="--uses 10000 --seed 0 --minutes 60")'
	@echo 'make lint      ruff, the plan of the house (tests/architecture.py), types (mypy)'
	@echo 'make install   the set-up alone, which the targets above do first (PYTHON=... chooses the interpreter)'
	@echo 'make doctor    versions, and one PDE on one and on two ranks: what is wrong, if something is'
	@echo 'make clean     remove the set-up and the caches of this checkout'

install:
	@.setup/install.sh

demo: install
	@$(run) demos/mnist_multiscale/mnist_multiscale.py $(ARGS)

test: install
	$(call both, and not slow)

test-all: install
	$(call both,)

bench: install
	@$(run) -c 'import torch' 2>/dev/null || $(pip) install --no-build-isolation -c .setup/constraints.txt -e '.[bench]'
	@$(run) tests/benchmarks/bench_propagation.py $(ARGS)

kill: install
	@$(run) tests/kill.py $(ARGS)

fuzz: install
	@$(run) tests/fuzz $(ARGS)

lint: install
	@$(run) -m ruff check .
	@$(run) tests/architecture.py
	@$(run) -m mypy

doctor:
	@test -x $(venv)/bin/python || { echo "There is no environment yet: run 'make install' first."; exit 1; }
	@$(run) -P .setup/doctor.py

clean:
	rm -rf .venv .setup.log .hypothesis .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'Kept: results/, and what is shared by all checkouts of this user: PETSc and the wheels built against it'
	@echo "in $${XDG_DATA_HOME:-$$HOME/.local/share}/ctrlnet, compiled kernels in $${XDG_CACHE_HOME:-$$HOME/.cache}/ctrlnet."
