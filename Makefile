PYTHON ?= python3
bin := .venv/bin
workers = $(shell $(PYTHON) -c "import os; print(os.cpu_count()+1)")
library_tests := $(filter-out $(patsubst %,tests/test_%.py,bench design howto live notebooks package repo report site),$(wildcard tests/test_*.py))

others := $(patsubst %,--ignore tests/test_%.py,site live report bench) # .ci/run has them

# tests start hundreds of processes: Python keeps what it has compiled, as on most machines
export PYTHONDONTWRITEBYTECODE =

.PHONY: help train test library-tests lowest docs preview notebooks bench bench-check research torture dist clean

help: ## What there is to make
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /make \1	/'

train: .venv/made ## Train on drawn images, or on your own: make train DATA=folder ARGS="--epochs 4"
	$(bin)/lfs_train "$(or $(DATA),shapes)" $(ARGS)

test: .venv/made ## Run the notebooks and check that library and README are theirs
	# pages compute, as many at a time as there are processors; tests also wait, so one more
	OMP_NUM_THREADS=1 $(bin)/nbdev_test --do_print --timing
	OMP_NUM_THREADS=1 $(bin)/pytest -q -n $(workers) --dist loadfile --no-loadscope-reorder $(others)

library-tests: # of what PYTEST finds installed, and not of this folder
	OMP_NUM_THREADS=1 $(PYTEST) -q -n $(workers) --dist loadfile $(library_tests)

lowest: ## Run the library's tests with the lowest versions that settings.ini allows
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/pip install -q uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest --resolution lowest-direct -r setup.py
	.venv-lowest/bin/uv pip install -q --python .venv-lowest . pytest pytest-xdist hypothesis nbclient ipykernel
	$(MAKE) library-tests PYTEST=.venv-lowest/bin/pytest

docs: .venv/made ## Build the site in _docs
	$(bin)/python tools/docs.py

preview: .venv/made ## Build the site and serve it
	$(bin)/python tools/docs.py --serve

notebooks: .venv/made ## Run the notebooks in place: the outputs to commit
	$(bin)/python tools/notebooks.py run

bench: .venv/made ## Measure all, or one part: make bench ONLY=first
	$(bin)/pip install -q --no-compile -c constraints.txt -e '.[bench]'
	$(bin)/python benchmarks/bench.py $(if $(ONLY),--only $(ONLY))

bench-check: .venv/made ## Fail where a ratio is worse by more than a fifth: make bench-check ONLY=first
	$(bin)/pip install -q --no-compile -c constraints.txt -e '.[bench]'
	$(bin)/python benchmarks/bench.py --check $(if $(ONLY),--only $(ONLY))

research: .venv/made ## Train what The race lacks, ONLY=T1,T3 of it, or all rows anew with AGAIN=1
	$(bin)/pip install -q --no-compile -c constraints.txt -e '.[bench]'
	$(bin)/python benchmarks/research.py $(if $(ONLY),--only $(ONLY)) $(if $(AGAIN),--again)

torture: .venv/made ## Faults on purpose, for MINUTES=60: benchmarks/torture.json
	OMP_NUM_THREADS=1 $(bin)/python tests/torture.py --minutes $(or $(MINUTES),60)

dist: .venv/made ## Build the sdist and the wheel that would go to PyPI, and check them
	rm -rf dist
	$(bin)/python -m build --no-isolation
	$(bin)/twine check --strict dist/*

clean: ## Remove what make made, but not runs/, where your trainings are
	rm -rf .venv .venv-lowest _docs _proc build dist *.egg-info

.venv/made: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,11,4))' || \
	  { echo 'This needs Python 3.11.4 or newer, and $(PYTHON) is older or missing: try make PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv
	$(bin)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
