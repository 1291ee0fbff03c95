# The commands of the README, each complete on a fresh machine with Python 3.10 to 3.12.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py constraints.txt
RULES := backprop feedback sign_symmetry weight_mirror information symmetric activation kolen_pollack

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: quickstart test lint bench mnist-table clean

quickstart: $(VENV)/.cpu
	$(BIN)/neural-alignment train configs/quickstart.yaml --force

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck .ci/run

bench: $(VENV)/.cpu
	$(BIN)/python benchmarks/step_time.py

mnist-table: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(RULES:%=configs/mnist/convnet/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/mnist/rules

$(VENV)/.cpu: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

$(VENV)/.dev: $(VENV)/.cpu
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]'
	touch $@

clean:
	rm -rf $(VENV) build ./*.egg-info
