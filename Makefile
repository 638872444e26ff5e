# Everything a developer types. `make` lists the targets. All set-up is done by make itself: it needs
# Python 3.11 or newer and nothing else; packages come from the lock files, checked by hash.

VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.run-ready
DEV_READY := $(VENV)/.dev-ready
CODE := raft kvstore proto tests bench docs .ci
TYPED := raft kvstore
PYTEST := $(BIN)/pytest -rs
WORKERS ?= 3
ENGINE ?= docker
IMAGE ?= kvstore
FIRST ?= 1
N ?= 200
SEED ?=
LEVEL ?= raft
ROW ?=
MINUTES ?= 30
BACKEND ?= auto
SERVER ?= kvstore
WORKLOAD ?= register
NEMESIS ?= all
TIME ?= 60
SIM_LEVEL := $(if $(filter member,$(LEVEL)),.member)

# A program of that name on the PATH is not enough: it must start, be new enough and be able to make a venv.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

# What may be part of an install (runtime), and what may be used to develop and test (dev): permissive
# licences, and for tools that are not shipped the file-level copyleft of the MPL too.
LICENSES_RUN := MIT;BSD;Apache;ISC;PSF;Python Software Foundation;0BSD
LICENSES_DEV := $(LICENSES_RUN);MPL-2.0;Mozilla Public License 2.0

.DEFAULT_GOAL := help
.PHONY: help install run test test-fast test-all lint format proto golden sim trace exhaustive mutants compatibility bench bench-growth bench-soak \
	bench-failover jepsen jepsen-matrix jepsen-availability jepsen-mutants sbom licenses lock clean \
	docker docker-run docker-base wheels

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(DEV_READY) ## make .venv with everything to run, test and develop
	@echo "ready: $(BIN)/kvstore, $(BIN)/kvctl"

run: $(RUN_READY) ## three members on this machine and a short tour; serves until Ctrl-C
	@exec $(BIN)/kvstore local --size 3 --tour $(ARGS)

test: $(DEV_READY) ## the whole suite, WORKERS at a time; what is skipped is named at the end
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "not long" --durations=10 $(ARGS)

test-fast: $(DEV_READY) ## what takes seconds, for the edit loop
	$(PYTEST) -m "not slow and not long" -x $(ARGS)

test-all: $(DEV_READY) ## the whole suite with many more random cases
	$(PYTEST) --durations=20 --timeout=1800 --hypothesis-profile=thorough $(ARGS)

lint: $(DEV_READY) ## ruff (style and format) and mypy --strict
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(TYPED)

format: $(DEV_READY) ## let ruff format and mend what it can
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

proto: $(DEV_READY) ## regenerate raft/pb and kvstore/pb from proto/
	$(BIN)/python proto/generate.py

golden: $(DEV_READY) ## rewrite expected outputs: scripts, and transcripts from a real etcd; commit only what you can explain
	$(BIN)/python -m raft.testing.script --rewrite tests/raft/scripts
	$(BIN)/python -m tests.conformance.record

sim: $(DEV_READY) ## simulate seeds FIRST..FIRST+N-1, or replay SEED=n (LEVEL=member: whole members; ARGS="--shrink")
	$(BIN)/python -m tests.sim$(SIM_LEVEL) $(if $(SEED),$(SEED),$(FIRST)..$$(($(FIRST) + $(N) - 1))) $(ARGS)

trace: $(DEV_READY) ## every event of the simulation of SEED=n, a line each (LEVEL=member)
	@$(BIN)/python -m tests.sim$(SIM_LEVEL) $(or $(SEED),$(FIRST)) --trace $(ARGS)

exhaustive: $(DEV_READY) ## every run of three nodes within narrow bounds: two terms, few deliveries
	$(BIN)/python -m tests.sim exhaustive

mutants: $(DEV_READY) ## put known bugs back, one by one: the simulator must find each; resumes where it was stopped
	$(BIN)/python -m tests.sim.mutants $(ARGS)

compatibility: $(DEV_READY) ## write docs/COMPATIBILITY.md anew, from a real etcd and a member
	$(BIN)/python -m tests.conformance.compatibility

