# `make` lists what there is. Everything runs from .venv, which the first target that needs it makes.
PYTHON := .venv/bin/python
# Arguments for pytest, say: make test ARGS="-k backlog -x"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo up test check lint types format chaos bench-pipeline bench-engine bench-models bench-scale servers pocket pocket-report lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv:  ## make or refresh .venv from requirements.lock
	@scripts/make-venv.sh

demo: venv  ## draw a few pictures into ./out: no Kafka, database server, GPU or download of models
	@$(PYTHON) -m streamapp.demo

up: venv  ## run the whole service in one process and keep serving
	@.venv/bin/streamapp up

test:  ## run all tests, real servers included (STREAMAPP_TESTS_STRICT=1: a missing server fails)
	@scripts/test.sh $(ARGS)

check: lint types  ## lint and types

lint: venv  ## ruff: rules and format
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: venv  ## mypy, strict
	$(PYTHON) -m mypy

format: venv  ## repair what ruff can repair
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

chaos: venv  ## kill everything at random while 1,000 tasks run, and check that each ended once (ARGS="--seed 7 --embedded")
	@$(PYTHON) -m tests.chaos $(ARGS)

bench-pipeline: venv  ## the service against the plain recipe, into benchmarks/results/pipeline.json (ARGS="--quick")
	@$(PYTHON) -m benchmarks.pipeline $(ARGS)

bench-engine: venv  ## what the engine adds to its forwards, into benchmarks/results/engine.json (ARGS="--quick")
	@$(PYTHON) -m benchmarks.engine $(ARGS)

.PHONY: gpu-check
gpu-check: venv  ## everything that needs a CUDA device; without one it says so (ARGS="--only sd15 --out gpu.json")
	@$(PYTHON) -m benchmarks.gpu $(ARGS)

pocket: venv  ## train the small model that ships, into the user's cache: some three hours on two cores, stop it at any time
	@$(PYTHON) -m streamapp.training.pocket $(ARGS)

pocket-report: venv  ## draw the same prompts with the model that ships and the one that was trained, and judge both
	@$(PYTHON) -m streamapp.training.pocket report card $(ARGS)

bench-models: venv  ## loading from disk, RAM and network, into benchmarks/results/models.json (ARGS="--quick")
	@$(PYTHON) -m benchmarks.models $(ARGS)

bench-scale: venv  ## load and draw with checkpoints of full size, into benchmarks/results/scale.json: 17 GB of memory, 8 GB of disk
	@$(PYTHON) -m benchmarks.scale $(ARGS)

servers: venv  ## run Kafka, MariaDB and S3 on loopback and print the environment that points at them
	@$(PYTHON) -m tests.servers up

lock:  ## compile requirements.lock from setup.cfg (LOCK_ARGS=--upgrade moves the pins)
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --quiet --universal --python-version 3.11 \
		--extra dev --extra training $(LOCK_ARGS) setup.cfg -o requirements.lock

clean:  ## remove .venv and caches; pictures and data stay
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
