# make serve   set up and serve the demo model on port 8000
# make test    set up and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
CHECKPOINT ?= checkpoints/demo

.PHONY: serve test test-reference lint demo clean

$(VENV)/base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, found $$($(PYTHON) --version); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/test: $(VENV)/base
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/reference: $(VENV)/test
	$(BIN)/pip install --quiet --retries 0 torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu || \
		$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[reference]'
	@touch $@

serve: $(VENV)/base
	$(BIN)/python -m serve --checkpoint $(CHECKPOINT) --port $(PORT) $(ARGS)

# Tests run in that many processes, each file whole in one; WORKERS=0 runs them in one, for a debugger.
WORKERS ?= 2

test: $(VENV)/test lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The oracle: torch's CPU build and transformers. Large; not part of `make test`.
test-reference: $(VENV)/reference
	$(BIN)/python -m pytest -m reference $(ARGS)

# Trains the demo model again, into runs/demo.
demo: $(VENV)/test
	$(BIN)/python -m tools.train demo --out runs/demo $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info