jepsen: $(DEV_READY) ## members in containers or namespaces, faults, clients, verdicts (root; TIME, SEED, WORKLOAD, NEMESIS, BACKEND, SERVER)
	$(BIN)/python -m tests.jepsen --backend $(BACKEND) --workload $(WORKLOAD) --nemesis $(NEMESIS) --time $(TIME) \
		--seed $(or $(SEED),$(FIRST)) --server $(SERVER) $(ARGS)

jepsen-matrix: $(DEV_READY) ## every nemesis and workload, then all at random; resumes; docs/JEPSEN.md has the table (ARGS="--minutes 60")
	$(BIN)/python -m tests.jepsen.matrix --backend $(BACKEND) $(ARGS)

jepsen-availability: $(DEV_READY) ## how long writes stop when the leader is lost, for us and a real etcd (ARGS="--rounds 5")
	$(BIN)/python -m tests.jepsen.availability --backend $(BACKEND) $(ARGS)

jepsen-mutants: $(DEV_READY) ## known bugs in real members, one by one: make jepsen must see each (root; resumes; ARGS=--table)
	$(BIN)/python -m tests.jepsen.mutants $(ARGS)

bench: $(DEV_READY) ## every row of docs/BENCHMARK.md beside etcd's (ROW=put-50 or a list; ARGS="--quick", "--readme")
	$(BIN)/python -m bench --row "$(ROW)" $(ARGS)

bench-growth: $(DEV_READY) ## puts/s and p99 by keys, members and connections, plotted beside etcd's (ARGS="--quick")
	$(BIN)/python -m bench.growth $(ARGS)

bench-soak: $(DEV_READY) ## our members under a full mixed load for MINUTES: does anything grow?
	$(BIN)/python -m bench.soak --minutes $(MINUTES) $(ARGS)

bench-failover: $(DEV_READY) ## how long no write goes through when the leader changes, beside etcd's (ARGS="--rounds 20")
	$(BIN)/python -m bench.failover $(ARGS)

sbom: $(DEV_READY) ## write sbom.json (CycloneDX) of what an install contains
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json

licenses: $(DEV_READY) ## fail when a dependency's licence is not on the list above
	$(BIN)/pip-licenses --from=mixed --partial-match --allow-only="$(LICENSES_DEV)" >/dev/null
	$(BIN)/pip-licenses --from=mixed --partial-match --allow-only="$(LICENSES_RUN)" \
		--packages $$(sed -n 's/^\([A-Za-z0-9_.-]*\)==.*/\1/p' requirements.lock) kvstore

lock: $(DEV_READY) ## pin the newest versions pyproject.toml allows, with hashes, for every platform
	$(BIN)/uv pip compile pyproject.toml --extra build --extra dev --universal --python-version 3.11 --generate-hashes \
		--upgrade --quiet --custom-compile-command "make lock" -o requirements-dev.lock
	$(BIN)/uv pip compile pyproject.toml --extra build -c requirements-dev.lock --universal --python-version 3.11 \
		--generate-hashes --upgrade --quiet --no-annotate --custom-compile-command "make lock" -o requirements.lock

docker: ## build the image (needs a container engine)
	$(ENGINE) build -f deploy/Dockerfile -t $(IMAGE) .

docker-run: ## three members in containers (needs a container engine)
	$(ENGINE) compose -f deploy/compose.yaml up

# For machines that reach no image registry. The engine is the one that runs, else one that is started for it.
docker-base: wheels ## make the image's base with debootstrap, and wheels to build from (root)
	$(BIN)/python -m tests.jepsen.engine deploy/base.sh

wheels: $(RUN_READY) ## download what the image's build installs, for one that reaches no package index
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock \
		--dest build/wheels

clean: ## remove what make made, .venv included; data directories stay
	rm -rf $(VENV) build dist sbom.json .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_READY): requirements.lock pyproject.toml
	@$(MAKE) --no-print-directory $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_READY): requirements-dev.lock $(RUN_READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "kvstore needs Python 3.11 or newer with venv and ensurepip (Debian: apt install python3-venv)," \
		"or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
