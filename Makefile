# Everything here works on a machine with Python 3.11+, make and git: the environment makes itself.
PYTHON ?= python3
UV_VERSION := 0.13.9
export UV_PYTHON_DOWNLOADS := never
# Like git, trust the certificate authorities that this machine trusts, a company's own among them.
export UV_SYSTEM_CERTS ?= true
# Compiled code is kept, whatever this machine's setting: tests, demo and dev start many processes,
# and compiling everything again takes longer than what most of them do.
unexport PYTHONDONTWRITEBYTECODE
UV := .uv/bin/uv
RUN := $(UV) run --locked --no-sync

.PHONY: help setup demo dev test test-fast browser simulate mutants mutants-sql fuzz chaos incidents soak bench bench-quick lint format
help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit("wearon needs Python 3.11 or newer, this is %d.%d; try: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv .uv || { echo "Python's venv module is incomplete; on Debian: apt-get install python3-venv"; exit 1; }
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.ready: $(UV) pyproject.toml uv.lock
	@$(UV) sync --quiet --locked --python $(PYTHON)
	@touch $@

# Only the tests of clients/typescript need these packages: without npm, or a registry, they are
# skipped (but not in CI).
NPM := $(shell command -v npm)
clients/typescript/node_modules/.ready: clients/typescript/package-lock.json
	@cd $(@D)/.. && npm ci --silent && touch node_modules/.ready || echo "npm ci failed: no tests of clients/typescript"

setup: .venv/.ready $(if $(NPM),clients/typescript/node_modules/.ready)  ## Make the environment (.venv)

demo: setup  ## Run two try-ons, a user's and a store's, through real servers and show what happened
	@$(RUN) wearon demo

dev: setup  ## PostgreSQL, Valkey, API and worker on this machine, with demo credentials
	@$(RUN) wearon dev

test: setup  ## All tests, on real PostgreSQL and a real Redis-protocol server
	@$(RUN) pytest -n 3

test-fast: setup  ## All tests that need no server, with fewer examples and simulated seeds
	@$(RUN) pytest -n 3 --quick -m "not (postgres or redis or s3 or processes)"

.venv/.browser: .venv/.ready
	@$(UV) sync --quiet --locked --group browser
	@touch $@

browser: .venv/.browser  ## The tests of the pages in Debian's chromium, after installing their driver
	@$(RUN) pytest tests/browser --patient

SEEDS ?= 10000
FIRST ?= 0
simulate: setup  ## Simulated faults beyond those of the tests: SEEDS=10000 FIRST=0
	@$(RUN) python -m tests.simulation $(SEEDS) $(FIRST)

mutants: setup  ## Take each guard away and see that the simulation finds out
	@$(RUN) python -m tests.simulation.mutants

mutants-sql: setup  ## Drop each guard of the SQL and see that a test on PostgreSQL finds out
	@$(RUN) python -m tests.sql_mutants

EXAMPLES ?= 300
fuzz: setup  ## Requests drawn from the OpenAPI document, more than those of the tests: EXAMPLES=300
	@$(RUN) pytest tests/entrypoints/test_http_schemathesis.py --fuzz-examples $(EXAMPLES)

SECONDS ?= 60
SEED ?= 1
chaos: setup  ## Faults on real processes: SECONDS=60 SEED=1, and KILLS=1 for kills only
	@$(RUN) python -m tests.chaos $(SECONDS) $(SEED) $(if $(KILLS),--kills)

NAMES ?=
incidents: setup  ## What can go wrong at night, and how soon `wearon status` names it: NAMES="redis"
	@$(RUN) python -m tests.incidents $(NAMES)

TASKS ?= 10000
soak: setup  ## Many tasks through one worker, and what memory it takes: TASKS=10000
	@$(RUN) python -m tests.soak $(TASKS)

bench: setup  ## How fast it is, beside the floors of this machine: about a quarter of an hour
	@$(RUN) python -m tests.bench

bench-quick: setup  ## The same in less than two minutes, with more noise
	@$(RUN) python -m tests.bench --quick

lint: setup  ## ruff, mypy --strict and the import contracts
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) lint-imports

format: setup  ## Format the code
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .
