# make demo: the vacancy in iron, from nothing.  make test: every test.  make help: the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
CONSTRAINTS := requirements/constraints.txt
# A process for each core, each file of tests in one of them; a process takes up to 2 GB.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-fast test-slow cpp-tests lint types types-darwin types-win32 format docs \
    venv plugin torch-plugin debian dist clean

help:
	@echo "make demo       free energy barrier of a vacancy in iron; continues after an interruption"
	@echo "make test       all tests (make test-fast: the ones that take seconds; test-slow: the others)"
	@echo "make cpp-tests  tests of the C++ alone, under sanitizers"
	@echo "make lint       formatting, style and types (make format: correct the formatting)"
	@echo "make docs       the documentation as a site, build/site/index.html"
	@echo "make dist       the source distribution and the wheel, in build/dist"
	@echo "make venv       only install into $(VENV)"
	@echo "make plugin     only build the PLUMED plugin, and print where it is"
	@echo "make clean      remove $(VENV) and everything that was built; keep the demo"

demo: plugin
	test -d demo || $(BIN)/plumed-cv init vacancy-fe demo
	$(BIN)/plumed-cv run demo/vacancy.toml

test: # the fast ones first, and the slow ones also if a fast one fails
	$(MAKE) --keep-going test-fast test-slow

test-fast: $(VENV)/.tests-installed plugin
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.tests-installed plugin
	$(PYTEST) -m slow

cpp-tests: $(VENV)/.installed # under sanitizers
	$(BIN)/cmake -S cpp -B build/cpp-tests -DPLUMED_CV_TESTS=ON
	$(BIN)/cmake --build build/cpp-tests --parallel
	$(BIN)/ctest --test-dir build/cpp-tests --output-on-failure

lint: $(VENV)/.tests-installed types types-darwin types-win32
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	find cpp -name '*.h' -o -name '*.cpp' | xargs $(BIN)/clang-format --dry-run -Werror

types: $(VENV)/.tests-installed
	$(BIN)/mypy

types-darwin types-win32: types-%: $(VENV)/.tests-installed # for reading results
	$(BIN)/mypy --platform $* --cache-dir .mypy_cache/$* plumed_cv

format: $(VENV)/.tests-installed
	$(BIN)/ruff format
	find cpp -name '*.h' -o -name '*.cpp' | xargs $(BIN)/clang-format -i

docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/.tests-installed
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist
	$(BIN)/python -m twine check --strict build/dist/*

venv: $(VENV)/.installed

plugin: $(VENV)/.installed
	$(BIN)/plumed-cv plugin

torch-plugin: plugin
	$(BIN)/plumed-cv plugin --torch

debian: $(VENV)/.installed # GROMACS and newer Pythons, for tests
	$(BIN)/python python/gromacs.py
	for version in 3.13 3.14; do $(BIN)/python python/debian_python.py $$version || exit 1; done

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "plumed_cv needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=25.1"
	$(PIP) install --constraint $(CONSTRAINTS) --editable '.[all]'
	touch $@

$(VENV)/.tests-installed: $(VENV)/.installed
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --group dev
	touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --group docs
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
