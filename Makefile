PYTHON ?= python3
bin := .venv/bin

.PHONY: help train test docs preview notebooks bench clean

help: ## What there is to make
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /make \1	/'

train: .venv/made ## Train on drawn images, or on your own: make train DATA=folder ARGS="--epochs 4"
	$(bin)/lfs_train "$(or $(DATA),shapes)" $(ARGS)

test: .venv/made ## Run the notebooks and check that library and README are theirs
	OMP_NUM_THREADS=1 $(bin)/nbdev_test --do_print --timing  # as many notebooks at a time as there are processors
	$(bin)/pytest -q --ignore tests/test_site.py --ignore tests/test_bench.py

docs: .venv/made ## Build the site in _docs
	$(bin)/python tools/docs.py

preview: .venv/made ## Build the site and serve it
	$(bin)/python tools/docs.py --serve

notebooks: .venv/made ## Run the notebooks in place: the outputs to commit
	$(bin)/python tools/notebooks.py run

bench: .venv/made ## Measure loaders, trainings and processes: benchmarks/*.json
	$(bin)/pip install -q --no-compile -c constraints.txt -e '.[bench]'
	$(bin)/python benchmarks/bench.py
	$(bin)/python benchmarks/scaling.py --out benchmarks/scaling.json

clean: ## Remove all that make made
	rm -rf .venv _docs _proc build *.egg-info

.venv/made: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,11))' || \
	  { echo 'This needs Python 3.11 or newer, and $(PYTHON) is older or missing: try make PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv
	$(bin)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
