# Every target goes through `setup`, so each of them works in a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Tests with heavier needs, by what they load: each group has processes of its own, so that no two of these libraries meet.
COMPILERS := tpu_compiler or cuda_compiler
REFERENCE := torch or transformers or diffusers
SYSTEMS   := ray or slurm or hosts or chromium or wandb or buckets or long
HEAVY     := tensorflow or $(COMPILERS) or $(REFERENCE) or $(SYSTEMS)

.PHONY: setup quickstart demo test heavy test-heavy test-all plans lint clean

setup: $(STAMP)

# The stamp is written last: an interrupted installation is taken up again.
$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

quickstart: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/quickstart.sh

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" OUT=runs/demo WORLD=demo CLIPS=8000 AE_CONFIG=configs/autoencoder_demo.py \
	  DIT_CONFIG=configs/dit_demo.py SAMPLE_ARGS="--steps 25 --guidance 4" PROMPTS=launch/prompts_demo.txt TITLE="Text to video on one machine, from nothing" bash launch/quickstart.sh

# Two workers, each with one core's worth of work; a file stays on one worker, so its fixtures are built once.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ($(HEAVY))"

# What they need. Chromium and Slurm come from the system's packages where they are not there yet. PyTorch is only a
# reference here: its lower bound will do.
heavy: setup
	command -v chromium || (apt-get update -q && apt-get install -q -y --no-install-recommends chromium)
	command -v slurmctld && command -v munged || (apt-get update -q && apt-get install -q -y --no-install-recommends slurm-wlm munge)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -e ".[torch,transformers,diffusers,tensorflow,wandb,ray,s3,gs,tpu,cuda12-compiler]" "moto[server]>=5.0" "gcp-storage-emulator>=2024.8"

# All of them, or without those that take minutes. The plugin that compiles for GPUs leaves again where
# there is no driver: with it JAX would log a traceback at every start.
test-heavy: SHORT := and not long
test-heavy test-all: heavy
	status=0; \
	  for group in "tensorflow" "$(COMPILERS)" "$(REFERENCE)" "$(SYSTEMS)"; do \
	    $(BIN)/python -m pytest -v -n 2 --dist loadfile -m "($$group) $(SHORT)" || status=1; \
	  done; \
	  command -v nvidia-smi || $(BIN)/python -m pip uninstall --quiet --yes jax-cuda12-plugin jax-cuda12-pjrt; \
	  exit $$status

# The production configs, each compiled for its hardware: an hour on two cores. FILE=… takes another list.
plans: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[tpu,cuda12-compiler]"
	$(BIN)/sora-jax plan --list $(or $(FILE),configs/plans/production.py)

lint: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .cache .pytest_cache .ruff_cache build *.egg-info
