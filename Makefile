# The commands of the README, each complete on a fresh machine with Python 3.10 to 3.13.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-peer
SOURCES := setup.py constraints.txt
# One more than there are cores: some tests wait for processes of their own.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
RULES := backprop feedback sign_symmetry weight_mirror information symmetric activation kolen_pollack

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: quickstart test test-exhaustive lint resume-test bench peer mnist-table clean

quickstart: $(VENV)/.cpu
	$(BIN)/neural-alignment train configs/quickstart.yaml --force

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Tests of killed processes, and every member of a kind of which `make test` tries some: two and a half minutes on 2 cores.
test-exhaustive: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m exhaustive

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources .ci/run tpu_scripts/*.sh

# Every kind of run, killed with SIGKILL 20 times and resumed: some ten minutes.
resume-test: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python tests/lives.py --kills 20

bench: $(VENV)/.cpu
	-$(MAKE) peer
	$(BIN)/python -m benchmarks.run

peer: $(PEER)/.installed

mnist-table: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(RULES:%=configs/mnist/convnet/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/mnist/rules

$(VENV)/.cpu: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

# All of .cpu and more: what wants both installs once.
$(VENV)/.dev: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]'
	touch $(VENV)/.cpu $@

# The peer of the benchmarks. PyPI's torch for Linux is linked to CUDA and does not load without it: 5 GB, of which a CPU
# uses little; `make peer TORCH_INDEX=URL` takes a smaller one from an index of CPU wheels. biotorch's layers need nothing
# but torch of all that it declares (a notebook server, attacks on networks), so it is installed alone.
$(PEER)/.installed: Makefile
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet $(TORCH_INDEX:%=--index-url %) torch==2.14.1
	$(PEER)/bin/pip install --quiet numpy
	$(PEER)/bin/pip install --quiet --no-deps biotorch==0.0.16
	touch $@

clean:
	rm -rf $(VENV) $(PEER) build ./*.egg-info
