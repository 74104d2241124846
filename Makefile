# make book   set up .venv, run every notebook's quick run, build the site
# make test   set up .venv, check style, run every test
# make full   every experiment with the source documents' own settings (hours; real data)
# make bench  timings as ratios, measured side by side
# make clean  remove what the commands above made, except .venv
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
AXE := node_modules/.package-lock.json

.PHONY: book test full bench clean format
.DELETE_ON_ERROR:

# One set-up for all: exact versions from constraints.txt, labutils itself in editable form. It is done anew where
# .venv no longer works: its Python was removed, say, or an installation was cut off.
ifneq ($(shell { $(BIN)/python -c 'import labs, pip' && test -x $(BIN)/labs && echo works; } 2>/dev/null),works)
.PHONY: $(READY)
endif
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# What the tests in the browser check accessibility with. Without npm those tests are skipped, and say so.
$(AXE): package.json package-lock.json
	@if ! command -v npm >/dev/null; then echo "no npm: the site will not be tested in a browser"; \
	elif npm ci --no-audit --no-fund --loglevel=error; then touch $@; \
	else echo "npm ci failed: the site will not be tested in a browser"; fi

book: $(READY)
	$(BIN)/labs book

test: $(READY) $(AXE)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 -p no:nbval --durations=15

full: $(READY)
	$(BIN)/labs run --profile full

# Its peers come with an extra of their own.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tools/clean_notebooks.py

clean:
	rm -rf _build results .pytest_cache .hypothesis .ruff_cache node_modules
