# Demo, checks, man pages and installation of vbackup; "make help" lists what there is.

PYTHON = /usr/bin/python3
PREFIX = /usr/local
DESTDIR =
# Where check-stacks keeps the other Debians; not below build, for it takes minutes to make them.
STACKS = /var/cache/vbackup-stacks

# How many processes make check runs tests in: a test often waits for a QEMU or a disk, so it is one more than cores.
JOBS := $(shell expr $$(nproc) + 1)

# For make soak.
STEPS = 300
SEED := $(shell date +%s)

# For make bench: how often each contender runs, and further options, such as BENCH='--only full'.
ROUNDS = 3
BENCH =

VENV := .venv
VENV_READY := $(VENV)/.ready
BIN := $(VENV)/bin
MAN_PAGES := $(addprefix build/man/,vbackup.1 vbackup-repository.5 vbackup-transaction.7 vbackup-recovery.7)
# Every directory with tests, the quick ones first.
QUICK := tests/unit tests/contract
SUITES = $(QUICK) $(filter-out $(QUICK),$(patsubst %/,%,$(sort $(dir $(wildcard tests/*/test_*.py)))))

# Where an installed vbackup lives: all it imports in a directory of its own, apart from the system's Python packages.
LIBRARY = $(PREFIX)/lib/vbackup
COMMAND = $(PREFIX)/bin/vbackup
MAN_DIRECTORY = $(PREFIX)/share/man
# The section of a page: what its name ends in.
section = $(patsubst .%,%,$(suffix $(1)))

# When make is killed, the tests end as well. Not the script pytest: its first line names the interpreter, which it may
# not do where the path is long or has a space in it.
PYTEST = setpriv --pdeathsig TERM $(BIN)/python -m pytest --numprocesses=$(JOBS) --no-loadscope-reorder --durations=10

# What somebody has set for a Python of his own shall not change what is tested.
unexport PYTHONHOME PYTHONPATH PYTHONUNBUFFERED

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo check check-all check-stacks bench soak lint man man-lint install uninstall clean packages

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables: PYTHON=$(PYTHON) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) STACKS=$(STACKS)'

demo: $(VENV_READY) ## Back up and restore a real virtual machine of the demo's own
	$(BIN)/python -m tests.demo

check: lint man-lint ## Lint, type-check, build the man pages and run all tests
	$(PYTEST) $(SUITES)

check-all: lint man-lint ## The same, with the coverage of lines and branches, which takes a third longer
	$(PYTEST) --cov --cov-report=term $(SUITES)

bench: $(VENV_READY) ## As root: measure vbackup beside its peers (20 minutes), and write tests/bench/results
	.ci/install-packages bench-packages
	$(BIN)/python -m tests.bench --rounds $(ROUNDS) --readme README.md $(BENCH)

soak: $(VENV_READY) ## STEPS steps of the random test with the seed SEED; not part of check
	VBACKUP_SOAK_STEPS=$(STEPS) VBACKUP_SOAK_SEED=$(SEED) $(BIN)/python -m pytest tests/end_to_end/test_soak.py

check-stacks: ## As root: run the tests on the QEMU, libvirt and Python of other Debians
	STACKS='$(STACKS)' .ci/check-stacks

lint: $(VENV_READY) ## Only the linters and the type checker
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy hooks/qemu
	$(BIN)/lint-imports

man: $(MAN_PAGES) ## Build the man pages in build/man

man-lint: $(MAN_PAGES)
	mandoc -T lint -W warning $(MAN_PAGES)

# docutils writes an empty line under each heading and a font that terminals do not have; mandoc warns of both.
build/man/%: man/%.rst $(VENV_READY)
	@mkdir -p $(@D)
	$(BIN)/python -m docutils --writer=manpage --halt=warning $< $@
	@sed -i -e '/^\.S[HS] /{:a;n;/^\.S[HS] /ba;/^\.sp$$/d;}' -e '/^\.ft [CP]$$/d' $@

install: $(VENV_READY) $(MAN_PAGES) ## Install the command and the man pages below DESTDIR/PREFIX
	rm -rf '$(DESTDIR)$(LIBRARY)' build/lib
	$(BIN)/pip install --quiet --use-pep517 --target '$(DESTDIR)$(LIBRARY)' .
	rm -rf '$(DESTDIR)$(LIBRARY)/bin' build/lib
	install -d '$(DESTDIR)$(PREFIX)/bin' $(foreach page,$(MAN_PAGES),'$(DESTDIR)$(MAN_DIRECTORY)/man$(call section,$(page))')
	printf '%s\n' '#!$(PYTHON) -I' 'import sys' 'sys.path.insert(0, "$(LIBRARY)")' \
	    'from vbackup.cli import command' 'command()' > '$(DESTDIR)$(COMMAND)'
	chmod 755 '$(DESTDIR)$(COMMAND)'
	for page in $(MAN_PAGES); do install -m 644 $$page '$(DESTDIR)$(MAN_DIRECTORY)'/man$${page##*.}; done

uninstall: ## Remove what install has put there
	rm -rf '$(DESTDIR)$(LIBRARY)'
	rm -f '$(DESTDIR)$(COMMAND)' $(foreach page,$(MAN_PAGES),'$(DESTDIR)$(MAN_DIRECTORY)/man$(call section,$(page))/$(notdir $(page))')

clean: ## Remove all that make has made here, the virtual environment too
	rm -rf $(VENV) build htmlcov .coverage *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
	    .hypothesis
	find vbackup tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The system packages are asked for at every run, which is quick; they make nothing older than it was.
packages:
	@.ci/install-packages

$(VENV_READY): setup.cfg | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@
