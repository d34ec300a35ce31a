# make demo: install, then bind pictures, outlines and names, and open runs/demo/report.html
# make test: install, then the whole test suite
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint setup clean

demo: setup
	$(BIN)/centrobind demo --force

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (about 1.5 GB, a minute or two)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv runs
