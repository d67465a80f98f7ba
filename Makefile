# Two commands on a fresh machine (Python 3.11+, pip, make): `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
SCENARIO ?= scenarios/quickstart.yaml
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# GNU make ends with 2 whatever a recipe's status was, except that it exits 1 on SIGQUIT: that is how a FAIL keeps its
# exit code (0 PASS, 1 FAIL, 2 UNKNOWN and everything else) through make.
KEEP_FAIL = || { code=$$?; [ $$code -ne 1 ] || kill -QUIT $$PPID; exit $$code; }

.PHONY: install demo test lint clean
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

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache
