# The commands of README and CONTRIBUTING. Each works on a fresh machine with Python 3.10 to 3.13.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-peer
SOURCES := setup.py constraints.txt
# One more than the number of cores, because some tests wait for child processes.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
RANDOM_RULES := frsf brsf drtp
LSTM_RULES := backprop symmetric feedback
TRANSFORMER_RULES := backprop symmetric feedback dfa
RULES := backprop feedback sign_symmetry weight_mirror information symmetric activation kolen_pollack

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: quickstart test test-exhaustive lint resume-test bench peer mnist-table mnist-random-feedback mnist-lstm \
	vision-transformer clean

quickstart: $(VENV)/.cpu
	$(BIN)/neural-alignment train configs/quickstart.yaml --force

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Tests of killed processes, and all members of groups of which `make test` runs some: about 7 minutes on 2 cores.
test-exhaustive: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m exhaustive

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources .ci/run tpu_scripts/*.sh

# Kills each kind of run 20 times with SIGKILL, and resumes it each time: about ten minutes.
resume-test: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python tests/killed_runs.py --kills 20

bench: $(VENV)/.cpu
	-$(MAKE) peer
	$(BIN)/python -m benchmarks.run

peer: $(PEER)/.installed

mnist-table: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(RULES:%=configs/mnist/convnet/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/mnist/rules
	$(BIN)/python tests/rules_tables.py

mnist-random-feedback: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(RANDOM_RULES:%=configs/mnist/convnet/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/mnist/random_feedback
	$(BIN)/python tests/rules_tables.py

mnist-lstm: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(LSTM_RULES:%=configs/mnist/lstm/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/mnist/lstm
	$(BIN)/python tests/rules_tables.py

# An hour on 2 cores.
vision-transformer: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(TRANSFORMER_RULES:%=configs/cifar10/vision_transformer/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/cifar10/vision_transformer
	$(BIN)/python tests/rules_tables.py

$(VENV)/.cpu: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

# Includes .cpu, so targets that need both install only once.
$(VENV)/.dev: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]'
	touch $(VENV)/.cpu $@

# The library that the benchmarks compare with. PyPI's torch for Linux requires CUDA, which takes 5 GB; `make peer
# TORCH_INDEX=URL` installs a smaller one from an index of CPU wheels. biotorch is installed without dependencies, because
# its layers only need torch and not the other packages it declares.
$(PEER)/.installed: Makefile
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet $(TORCH_INDEX:%=--index-url %) torch==2.14.1
	$(PEER)/bin/pip install --quiet numpy
	$(PEER)/bin/pip install --quiet --no-deps biotorch==0.0.16
	touch $@

clean:
	rm -rf $(VENV) $(PEER) build ./*.egg-info
