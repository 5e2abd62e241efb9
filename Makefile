# The two commands a newcomer needs, each from nothing:
#   make quickstart   environment, pre-training + linear SVM on the built-in data, report
#   make test         environment, the default test suite
# and `make docs`, which builds this documentation as a site: site/index.html.
# PYTHON=python3.12 chooses the interpreter (3.11 to 3.13), VENV the folder of the environment.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
WORKERS ?= auto

.PHONY: quickstart figures test test-slow style docs native clean

quickstart: $(VENV)/.installed native
	$(RUN) main.py --config cfgs/quickstart/point-m2ae.yaml --exp_name quickstart --val_freq 2 --overwrite
	$(RUN) -m tools.quickstart experiments/quickstart/point-m2ae/quickstart

# The pictures of README and docs, from the small weights, built-in clouds and two runs of half a minute: a few minutes of one core.
figures: $(VENV)/.installed native
	$(RUN) -m benchmarks.figures

# One thread per worker: results do not depend on it, and two workers on two cores do not get in each other's way.
test: $(VENV)/.installed-dev native
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadgroup

test-slow: $(VENV)/.installed-dev native
	$(RUN) -m pytest -m slow

style: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# Opens as a file, without a server or a network. A link that leads nowhere fails.
docs: $(VENV)/.installed-docs native
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet
	@echo "site/index.html"

# Compiles the CPU kernels, and the CUDA kernels where there is a CUDA device; says so where there is no compiler. Everything
# runs either way. That the CUDA kernels compile wherever nvcc is found is one of the tests.
native: $(VENV)/.installed
	$(RUN) -m extensions.m2ae_ops.build || true

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(0 if ok else "Python 3.11 to 3.13 is needed, this is %s; choose one with make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-docs: requirements-docs.txt $(VENV)/.installed-dev
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

clean:
	rm -rf $(VENV) site build/docs .pytest_cache .ruff_cache .hypothesis
