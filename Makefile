# Everything runs in .venv, which the first target that needs it makes (deploy/bootstrap.py).
# Needs: make and a Python 3.11 to 3.13 with its venv module.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
PEERS := .venv-peers/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check static kafka kafka-stop bench bench-peers faults schemas lock clean clean-venv

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml deploy/bootstrap.py
	@command -v $(PYTHON) >/dev/null || { echo "trimtab: $(PYTHON) not found. Install Python 3.11 to 3.13, or: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) deploy/bootstrap.py

install: $(READY) ## trimtab and its locked dependencies in .venv

demo: $(READY) ## the whole loop on the embedded defaults (DEMO_ARGS="--bad-challenger", "--keep")
	@$(BIN)/trimtab demo $(DEMO_ARGS)

test: $(READY) ## all tests (PYTEST_ARGS="-k name"); parts this machine lacks are named skips
	@$(BIN)/python deploy/kafka/broker.py fetch || echo "trimtab: the tests that need Apache Kafka will be skipped"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: static ## what CI runs: static checks first, then all tests
	@$(MAKE) --no-print-directory test PYTEST_ARGS="--deselect tests/unit/test_house.py::test_a_static_check_passes $(PYTEST_ARGS)"

static: $(READY) ## ruff, mypy, import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

kafka: ## start a real Kafka on this machine and print its address (Java, and Maven the first time)
	@python=$(BIN)/python; [ -x $$python ] || python=$(PYTHON); $$python deploy/kafka/broker.py start

kafka-stop: ## stop it; its data stays in deploy/kafka/run
	@python=$(BIN)/python; [ -x $$python ] || python=$(PYTHON); $$python deploy/kafka/broker.py stop

bench: $(READY) ## every benchmark, small (BENCH_ARGS="" for full size)
	@set -e; for script in $(filter-out bench/rig.py bench/drift_peers.py,$(wildcard bench/*.py)); do echo "trimtab: $$script"; $(BIN)/python $$script $(BENCH_ARGS); done
bench: BENCH_ARGS ?= --quick

$(PEERS): bench/peers.txt
	@rm -rf .venv-peers
	@$(PYTHON) -m venv .venv-peers && .venv-peers/bin/pip install -q -r bench/peers.txt && touch $@ || { rm -rf .venv-peers; exit 1; }

bench-peers: $(READY) $(PEERS) ## whylogs, NannyML and river, in an environment of their own (.venv-peers), beside ours
	@set -e; for script in bench/peers.py bench/calibration.py; do echo "trimtab: $$script"; $(BIN)/python $$script $(BENCH_ARGS); done

faults: $(READY) ## all that crashes processes, brokers and databases, the long way, with a table
	@$(BIN)/python -m pytest tests/recovery --faults-long $(PYTEST_ARGS)

schemas: $(READY) ## write schemas/ anew from the code
	@$(BIN)/python -m trimtab.schemas_gen

lock: $(READY) ## resolve requirements.lock anew from pyproject.toml
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --all-extras pyproject.toml -o requirements.lock
	@! grep -nE 'https?://|--index-url' requirements.lock

clean: kafka-stop ## caches, Kafka's data and jars; keeps .venv
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist .trimtab deploy/kafka/run deploy/kafka/libs
	@find services agent tests bench deploy -name __pycache__ -type d -prune -exec rm -rf {} +

clean-venv: ## .venv and .venv-peers
	@rm -rf .venv .venv-peers
