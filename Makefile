# Needs Python 3.11 or newer, with its venv module, and nothing else: everything is installed into .venv.
#
#   make run                     the main job: an image travels through two daemons and a store, step by step
#   make run IMAGE=alpine:3.20   the same with an image of a real registry
#   make test                    all tests, on every processor (ARGS='-k name' passes arguments to pytest, JOBS=0 is one)
#   make check                   style, types, and the examples in docstrings and documents
#   make oldest                  the main job, and some tests, with the lowest versions that pyproject.toml allows
#   make bench                   speed and memory, measured
#   make clean                   removes .venv and all caches
#
# PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
IMAGE ?=
ARGS ?=
JOBS ?= auto

VENV := .venv
comma := ,
BIN := $(VENV)/bin
# What hangs on the libraries most: decoding, the registry client, random access, mounts, the programs of README.
OLDEST_TESTS := $(addprefix tests/test_,codec.py registry_manifests.py registry_bodies.py image_files.py documents.py)
DOCUMENTS = $(wildcard *.md docs/*.md docs/*/*.md)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run test check oldest bench clean

help:
	@sed -n 's/^#   //p' Makefile

run: $(VENV)/.installed
	$(BIN)/python examples/quickstart.py $(if $(IMAGE),--image '$(IMAGE)')

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --doctest-glob='*.md' minibox_store minibox_server $(DOCUMENTS)

oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python examples/quickstart.py
	$(VENV)-oldest/bin/python -m pytest -q $(OLDEST_TESTS)

bench: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	$(call install,.[server])
	touch $@

# It has all that `make run` needs, and so stands for that stamp too.
$(VENV)/.installed-dev: pyproject.toml
	$(call install,.[server$(comma)dev])
	touch $(VENV)/.installed $@

$(VENV)-oldest/.installed: pyproject.toml .ci/oldest
	$(PYTHON) -m venv $(VENV)-oldest
	$(PYTHON) .ci/oldest >$(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)-oldest/constraints.txt --editable '.[server]' hypothesis pytest pytest-timeout
	touch $@

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '$(1)'
endef
