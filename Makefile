# The commands of README and CONTRIBUTING. They work on a fresh machine with Python 3.10 to 3.13, except `test-lowest`, which
# needs 3.11, and `tpu-environment` and `tpu-check`, which need 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-peer
TPU := .venv-tpu
LOWEST := .venv-lowest
# Hours of processor time after which `make tpu-check` begins no further case.
TPU_HOURS ?= 5
SOURCES := setup.py constraints.txt
# One more than the number of cores, because some tests wait for child processes.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
RANDOM_RULES := frsf brsf drtp
LSTM_RULES := backprop symmetric feedback
TRANSFORMER_RULES := backprop symmetric feedback dfa
LAB_RULES := backprop feedback sign_symmetry kolen_pollack symmetric activation weight_mirror_adam weight_mirror_adam_ops \
	information weight_mirror
RULES := backprop feedback sign_symmetry weight_mirror information symmetric activation kolen_pollack

export TF_CPP_MIN_LOG_LEVEL ?= 3
# pytest keeps the test files with its changes to their assertions, which take 3 seconds in each process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-exhaustive test-lowest package-test examples examples-outputs docs docs-serve lint resume-test bench \
	peer tpu-environment tpu-check \
	tpu-check-pinned mnist-table mnist-random-feedback mnist-product-feedback mnist-lstm vision-transformer \
	two-routes-rates two-routes-lab cifar10-table clean

# Replaces only its own run, not that of `neural-alignment train quickstart`.
quickstart: $(VENV)/.cpu
	$(BIN)/neural-alignment train configs/quickstart.yaml --run-dir runs/make_quickstart --force

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Tests of killed processes, and all members of groups of which `make test` runs some: half an hour on 2 cores.
# PART=2/4 runs the third of four parts.
PART ?= 0/1
test-exhaustive: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m exhaustive --part $(PART)

# A run and the tests of the parts that use Keras most, with the lowest version of each package. It needs Python 3.11.
# Warnings are not errors here: old packages call functions that their newer dependencies have deprecated.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/neural-alignment train configs/quickstart.yaml --run-dir runs/lowest --force
	$(LOWEST)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal --override-ini filterwarnings=default \
		tests/test_keras_internals.py tests/optimizers tests/alignments tests/models tests/layers \
		tests/data/test_data_sources.py

# Builds the distributions, and runs the commands of an installed wheel outside of the checkout: about 3 minutes.
package-test: $(VENV)/.dev
	$(BIN)/python tests/installed_package.py --python $(PYTHON)

# Executes the notebooks as they are, into runs/examples; examples/README.md has the time of each.
examples: $(VENV)/.dev
	$(BIN)/python tests/execute_notebooks.py

# The same, and stores the outputs in examples/.
examples-outputs: $(VENV)/.dev
	$(BIN)/python tests/execute_notebooks.py --write

# The documentation site, in build/website/html: half a minute. Warnings and broken links are errors.
docs: $(VENV)/.docs
	$(BIN)/python -m website build

