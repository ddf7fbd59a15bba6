# `make demo` and `make test` need nothing but Python 3.10+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# several processes on few cores are faster with one thread each
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

# every table and picture of docs/results.md
SWEEPS := balance balancing_rules critic_free delayed_rewards eight_tasks gridworlds regrouping head_to_head meta_world minigrid_tasks objectives options own_environments
SMOKE := benchmark_smoke
# it asks for pygame, whose files would replace those of the pygame-ce that Gymnasium and MiniGrid ask for
WITHOUT_DEPENDENCIES := "mo-gymnasium>=1.3,<2"

.PHONY: install demo docs test test-slow test-gpu test-install lint benchmark benchmark-smoke clean

install: $(VENV)/installed-dev

# one environment, which is empty, or has an extra, or several
$(VENV)/installed-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	$(if $(filter dev,$*),$(BIN)/python -m pip install --quiet --no-deps $(WITHOUT_DEPENDENCIES))
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/python -m benchmarks.demo

test: lint docs
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -n 2 -m slow

# also part of `make test`, where there is a GPU
test-gpu: install
	$(BIN)/python -m pytest -m gpu

# wheel and sdist, in empty environments
test-install: install
	.ci/test_install $(BIN)/python

benchmark: install
	for sweep in $(SWEEPS); do $(BIN)/python -m benchmarks.sweeps.$$sweep || exit 1; done
	$(BIN)/python -m benchmarks.report

# the same with runs that are over at once, into a folder of their own; to compile them would take longer than to run them
benchmark-smoke: export TORCH_COMPILE_DISABLE = 1
benchmark-smoke: install
	rm -rf $(SMOKE)
	for sweep in $(SWEEPS); do $(BIN)/python -m benchmarks.sweeps.$$sweep --smoke $(SMOKE) || exit 1; done
	$(BIN)/python -m benchmarks.report --results $(SMOKE) --docs $(SMOKE)

# the pages as a site, in docs/_build/html; a fresh environment, or else only pages that have changed could warn
docs: install
	$(BIN)/python -m sphinx --fresh-env --nitpicky --fail-on-warning --keep-going --quiet docs docs/_build/html

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info $(SMOKE) .mypy_cache .pytest_cache .ruff_cache .hypothesis demo_output
