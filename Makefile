# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Everything runs in .venv, which `make setup` makes.
SHELL := /bin/bash
VENV := .venv
PYTHON_BIN := $(VENV)/bin/python
OUT ?= out

# Discovery stays on this machine, and Fast DDS gets a shared-memory segment that holds whole images and
# clouds (see config/fastdds.xml). Both can be overridden from the environment.
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
export FASTRTPS_DEFAULT_PROFILES_FILE ?= $(CURDIR)/config/fastdds.xml
# Threads of BLAS and OpenMP fight with the node's own on small machines.
export OMP_NUM_THREADS ?= 1
# Left behind by a Python with the ROS wheels; a child Python would then not find their libraries.
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench soak faults clean distclean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18

setup:  ## .venv with everything the demo and the tests need (fast when nothing changed)
	@scripts/setup.sh

demo: setup  ## the live node on a recording: make demo [BAG=path] [DEPTH=1] [ARGS="--rate 2"]
	$(VENV)/bin/recon demo $(if $(BAG),--bag "$(BAG)") $(if $(DEPTH),--depth) --out $(OUT)/demo $(ARGS)

test: setup lint  ## lint, types and all tests: make test [ARGS="-k name"]
	@# An own domain, so that nodes running on this machine do not meet the tests' nodes.
	@# Tests that join the ROS graph have a process of their own: PyTorch and the middleware each bring native threads
	@# and libraries, and one process in which both came and went has crashed in native code.
	$(PYTHON_BIN) -m pytest -q -m "not ros" $(ARGS) $(if $(ARGS),|| [ $$? -eq 5 ])
	ROS_DOMAIN_ID=$${ROS_DOMAIN_ID:-$$(($$$$ % 100 + 1))} $(PYTHON_BIN) -m pytest -q -m ros $(ARGS) $(if $(ARGS),|| [ $$? -eq 5 ])

lint: setup  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup  ## let ruff repair what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: setup  ## time each stage: benchmarks/README.md
	$(PYTHON_BIN) -m benchmarks.run $(ARGS)

soak: setup  ## long run: memory and keyframes stay bounded
	$(PYTHON_BIN) -m benchmarks.soak $(ARGS)

faults: setup  ## tests that break the input or the node on purpose
	ROS_DOMAIN_ID=$${ROS_DOMAIN_ID:-$$(($$$$ % 100 + 1))} $(PYTHON_BIN) -m pytest -q -m faults $(ARGS)

clean:  ## remove what was built or written, keep .venv
	rm -rf out build install log dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf $(VENV)