# The same, at http://localhost:8000/.
docs-serve: $(VENV)/.docs
	$(BIN)/python -m website serve

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources .ci/run tpu_scripts/*.sh cluster_scripts/*.sbatch tests/*.sh

# Kills each kind of run 20 times with SIGKILL, and resumes it each time; results/resume/README.md has the time it took.
resume-test: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python tests/killed_runs.py --kills 20

# Measures speed and memory: about 2 hours on 2 cores (the sum of `minutes` in benchmarks/). It replaces the committed samples in
# benchmarks/results that belong to another machine, other versions or another source.
bench: $(VENV)/.cpu
	-$(MAKE) peer
	$(BIN)/python -m benchmarks.run

peer: $(PEER)/.installed

# Compiles training steps for Cloud TPU without a TPU, and writes the tables of docs/tpu.md. Repeat it to continue.
tpu-check: $(VENV)/.cpu tpu-environment
	$(BIN)/python -m benchmarks.tpu.check --hours $(TPU_HOURS)
	$(BIN)/python -m benchmarks.tpu.table

# The first case with the versions that are installed on a TPU.
tpu-check-pinned: $(TPU)-pinned/.installed
	$(TPU)-pinned/bin/python -m benchmarks.tpu.check --first 1 --table benchmarks/tpu/pinned.csv
	$(BIN)/python -m benchmarks.tpu.table

tpu-environment: $(TPU)/.installed

mnist-table: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(RULES:%=configs/mnist/convnet/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/mnist/rules
	$(BIN)/python tests/rules_tables.py

mnist-random-feedback: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(RANDOM_RULES:%=configs/mnist/convnet/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/mnist/random_feedback
	$(BIN)/python tests/rules_tables.py

mnist-product-feedback: $(VENV)/.cpu
	$(BIN)/neural-alignment compare configs/mnist/convnet/pfa.yaml --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/mnist/product_feedback
	$(BIN)/python tests/rules_tables.py

mnist-lstm: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(LSTM_RULES:%=configs/mnist/lstm/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/mnist/lstm
	$(BIN)/python tests/rules_tables.py

# About an hour on 2 cores with nothing beside it (an estimate).
vision-transformer: $(VENV)/.cpu
	$(BIN)/neural-alignment compare $(TRANSFORMER_RULES:%=configs/cifar10/vision_transformer/%.yaml) --seeds 0,1,2 \
		--set logging.tensorboard=false --output results/cifar10/vision_transformer
	$(BIN)/python tests/rules_tables.py

# All rules on CIFAR-10 at full size: hours on 2 cores (docs/results.md has the minutes of a run). The same command resumes.
cifar10-table: $(VENV)/.cpu
	nice $(BIN)/neural-alignment lab cifar10 --runs results/cifar10/runs --engine processes:2
	PYTHONPATH=. $(BIN)/python tests/lab_rates.py cifar10

# The rates of the lab of two_routes (docs/two_routes.md): a search for each rule, and their results in the configurations.
two-routes-rates: $(VENV)/.cpu
	set -e; for rule in $(LAB_RULES); do \
		$(BIN)/neural-alignment search lab/two_routes/$$rule --engine processes:2 \
			--search-dir results/two_routes/searches/$$rule; \
	done
	$(BIN)/neural-alignment table two_routes/rates --runs results/two_routes/searches
	PYTHONPATH=. $(BIN)/python tests/lab_rates.py rates

# The runs of the lab of two_routes with these rates; docs/two_routes.md has the measured time. The same command resumes.
two-routes-lab: $(VENV)/.cpu
	$(BIN)/neural-alignment lab two_routes --runs results/two_routes/runs --engine processes:2
	PYTHONPATH=. $(BIN)/python tests/lab_rates.py lab

# $(call require_python,CONDITION,WORDS) ends a recipe if PYTHON has another minor version than it needs.
require_python = @$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[1] $(1) else \
	"error: needs Python $(2), such as with PYTHON=python3.11; found " + sys.version.split()[0])'

$(VENV)/.cpu: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

# Includes .cpu, so targets that need both install only once.
$(VENV)/.dev: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]'
	touch $(VENV)/.cpu $@

$(VENV)/.docs: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,docs]'
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

# The versions of the extra `tpu`, and the jax of the same time as libtpu, in one environment.
$(TPU)-pinned/.installed: Makefile setup.py
	$(PYTHON) -m venv $(TPU)-pinned
	$(TPU)-pinned/bin/pip install --quiet --editable '.[cpu]' 'tensorflow-cpu==2.20.*' jax==0.6.1 libtpu==0.0.14
	touch $@

# The lowest versions that setup.py accepts, which pip cannot choose.
$(LOWEST)/.installed: setup.py
	$(call require_python,== 11,3.11)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra cpu setup.py --output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --requirement $(LOWEST)/lowest.txt --editable '.[dev]'
	touch $@

# The compiler of TPUs, 1.1 GB. It needs Python 3.11 or newer and nothing of this package, which gives it programs in files.
$(TPU)/.installed: Makefile
	$(call require_python,>= 11,3.11 or newer)
	$(PYTHON) -m venv $(TPU)
	$(TPU)/bin/pip install --quiet jax==0.10.2 libtpu==0.0.52
	touch $@

clean:
	rm -rf $(VENV) $(PEER) $(TPU) $(TPU)-pinned $(LOWEST) build dist ./*.egg-info
