# From a bare clone: `make demo` shows streamwise learning, `make test` runs the tests. Each makes .venv by itself.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
DEMO ?= outputs/demo

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# An editable install follows the Python files; only these make it stale.
INSTALL_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.inl')

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types docs wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: $(VENV)/.installed-all  ## train HalfCheetah for 100,000 steps and draw the report
	@newest=$$(ls $(DEMO)/checkpoints 2> /dev/null | sed -n 's/^step-0*//p' | sort -n | tail -n 1); \
	if [ "$${newest:-0}" -ge 100000 ]; then \
		$(BIN)/streamwise report $(DEMO) && \
		echo "$(DEMO) finished before; remove it to train afresh"; \
	elif [ -n "$$newest" ]; then $(BIN)/streamwise resume $(DEMO); \
	elif [ -d $(DEMO) ]; then echo "$(DEMO) holds no checkpoint; remove it and run make demo again"; exit 1; \
	else $(BIN)/streamwise train HalfCheetah-v5 --steps 100000 --out $(DEMO); fi
	@echo "curves: $(BIN)/tensorboard --logdir $(DEMO)/tensorboard"
	@echo "watch:  $(BIN)/streamwise evaluate $(DEMO) --episodes 1 --video $(DEMO)/episode.mp4"

test: export OMP_NUM_THREADS = 1
test: export MUJOCO_GL = disabled
test: $(VENV)/.installed-dev  ## run the tests, but for those marked slow
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

lint: $(VENV)/.installed-dev  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev  ## mend style and formatting where ruff can
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/ruff format .

# mypy reads folders, not the build backend's mapping, so the package is laid out in links as it is installed.
types: $(VENV)/.installed-dev  ## check types
	@rm -rf build/types && mkdir -p build/types/streamwise
	@ln -s $(CURDIR)/streamwise/* $(foreach folder,agents envs kernels memory runs streams,$(CURDIR)/$(folder)) \
		build/types/streamwise
	$(BIN)/mypy

docs: $(VENV)/.installed-dev  ## build the manual as a site into build/docs; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

wheel: $(VENV)/.installed-dev  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist

clean:  ## remove what was built and .venv; runs in outputs/ stay
	rm -rf build dist $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streamwise needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another with: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-all: $(INSTALL_INPUTS) | $(BIN)/python
	@echo "installing streamwise and what it needs into $(VENV): 2.5 GB, and C++ to compile, some silent minutes"
	$(PIP_INSTALL) -e '.[all]'
	@touch $@

$(VENV)/.installed-dev: $(INSTALL_INPUTS) | $(BIN)/python
	@echo "installing streamwise, what it needs and the development tools into $(VENV): some silent minutes"
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed-all
