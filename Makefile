# Two commands: `make tune` runs the main job, `make test` proves the project. Both make the environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: tune test lint types science benchmarks audit clean

tune: $(VENV)/ready
	$(BIN)/avb tune --space tune_spaces/digits.yaml

test: lint types
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .

types: $(VENV)/ready
	$(BIN)/mypy

# Reaches published and measured figures; about half an hour on two cores.
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

# Published advisories against what is installed, asked of PyPI; in an environment of its own, since auditors have
# dependencies too.
audit: $(VENV)/ready
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --upgrade pip pip-audit
	$(VENV)/audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean:
	rm -rf $(VENV)
