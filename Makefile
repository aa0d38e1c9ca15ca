# Nothing needs to be set up by hand: a target makes the virtual environment in .venv when it needs it, and again
# when requirements change. PYTHON names the Python to make it with: `make test PYTHON=python3.13`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup check test faults bench bench-peers demo

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.requirements-dev  ## Make the virtual environment in .venv, with the tools of `make check`

check: $(VENV)/.requirements-dev  ## Format, lint, types, imports, migrations, system checks, the circuit's coverage
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check
	@# The circuit and the limits are tested as tables, each line and each branch of them, by these tests alone.
	$(BIN)/coverage run --branch --include="mailengine/circuit.py,mailengine/rate.py" -m pytest -q tests/circuit
	$(BIN)/coverage report --show-missing --fail-under=100

test: $(VENV)/.requirements  ## Run the tests, on SQLite unless DATABASE_URL says otherwise; ARGS goes to pytest
	$(BIN)/python -m pytest $(ARGS)

faults: $(VENV)/.requirements  ## Kill workers, cut connections, break providers: 30 minutes; ARGS="F-P04" for one
	@# Without it the cases on MariaDB are skipped.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 0 mysqlclient 2>/dev/null || true
	$(BIN)/python -m tests.faults $(ARGS)

bench: $(VENV)/.requirements  ## Measure, on SQLite unless DATABASE_URL says otherwise; REPEATS=5 for better medians
	@for script in expand empty_runs admin_action compose drain batch providers; do \
	    $(BIN)/python bench/$$script.py --repeats $(or $(REPEATS),1) || exit 1; done

bench-peers: $(VENV)/.requirements  ## Measure beside other engines, into docs/reference/speed.md; ARGS="--quick" to try
	$(BIN)/python bench/peers/run.py $(ARGS)

demo: $(VENV)/.requirements  ## Show the whole story on a throw-away database; ARGS goes to the command
	$(BIN)/python manage.py demo $(ARGS)

$(VENV)/.requirements: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "mailengine needs Python 3.10 or later: make $(MAKECMDGOALS) PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

$(VENV)/.requirements-dev: requirements-dev.txt $(VENV)/.requirements
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@
