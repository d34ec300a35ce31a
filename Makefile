# make demo: install, then bind pictures, outlines and names, and open runs/demo/report.html
# make test: install, then the whole test suite
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint chaos fuzz media setup clean

demo: setup
	$(BIN)/centrobind demo --force

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# make chaos: kill training and imports at 30 random moments and at every write, about 5 minutes
chaos: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m chaos.kills --rounds 30 --out benchmarks/results/chaos.json

# make fuzz: open 10,000 broken stores and checkpoints, about 10 minutes
fuzz: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m chaos.fuzz --cases 10000 --out benchmarks/results/fuzz.json

# make media DATA=...: files of three sets to scores, with the packages that examples/pip_weights.py and voices.py name
DATA ?= ../shared/data
SCORES = benchmarks/results/media.json
media: setup
	$(BIN)/python examples/actions.py $(DATA)/utd_mhad.npz runs/actions --out $(SCORES)
	$(BIN)/python examples/emoji.py $(DATA)/emoji.npz runs/emoji --out $(SCORES)
	$(BIN)/python examples/emoji.py $(DATA)/emoji.npz runs/emoji --pretrained --out $(SCORES)
	$(BIN)/python examples/voices.py runs/voices --out $(SCORES)
	$(BIN)/python examples/scores.py $(SCORES) docs/media.md

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (about 1.5 GB, a minute or two)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv runs
