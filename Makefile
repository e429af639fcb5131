# make demo    set everything up and run the fork/COW demonstration with its fault trace
# make test    set everything up and run all checks and tests
# make bench   measure, both sides in one run; prints a table, writes bench.json
# make spec    which requirement is proven by which test

VENV    := .venv
PY      := $(VENV)/bin/python
PYTEST  := $(VENV)/bin/pytest
PYTHON  ?= python3

.PHONY: demo test bench spec lint guests setup system clean

demo: setup guests
	$(VENV)/bin/dfvm trace guest/bin/cow_fork

test: lint guests system
	$(PYTEST) -q -n 2

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: setup guests system
	$(PY) tools/bench.py

spec: setup guests system
	$(PY) tools/spec.py

guests: setup
	$(MAKE) -s -C guest

setup: $(VENV)/.installed system

# With system first: the native half of dfvm/machine is compiled here.
$(VENV)/.installed: pyproject.toml tools/launcher.sh $(wildcard dfvm/machine/native/*.[ch]) | system
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -e '.[dev]'
	tools/launcher.sh $(abspath $(VENV))/bin/python $(VENV)/bin/dfvm
	touch $@

# Programs of other people that the tests run, and a compiler for ours. Installed where we may;
# elsewhere the tests that need a missing program say so.
system:
	@tools/system.sh

clean:
	rm -rf $(VENV) guest/bin build *.egg-info dfvm/machine/_native*.so .mypy_cache .ruff_cache .hypothesis
