# make demo: install, then bind pictures, outlines and names, and open runs/demo/report.html
# make test: install, then the whole test suite, a process per core, four at most
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint chaos fuzz chaos-index bench bench-loss bench-default bench-index media setup clean

demo: setup
	$(BIN)/centrobind demo --force

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# make chaos: kill training and imports at 30 random moments and at every write, about 5 minutes
chaos: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m chaos.kills --rounds 30 --out benchmarks/results/chaos.json

# make fuzz: open 10,000 broken stores and checkpoints, about 10 minutes
fuzz: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m chaos.fuzz --cases 10000 --out benchmarks/results/fuzz.json

# make bench: the quick form of every benchmark, one table of figure, target and verdict; under 10 minutes
bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/quick.py

# make bench-loss: time and memory of the loss beside others, and docs/performance.md, about 25 minutes on 2 quiet cores;
# killed, it resumes where it was. The peers that docs/performance.md names are in the extra `bench`
bench-loss: setup
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/loss_page.py

# make chaos-index: kill writers of an index at 30 random moments and at every change to a file, about 5 minutes
chaos-index: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lancedb]'
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m chaos.index_kills --out benchmarks/results/index_kills.json

# make bench-default: `cb.fit` with no settings beside fixed anchors and other objectives on seven sets, three seeds, and
# docs/default.md; hours on 2 cores, killed it resumes where it was; --only and --seeds do less
bench-default: setup
	$(BIN)/python benchmarks/default.py --data $(DATA)

# make bench-index: 1,000,000 vectors in every engine, about 15 minutes; stop it whenever you like, it continues from there
bench-index: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[lancedb,bench]'
	$(BIN)/python benchmarks/index.py

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
