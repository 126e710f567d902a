# Every target makes what it needs: git, make and Python >= 3.11 are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := dev,triton,postgres,otel,docker

.PHONY: demo test test-long check lint types contracts unit proto bench up wheel-check clean

demo: $(VENV)/.installed  ## the main job: register a family of models, serve real queries, print what served them
	$(BIN)/infaas demo

test: $(VENV)/.installed-dev lint types contracts  ## everything but the long tests
	$(BIN)/pytest -m "not long"

test-long: $(VENV)/.installed-dev  ## faults, containers, outside clients, the demo itself; properties on many examples
	$(BIN)/pytest -m long
	$(BIN)/pytest tests/unit tests/scenario -m "not long" --hypothesis-profile=thorough

check: $(VENV)/.installed-dev lint types contracts unit  ## fast: for every edit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

contracts: $(VENV)/.installed-dev
	$(BIN)/lint-imports

unit: $(VENV)/.installed-dev
	$(BIN)/pytest tests/unit -m "not long"

up: $(VENV)/.installed  ## one machine, one command
	$(BIN)/infaas up

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/decision.py

proto: $(VENV)/.installed-dev  ## generated code is checked in; this makes it anew
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. --pyi_out=. \
		$$(cd proto && find . -name '*.proto' | sed 's|^\./||')

wheel-check: $(VENV)/.installed-dev  ## the wheel in a clean environment: only infaas* arrives, and the demo runs
	$(BIN)/pytest tests/e2e/test_wheel.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "INFaaS needs Python 3.11 or newer; this is %s (set PYTHON=...)" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) dist build state demo-output
