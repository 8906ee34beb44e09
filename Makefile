# Each target sets up .venv by itself when pyproject.toml is newer, and not again.
PYTHON ?= python3
BIN = .venv/bin

run: .venv/run
	$(BIN)/python tracker.py

test: .venv/dev
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# Random requests and random sequences of calls at length: about 10 minutes.
fuzz: .venv/dev
	FUZZ=200 $(BIN)/pytest -rP --show-capture=stdout tests/test_fuzz.py tests/test_model.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: .venv/dev
	PYTHONPATH=. $(BIN)/python tests/soak.py
	PYTHONPATH=. $(BIN)/python tests/soak_postgresql.py

# All benchmarks, in an environment of their own: about 25 minutes; ARGS=--quick takes about five.
bench: bench/.venv/ready
	bench/.venv/bin/python -m bench $(ARGS)

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv bench/.venv bench/.cache build dist *.egg-info .coverage* .hypothesis .pytest_cache .mypy_cache .ruff_cache

.venv/run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check "bottle>=0.13,<0.14" "waitress>=3.0.1"
	touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@ .venv/run

bench/.venv/ready: bench/requirements.txt
	$(PYTHON) -m venv bench/.venv
	bench/.venv/bin/python -m pip install -q --disable-pip-version-check -r bench/requirements.txt
	touch $@

.PHONY: run test fuzz soak bench lint format clean
