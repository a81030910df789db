# Every target sets itself up from nothing in `.venv`: `make demo`, `make test`, `make docs`,
# `make bench`, `make bench-quick`, `make compare`, `make drill`, `make soak`,
# `make matrix`, `make fuzz`.
# Options go through ARGS: make demo ARGS="--steps 20".
.DELETE_ON_ERROR:
.PHONY: demo test lint docs bench bench-quick compare drill soak matrix fuzz

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

demo: $(READY)
	$(BIN)/rankwise finetune $(ARGS)

test: lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A link without a target, a name without a page and any other warning are errors.
docs: $(READY)
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/docs
	@echo build/docs/index.html

# Seconds and bytes beside the peers: hours. The quick one takes three minutes of an idle core, and fails
# where a ratio is worse than in benchmarks/cost/baseline.json.
bench: $(READY)
	$(BIN)/python benchmarks/cost/suite.py $(ARGS)

bench-quick: $(READY)
	$(BIN)/python benchmarks/cost/suite.py --quick --gate $(ARGS)

# Losses, sizes and ranges of rates beside the peers.
compare: $(READY)
	$(BIN)/python benchmarks/finetune.py $(ARGS)

# A training killed 200 times and gone on with, and files damaged: nothing may differ. Minutes.
drill: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/drill/suite.py $(ARGS)

# 20,000 steps with ranks that change all the time; fails where memory grows or bases and weights drift.
soak: $(READY)
	$(BIN)/python benchmarks/soak.py $(ARGS)

# The tests under other versions of Python, torch and transformers, in environments of their own.
matrix:
	$(PYTHON) benchmarks/matrix.py $(ARGS)

# Damaged files for all that reads files, 100,000 each: hours. It fails where something else than a
# refusal came of one. make fuzz ARGS="--inputs 1000 adapter peft".
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[fuzz]"
	$(BIN)/python fuzz/run.py $(ARGS)

# torch goes first and alone, so that no other package chooses its build. torchattacks declares
# torchvision and an old requests, and imports neither.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[finetune,bench,dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps torchattacks
	touch $@
