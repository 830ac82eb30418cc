# bootstrap.py sets up what a target needs in .venv, prints each step, runs the target there and prints the time.
#     make demo SEEDS=3       make test ARGS="-k attention"       make test PYTHON=/usr/bin/python3.12

.DEFAULT_GOAL := help
.PHONY: help demo table test lint format bench gpu sanitize wheel clean

PYTHON = $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; \
    done), $(error swiftvideo_fast runs on Python 3.11, 3.12 and 3.13, and finds none of them: install one, \
    for example `apt-get install python3.11 python3.11-venv python3.11-dev`, or name it: make PYTHON=...))
WITH = @$(PYTHON) bootstrap.py $@
OP_TESTS = tests/test_nontemporal.py $(wildcard $(patsubst swiftvideo_fast/ops/%.py,tests/test_%.py,$(wildcard swiftvideo_fast/ops/*.py)))

help:           ## this list
	@sed -n 's/^\([a-z]*\): *## /  make \1\t/p' Makefile | expand -t 20

demo:           ## real clips -> teacher -> few-step student -> table and HTML report (SEEDS=3 for means)
	$(WITH) demo swiftvideo demo $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

table:          ## every method on the demo's benchmark, in the layouts of the paper's tables; 70 minutes, resumable
	$(WITH) demo python -m swiftvideo_fast.demo.table $(ARGS)

test:           ## every test this machine can run, in two processes (ARGS replaces pytest's arguments)
	$(WITH) dev $(if $(ARGS),,env OMP_NUM_THREADS=1) python -m pytest $(or $(ARGS),-n 2 --dist loadfile)

lint:           ## ruff, clang-format; changes nothing
	$(WITH) dev sh -ec 'ruff check .; clang-format --dry-run -Werror $$(git ls-files "csrc/*")'

format:         ## fix what lint can fix automatically
	$(WITH) dev sh -ec 'ruff check --fix .; clang-format -i $$(git ls-files "csrc/*")'

bench:          ## the op tests, then every op against torch, as ratios (ARGS="attention --check")
	$(WITH) dev sh -ec 'python -m pytest -q $(OP_TESTS); python -m bench $(ARGS)'

gpu:            ## on a GPU machine, in 8 minutes: speeds, errors, tests, records, with its own torch (PART="step attention")
	@nvidia-smi > /dev/null 2>&1 || { echo "swiftvideo_fast: no NVIDIA GPU here (nvidia-smi fails)"; exit 1; }
	@$(PYTHON) -m bench gpu $(PART) $(ARGS)

# The sanitizers must load before python's allocator; `pytest`, unlike `python -m pytest`, leaves ./ off sys.path.
SANITIZED = LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitized
sanitize:       ## the op tests under the address and undefined-behaviour sanitizers
	$(WITH) dev sh -ec 'CMAKE_ARGS=-DSWIFTVIDEO_SANITIZE=ON python setup.py -q build --build-lib build/sanitized; \
	    $(SANITIZED) pytest -o pythonpath=tests -p no:cacheprovider $(or $(ARGS),$(OP_TESTS))'

wheel:          ## dist/*.whl
	$(WITH) dev python -m pip -q wheel --no-deps --no-build-isolation -w dist .

clean:          ## delete everything that make creates
	rm -rf .venv build dist *.egg-info swiftvideo_fast/_C*.so .pytest_cache .ruff_cache .hypothesis
