# Two commands: `make tune` runs the main job, `make test` proves the project. Both make the environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: tune test test-ray test-rest lint types science benchmarks opponents audit clean

tune: $(VENV)/ready
	$(BIN)/avb tune --space tune_spaces/digits.yaml

# Two at a time, on the cores that a laptop has; those that start Ray, in tests/cluster, one after the other.
test: lint types
	$(MAKE) --no-print-directory --jobs 2 test-ray test-rest

# Ray's own default: its workers leave the cores to the other tests, which take as long as they do.
test-ray: $(VENV)/ready
	RAY_worker_niceness=15 $(BIN)/python -m pytest tests/cluster

test-rest: $(VENV)/ready
	$(BIN)/python -m pytest --ignore tests/cluster

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: $(VENV)/ready
	$(BIN)/mypy

# Reaches published and measured numbers; about half an hour on two cores.
science: $(VENV)/ready
	$(BIN)/python -m pytest -m science

$(VENV)/ready: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

benchmarks: $(VENV)/ready
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.ray_train
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.search

# Other libraries that train the same networks in `benchmarks.training`, in an environment of their own.
opponents: $(VENV)/opponents/ready

$(VENV)/opponents/ready: $(VENV)/ready
	$(PYTHON) -m venv $(VENV)/opponents
	$(VENV)/opponents/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/opponents/bin/python -m pip install --quiet pythae==0.1.2 jax
	touch $@

# Published advisories against what is installed, asked of PyPI; by an auditor in an environment of its own. What it cannot
# ask about is a failure: otherwise it would find nothing wrong where it has no network.
audit: $(VENV)/ready
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --upgrade pip pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)/audit/installed.txt
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement $(VENV)/audit/installed.txt

clean:
	rm -rf $(VENV)
