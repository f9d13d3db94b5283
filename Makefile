# Each target installs what it needs into .venv and no more: a laptop that fetches weights never
# sees torch. A stamp in .venv says which extras are in; a newer pyproject.toml installs again.

PYTHON ?= python3
ARGS ?=
PIP := .venv/bin/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help fetch-weights bundle demo test test-fast bench check docs clean
BENCHMARKS := startup status report memory network heads sweep accuracy finetune

help:
	@awk -F ' *## ' '/^[a-z-]+:.*## / {sub(/:.*/, "", $$1); printf "make %-14s %s\n", $$1, $$2}' \
		$(firstword $(MAKEFILE_LIST))

fetch-weights: .venv/base  ## Download and check the weights; ARGS="--arch NAME"
	.venv/bin/skinjob fetch-weights $(ARGS)

bundle: .venv/bundle  ## Pack skinjob, torch and the weights for a cluster; ARGS="--for FILE"
	.venv/bin/skinjob bundle $(ARGS)

demo: .venv/train  ## Train a small sweep on drawn images, here
	.venv/bin/skinjob demo $(ARGS)

test: .venv/test  ## Run the tests; ARGS="-k name" for some
	.venv/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: .venv/test  ## Run the quick tests: no SLURM, no torch, under a minute
	PYTHONPATH=$(CURDIR)/tests/support/no_torch .venv/bin/pytest --numprocesses 2 --dist loadfile \
		-m 'not slurm and not train and not slow' $(ARGS) tests/unit tests/cli

bench: .venv/test  ## Measure this machine, 25 minutes; ARGS="--json FILE" keeps it
	set -e; for name in $(BENCHMARKS); do echo "== $$name"; \
		.venv/bin/python tests/benchmarks/$$name.py $(ARGS); done

check: .venv/dev  ## Check format, lint, types and docs
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/pytest -q tests/cli/test_docs.py -k "not run"  # what runs commands is in `make test`

docs: .venv/base  ## Write docs/commands.md anew, from the commands' help
	.venv/bin/python docs/reference.py

clean:  ## Remove .venv and caches; sweeps and weights stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .coverage build dist *.egg-info runs/.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv makes: where it is, the environment is whole.
.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/base: EXTRAS :=
.venv/bundle: EXTRAS := [bundle]
.venv/train: EXTRAS := [train]
.venv/test: EXTRAS := [train,test]
.venv/dev: EXTRAS := [train,test,dev]
.venv/base .venv/bundle .venv/train .venv/test .venv/dev: pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'installing skinjob$(EXTRAS) into .venv$(if $(findstring train,$(EXTRAS)), (torch is large: minutes))'
	@$(PIP) --editable '.$(EXTRAS)'
	@touch $@
