# The development commands. `make demo` and `make test` are all a fresh machine
# needs: they make a virtual environment of their own in .venv.

PYTHON ?= python3
VENV ?= .venv
# Further arguments of `greenamqp demo`, for instance
#   make demo DEMO="--hub gevent --duration 30"
DEMO ?=
# Further arguments of pytest, for instance make test PYTEST="-x -k pool"
PYTEST ?=
# How many seeds of the simulation are played, as far as there is time: it is to take
# what the other parts of make test leave of the processors; .ci/run plays more of them.
# They are new to each commit, and the same whenever that is tested; others by
#   make test-simulation SIMULATION="--runs 1000"
SIMULATION ?= --commit --runs 150 --seconds 300
# How many parts of make test run at a time.
LANES ?= 6
# What the functional tests run under, each in a process of its own because
# monkey patching is for a whole process.
WORLDS ?= threads gevent eventlet eventlet-asyncio
PROGRAMS := tests/functional/test_demo.py
# The unit tests among the parts of make test.
UNIT ?= test-unit
# Message buses and worlds of the integration tests, for instance
#   make integration INTEGRATION="rabbitmq-4.0 artemis eventlet"
INTEGRATION ?=
# The short form of the faults of a real cluster.
CHAOS ?= --bus rabbitmq-cluster --queues quorum --drivers greenamqp,rabbit \
    --faults kill,freeze,alarm,close,delete-queues,delete-exchanges,kill-queues
# Message buses that `make buses` installs.
BUSES ?= rabbitmq-4.0 artemis
# Further arguments of the short comparison, for instance
#   make bench BENCH="--sides greenamqp --loads call --callers 1,64"
BENCH ?=
# The runner of oslo.messaging's own functional tests.
OSLO_TESTS ?= tests/functional/run_oslo.py
# Real notification bodies for the demo, if somebody put them there.
SAMPLES ?= $(wildcard ../shared/notifications/nova.jsonl)

# Some machines have Python keep no bytecode: then each of the thousand processes that
# the tests start would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What decides what is in the environment: it is brought up to date when one of
# these changes.
PACKAGING := setup.cfg setup.py pyproject.toml requirements.txt

# Two commands must not fill one environment at the same time.
.NOTPARALLEL:
.PHONY: help demo test integration chaos buses style docs cover bench clean
.PHONY: environments list-tests
# All of `make test`, the longest first.
TESTS := test-chaos $(UNIT) $(WORLDS:%=test-%) test-programs test-oslo test-simulation
.PHONY: $(TESTS) test-unit-here

help:
	@echo "make demo   run the main job on an embedded broker and show its figures"
	@echo "make test   run all tests but those that need a foreign message bus"
	@echo "make integration  run them on the message buses, which it installs and starts"
	@echo "make chaos  what faults of a RabbitMQ cluster cost, beside rabbit://"
	@echo "make style  ruff, mypy and shellcheck"
	@echo "make docs   build the documentation into docs/_build/html"
	@echo "make cover  the tests with a report of what they leave out"
	@echo "make bench  compare with the predecessor, in less than five minutes"
	@echo "make clean  remove what the other commands made, .venv included"

demo: $(VENV)/.run
	$(BIN)/greenamqp demo $(addprefix --samples ,$(SAMPLES)) $(DEMO)

# Side by side, as they wait more than they compute.
test: $(VENV)/.test
	@echo "$(words $(TESTS)) parts, $(LANES) at a time: each shows what it wrote when it ends"
	@$(PYTHON) tools/lanes.py -j $(LANES) $(TESTS)

test-unit: $(VENV)/.test
	$(BIN)/python -m pytest tests/unit $(PYTEST)

# What other Pythons leave of them, where there are such: see tools/pythons.py.
test-unit-here: $(VENV)/.test
	$(BIN)/python -m pytest $(shell $(PYTHON) tools/pythons.py here) $(PYTEST)

$(WORLDS:%=test-%): test-%: $(VENV)/.test
	$(BIN)/python -m tests.functional.world $* pytest tests/functional \
	    --ignore=$(PROGRAMS) $(PYTEST)

# These choose their worlds by themselves, and start hundreds of processes.
test-programs: $(VENV)/.test
	$(BIN)/python -m pytest $(PROGRAMS) $(PYTEST)

test-oslo: $(VENV)/.test
	$(BIN)/python $(OSLO_TESTS)

test-chaos: $(VENV)/.test
	$(BIN)/python -m pytest tests/chaos $(PYTEST)

test-simulation: $(VENV)/.test
	nice -n 5 $(BIN)/python -W ignore -m tests.simulation $(SIMULATION)

# What tools/pythons.py deals: under another Python, in an environment of its own.
python-%:
	$(PYTHON) tools/pythons.py run $* $(PYTEST)

integration: $(VENV)/.test
	$(BIN)/python -m tests.integration $(INTEGRATION) $(if $(PYTEST),-- $(PYTEST))

# For minutes: not to be mistaken for test-chaos.
chaos: $(VENV)/.test
	$(BIN)/python -W ignore -m tests.chaos.faults $(CHAOS)

integration-%: $(VENV)/.test
	$(BIN)/python -m tests.integration $* $(INTEGRATION) $(if $(PYTEST),-- $(PYTEST))

buses:
	$(PYTHON) -m tools.buses install $(BUSES)

# For tools/lanes.py, which runs side by side what has its environment.
environments: $(VENV)/.all

list-tests:
	@echo $(TESTS)

style: $(VENV)/.style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run tools/check-build-deps devstack/settings devstack/plugin.sh

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

cover: $(VENV)/.test
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest tests/unit $(PYTEST)
	set -e; for world in $(WORLDS); do \
	    $(BIN)/python -m coverage run -m tests.functional.world $$world \
	        pytest tests/functional $(PYTEST); \
	done
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks compare --short $(BENCH)

clean:
	rm -rf $(VENV) .tox build dist docs/_build *.egg-info htmlcov .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: .base is an empty environment, .run what a user needs, the others
# each add the tools of one command.
$(VENV)/.base:
	@PYTHON="$(PYTHON)" tools/check-build-deps
	@# tox leaves a file of this name that points to one of its environments.
	@if [ -f $(VENV) ]; then rm $(VENV); fi
	@echo "Making a virtual environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.base $(PACKAGING)
	@PYTHON="$(PYTHON)" tools/check-build-deps
	@echo "Installing greenamqp and what it needs into $(VENV); where" \
	    "python-qpid-proton has to be compiled that takes one to three minutes ..."
	@$(PIP) install -q -e '.[eventlet,gevent]'
	@touch $@

$(VENV)/.test $(VENV)/.style $(VENV)/.docs: $(VENV)/.%: $(VENV)/.run
	@echo "Installing what make $* needs beside it ..."
	@$(PIP) install -q -e '.[$*]'
	@touch $@

# All of them, which takes less time at once than one after another.
$(VENV)/.all: $(VENV)/.base $(PACKAGING)
	@echo "Installing greenamqp and what its commands need into $(VENV) ..."
	@$(PIP) install -q -e '.[eventlet,gevent,test,style,docs]'
	@touch $(addprefix $(VENV)/.,run test style docs) $@

# The environments of those that are compared are made by the benchmark itself.
$(VENV)/.bench: $(VENV)/.base
	$(PIP) install -q 'matplotlib>=3.7'
	@touch $@
