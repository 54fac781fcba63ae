# Every action of a developer is one target; CI calls the same ones. Needs Python >= 3.11, gcc, make.

PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check --no-input -qq
PYTEST := .venv/bin/python -m pytest
# The environment is redone when what defines it changes, not when a checkout touches the files.
STAMP := .venv/installed-$(shell cat pyproject.toml requirements/dev.lock | sha256sum | cut -c1-16)
SGLANG_PIP := .venv-sglang/bin/python -m pip --disable-pip-version-check --no-input -qq
SGLANG_STAMP := .venv-sglang/installed-$(shell sha256sum requirements/sglang-cpu.lock | cut -c1-16)
# SIGINT lets pytest tear its fixtures down, so that no server outlives a suite that ran out of time.
LIMIT := timeout --foreground --signal=INT --kill-after=60

# More threads than cores cost a factor of ten and more on small machines.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help install sglang demo test test-real test-gpu check mutants clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the pinned packages and this one, editable

sglang: $(SGLANG_STAMP) ## make .venv-sglang: SGLang's server for CPUs, 2.5 GB

demo: $(STAMP) ## train the demo on this machine; leaves runs/demo/
	.venv/bin/arpo train configs/demo.toml

test: $(STAMP) ## the quick suite
	$(LIMIT) 900 $(PYTEST) -m "not real and not gpu"

test-real: $(STAMP) $(SGLANG_STAMP) ## the suite with real servers, torchrun layouts, built wheels
	$(LIMIT) 3900 $(PYTEST) -m real

test-gpu: $(STAMP) ## the suite that needs a CUDA device, and what a step costs there
	$(LIMIT) 1800 $(PYTEST) -m gpu
	.venv/bin/arpo bench learner --device cuda --quick

check: $(STAMP) ## lint, format, types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/basedpyright

mutants: $(STAMP) ## show that each patch in tests/mutations/ turns a test red
	.venv/bin/python tests/mutate.py --jobs 2

clean: ## remove the environments and what tools left; runs/ stays
	rm -rf .venv .venv-sglang build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and with its dependencies: with it present nothing else asks for another build of it.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed: make PYTHON=...")'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv"
	@rm -f .venv/installed-*
	@$(PIP) install -c requirements/dev.lock "$$(grep '^torch==' requirements/dev.lock)"
	@$(PIP) install --no-deps -r requirements/dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(SGLANG_STAMP):
	@test -x .venv-sglang/bin/python || $(PYTHON) -m venv .venv-sglang
	@echo "installing into .venv-sglang"
	@rm -f .venv-sglang/installed-*
	@$(SGLANG_PIP) install -c requirements/sglang-cpu.lock "$$(grep '^torch==' requirements/sglang-cpu.lock)"
	@$(SGLANG_PIP) install --no-deps -r requirements/sglang-cpu.lock
	@touch $@
