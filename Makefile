# walrecover. `make help` lists the targets.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
WORKERS ?= 2
# Passed on to pytest, to the demo, to the benchmarks, to a campaign.
PYTEST_ARGS ?=
DEMO_ARGS ?=
# Where the demo's runs are kept, until the next one.
DEMO ?= build/demo
KILLS ?= 5
BENCH_ARGS ?=
ARGS ?=

VENV := .venv
BIN  := $(VENV)/bin
PY   := $(BIN)/python
DONE := $(VENV)/.installed

# A worker that is done takes over what another, busy with a slow test, has not begun.
SPREAD         = -n $(WORKERS) --dist worksteal
SYSTEM_TESTS   = $(wildcard tests/system tests/crash_states)
COVERAGE_TESTS = $(wildcard tests/unit tests/contract tests/property)
NOT_IN_TEST    = --ignore=tests/system --ignore=tests/crash_states --ignore=tests/bench --ignore=tests/cuda

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-system test-cuda coverage page bench race lint format types wheel-test tools clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(DONE) ## build .venv: torch ($TORCH) first, then walrecover with its extras

$(DONE): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"walrecover needs Python 3.11 to 3.13; $(PYTHON) is {v.major}.{v.minor}: make venv PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -qq --disable-pip-version-check '$(TORCH)'
	$(PY) -m pip install -qq --disable-pip-version-check -e '.[torch,daemon,dev]'
	@touch $@

demo: $(DONE) ## crash a small GPT five times, compare the bits, and leave a page to open
	rm -rf $(DEMO)
	$(BIN)/walrecover rehearse --kills $(KILLS) --seed 1 --keep $(DEMO) --page -- $(PY) examples/char_gpt.py $(DEMO_ARGS)

test: $(DONE) ## the tests that need no more than Python
	$(PY) -m pytest tests $(SPREAD) $(NOT_IN_TEST) $(PYTEST_ARGS)

test-system: $(DONE) tools ## the tests that need root, strace, Java or a browser
ifeq ($(SYSTEM_TESTS),)
	@echo "test-system: neither tests/system nor tests/crash_states is there yet"
else
	$(PY) -m pytest $(SYSTEM_TESTS) $(SPREAD) $(PYTEST_ARGS)
endif

# strace, Java, a browser and systemd's tools, where they are missing and may be installed; elsewhere the tests say what they lack.
tools:
	@command -v strace >/dev/null && command -v java >/dev/null && command -v chromedriver >/dev/null && command -v systemd-analyze >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends strace default-jre-headless chromium chromium-driver systemd; \
	else \
		echo "strace, java, chromedriver or systemd-analyze is missing: install strace, default-jre-headless, chromium, chromium-driver and systemd" >&2; \
	fi

test-cuda: $(if $(findstring $(VENV),$(PY)),$(DONE)) ## the tests that need a GPU, and a torch that has it: make test-cuda PY=python3
	$(PY) -m pytest tests/cuda $(PYTEST_ARGS)

coverage: $(DONE) ## branches of journal, snapshot and recovery that the fast tests reach
ifeq ($(COVERAGE_TESTS),)
	@echo "coverage: there are no fast tests yet"
else
	$(PY) -m pytest $(COVERAGE_TESTS) $(SPREAD) -q --cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)
endif

page: $(DONE) ## the status page of what the demo kept, or of the directories in ARGS
	$(BIN)/walrecover-daemon serve $(or $(ARGS),$(DEMO)/killed)

bench: $(DONE) ## the benchmark table
	$(PY) -m tests.bench $(BENCH_ARGS)

race: $(DONE) build/race-venv/.installed ## goodput under kills, beside seven other ways to survive them
	$(PY) -m tests.bench.goodput $(ARGS)

# The others have dependencies of their own: they never come into .venv.
build/race-venv/.installed: tests/bench/goodput/requirements.txt
	$(PYTHON) -m venv build/race-venv
	build/race-venv/bin/python -m pip install -qq --disable-pip-version-check '$(TORCH)' -r $<
	@touch $@

torture-%: $(DONE) ## a campaign of tests/campaigns, for as long as ARGS says
	$(PY) -m tests.campaigns.$(subst -,_,$*) $(ARGS)

lint: $(DONE) ## ruff and the import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(DONE) ## let ruff put things right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DONE) ## mypy, strict
	$(BIN)/mypy

# The wheel is built from the sdist, so that both are known to be whole, and it is tried where
# neither this folder nor torch can be imported.
wheel-test: $(DONE) ## build the wheel and use it in a venv of its own, without torch
	rm -rf build/dist build/wheel-venv && mkdir -p build
	$(PY) -m build --no-isolation --outdir build/dist . >build/wheel-test.log 2>&1 || { cat build/wheel-test.log; exit 1; }
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install -qq --disable-pip-version-check build/dist/*.whl
	cd / && "$(CURDIR)/build/wheel-venv/bin/walrecover" --version
	cd / && "$(CURDIR)/build/wheel-venv/bin/python" -I "$(CURDIR)/tests/wheel_check.py"

clean: ## remove what was built, not .venv
	rm -rf build dist htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)
