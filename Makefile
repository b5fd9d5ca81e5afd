# make demo          a whole tunnel on loopback
# make test          every test                    ARGS="tests/mux -x" goes to pytest
# make lint          ruff (rules, docstrings, layout) and mypy --strict
# make pyz           tunnel.pyz, one file for this Python and platform
# make wheel         dist/qanat-*.whl, for pipx and uv
# make deb           dist/qanat_*.deb, for this release of Debian
# make oci           dist/qanat-*.oci.tar, an image for docker, podman and Kubernetes
#                    each of these has its SBOM beside it: docs/PACKAGING.md
# make soak          the long counts; writes docs/SOAK.md
# make bench         side by side with OpenSSH and others; ARGS=--quick takes two minutes
# make clean
#
# PYTHON=python3.12 chooses the interpreter, VENV=DIR where its packages go.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
IN := $(VENV)/bin/python

.PHONY: demo test lint pyz wheel deb oci soak bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.run
	$(IN) tunnel.py demo $(ARGS)

test: $(VENV)/.test
	$(IN) -m tests $(ARGS)

lint: $(VENV)/.test
	$(IN) -m ruff check .
	$(IN) -m ruff format --check .
	$(IN) -m mypy
	$(IN) -m mypy --package packages

pyz: $(VENV)/.test
	$(IN) -m packages pyz --into . $(ARGS)

wheel deb oci: $(VENV)/.test
	$(IN) -m packages $@ $(ARGS)

soak: $(VENV)/.test
	$(IN) -m benchmarks.soak $(ARGS)
	$(IN) -m benchmarks.reloads
	$(IN) -m benchmarks.revocation
	$(IN) -m benchmarks.kinds
	$(IN) -m benchmarks.chaos --paths
	QANAT_RELOADS=1800 $(IN) -m pytest --timeout 600 tests/integration/test_reload.py
	$(IN) -m benchmarks.doctor
	QANAT_LONG=1 $(IN) -m pytest tests/packaging/test_bundles.py tests/mux/test_exactly_once.py
	QANAT_LONG=1 $(IN) -m pytest tests/integration/test_matrix.py

bench: $(VENV)/.bench
	$(IN) -m benchmarks $(ARGS)

clean:
	rm -rf "$(VENV)" build dist *.egg-info tunnel.pyz tunnel.pyz.cdx.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than setup.cfg exactly when what it names is installed.

$(VENV)/.run: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(IN) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(IN) -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@ $(VENV)/.run

$(VENV)/.bench: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(IN) -m pip install --quiet --disable-pip-version-check --editable ".[test,bench]"
	@touch $@ $(VENV)/.run $(VENV)/.test

$(VENV)/bin/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no $(PYTHON).  Install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Qanat needs Python 3.11 or newer, and $(PYTHON) is `"$(PYTHON)" -V 2>&1`." >&2; \
	  echo "Name another: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments here.  On Debian and Ubuntu:" >&2; \
	  echo "  apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
