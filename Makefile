# Demo, checks, man pages and installation of vbackup; "make help" lists the targets.

PYTHON = /usr/bin/python3
PREFIX = /usr/local
DESTDIR =
# Where check-stacks keeps the other Debians; not below build, because building them takes minutes.
STACKS = /var/cache/vbackup-stacks

# Number of processes that make check runs tests in: one more than cores, because tests often wait for QEMU or a disk.
JOBS := $(shell expr $$(nproc) + 1)

# For make soak.
STEPS = 300
SEED := $(shell date +%s)

# For make bench: rounds per contender, and further options, such as BENCH='--only full'.
ROUNDS = 2
BENCH =

VENV := .venv
VENV_READY := $(VENV)/.ready
BIN := $(VENV)/bin
MAN_PAGES := $(patsubst man/%.rst,build/man/%,$(sort $(wildcard man/*.rst)))
# Every directory with tests, the quick ones first.
QUICK := tests/unit tests/contract
SUITES = $(QUICK) $(filter-out $(QUICK),$(patsubst %/,%,$(sort $(dir $(wildcard tests/*/test_*.py)))))

# Directors that tests run, unpacked and not installed.
ENGINES := build/engines
ENGINES_READY := $(ENGINES)/.ready
MONITORS := build/monitors
MONITORS_READY := $(MONITORS)/.ready
ENGINE_TESTS := tests/end_to_end/test_bacula.py tests/end_to_end/test_engine_recipes.py

# Wheels that the Debian package contains, since Debian has no package of them.
VENDORED := build/vendored
VENDORED_READY := $(VENDORED)/.ready

# Where make install puts vbackup and everything it imports, separate from the system's Python packages.
LIBRARY = $(PREFIX)/lib/vbackup
COMMAND = $(PREFIX)/bin/vbackup
MAN_DIRECTORY = $(PREFIX)/share/man
# Where the shells look for completion scripts by themselves.
COMPLETIONS = bash-completion/completions/vbackup zsh/site-functions/_vbackup fish/vendor_completions.d/vbackup.fish
# Examples of the user's scripts.
EXAMPLES = $(PREFIX)/share/vbackup/examples
# Cockpit looks for pages here, and in /usr/local/share/cockpit.
COCKPIT = $(PREFIX)/share/cockpit
# Extras of setup.cfg to install too: EXTRAS=blake3.
EXTRAS =
# Units of systemd, for the system and for users; install enables none.
UNITS := $(patsubst hooks/systemd/%,system/%,$(wildcard hooks/systemd/*.*)) \
    $(patsubst hooks/systemd/%,%,$(wildcard hooks/systemd/user/*.*))
UNIT_DIRECTORY = $(PREFIX)/lib/systemd
# What installs Debian packages; "true" where another way has installed them.
INSTALL_PACKAGES = .ci/install-packages
# What prints the requirements that come from PyPI, and what compiles the modules; packages set both to "true".
MISSING = $(PYTHON) -I .ci/missing-requirements $(EXTRAS)
COMPILE = $(PYTHON) -I -m compileall -q
STAGE := build/install
STAGE_READY := $(STAGE)/.ready
STAGED_PAGES := $(patsubst build/man/%,$(STAGE)/man/%,$(MAN_PAGES))
# The section of a man page: the suffix of its name.
section = $(patsubst .%,%,$(suffix $(1)))

# The tests end when make is killed. "python -m pytest" instead of the script pytest, because the first line of a script
# cannot name an interpreter with a long path or a space in it.
PYTEST = setpriv --pdeathsig TERM $(BIN)/python -m pytest --numprocesses=$(JOBS) --no-loadscope-reorder --durations=10

# The user's Python settings must not change what is tested.
unexport PYTHONHOME PYTHONPATH PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo check check-all check-engines check-stacks bench soak lint man man-lint install install-cockpit uninstall \
    deb deb-packages rpm wheel clean packages FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables: PYTHON=$(PYTHON) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) EXTRAS=$(EXTRAS) STACKS=$(STACKS)'

demo: $(VENV_READY) ## Back up and restore a small real virtual machine
	$(BIN)/python -m tests.demo

check: lint man-lint $(ENGINES_READY) $(MONITORS_READY) $(VENDORED_READY) ## Lint, type-check, build the man pages and run all tests; .ci/run runs this
	$(PYTEST) $(SUITES)

check-all: lint man-lint $(ENGINES_READY) $(MONITORS_READY) $(VENDORED_READY) ## The same with the long tests, and coverage of lines and branches
	$(PYTEST) --long --cov --cov-report=term $(SUITES)

check-engines: $(VENV_READY) $(ENGINES_READY) ## As root: run Bacula's three daemons, restic and Amanda on vbackup's streams
	$(BIN)/python -m pytest --long $(ENGINE_TESTS)

bench: $(VENV_READY) ## As root: measure vbackup beside its peers (half an hour), and write tests/bench/results
	.ci/install-packages bench-packages
	$(BIN)/python -m tests.bench --rounds $(ROUNDS) --readme README.md $(BENCH)

soak: $(VENV_READY) ## Run STEPS steps of the random test with seed SEED
	VBACKUP_SOAK_STEPS=$(STEPS) VBACKUP_SOAK_SEED=$(SEED) $(BIN)/python -m pytest tests/end_to_end/test_soak.py

check-stacks: ## As root: run the tests on the QEMU, libvirt and Python of other Debians
	STACKS='$(STACKS)' .ci/check-stacks

lint: $(VENV_READY) ## Run only the linters and the type checker
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy hooks/qemu
	$(BIN)/mypy --scripts-are-modules $(wildcard hooks/examples/*)
	$(BIN)/lint-imports

man: $(MAN_PAGES) ## Build the man pages in build/man

man-lint: $(MAN_PAGES)
	mandoc -T lint -W warning $(MAN_PAGES)

# docutils writes an empty line under each heading and a font that terminals do not have; mandoc warns of both.
define man_page
	@mkdir -p $(@D)
	$(1) -m docutils --writer=manpage --halt=warning $< $@
	@sed -i -e '/^\.S[HS] /{:a;n;/^\.S[HS] /ba;/^\.sp$$/d;}' -e '/^\.ft [CP]$$/d' $@
endef

build/man/%: man/%.rst $(VENV_READY)
	$(call man_page,$(BIN)/python)

$(STAGE)/man/%: man/%.rst $(STAGE_READY)
	$(call man_page,$(PYTHON))

# What is installed is made in STAGE first: until all of it is there, an earlier installation stays as it is.
# Only what this Python lacks comes from PyPI; the environment is there for its pip.
$(STAGE_READY): FORCE
	@$(INSTALL_PACKAGES) run-time-packages
	rm -rf $(STAGE)
	mkdir -p $(STAGE)/lib
	cp -RL vbackup $(STAGE)/lib
	find $(STAGE)/lib -name __pycache__ -type d -prune -exec rm -rf {} +
	missing=$$($(MISSING)) && \
	    { [ -z "$$missing" ] || { $(PYTHON) -m venv $(STAGE)/venv && \
	    $(STAGE)/venv/bin/pip install --quiet --target $(STAGE)/lib $$missing; }; }
	rm -rf $(STAGE)/lib/bin
	$(COMPILE) -s $(STAGE)/lib -p '$(LIBRARY)' $(STAGE)/lib
	mkdir -p $(foreach script,$(COMPLETIONS),$(STAGE)/share/$(dir $(script)))
	$(foreach script,$(COMPLETIONS),$(PYTHON) -IB -c 'import sys; sys.path.insert(0, "$(STAGE)/lib"); \
	    from vbackup.cli import command; command()' completion $(firstword $(subst -, ,$(subst /, ,$(script)))) \
	    > $(STAGE)/share/$(script) &&) true
	@touch $@

# All modes are set: they must not depend on the umask of who installs.
install: $(STAGE_READY) $(STAGED_PAGES) ## Install the command, its completion and the man pages below DESTDIR/PREFIX
	printf '%s\n' '#!$(PYTHON) -I' 'import sys' 'sys.path.insert(0, "$(LIBRARY)")' \
	    'from vbackup.cli import command' 'command()' > $(STAGE)/vbackup
	install -d -m 755 '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/lib' '$(DESTDIR)$(EXAMPLES)' \
	    $(foreach page,$(STAGED_PAGES),'$(DESTDIR)$(MAN_DIRECTORY)/man$(call section,$(page))') \
	    $(foreach script,$(COMPLETIONS),'$(DESTDIR)$(PREFIX)/share/$(dir $(script))')
	rm -rf '$(DESTDIR)$(LIBRARY).new'
	cp -R $(STAGE)/lib '$(DESTDIR)$(LIBRARY).new'
	chmod -R u=rwX,go=rX '$(DESTDIR)$(LIBRARY).new'
	rm -rf '$(DESTDIR)$(LIBRARY)'
	mv '$(DESTDIR)$(LIBRARY).new' '$(DESTDIR)$(LIBRARY)'
	install -m 755 $(STAGE)/vbackup '$(DESTDIR)$(COMMAND)'
	$(foreach script,$(COMPLETIONS),install -m 644 $(STAGE)/share/$(script) '$(DESTDIR)$(PREFIX)/share/$(script)' &&) true
	install -m 755 hooks/examples/* '$(DESTDIR)$(EXAMPLES)'
	for page in $(STAGED_PAGES); do install -m 644 $$page '$(DESTDIR)$(MAN_DIRECTORY)'/man$${page##*.}; done
	for unit in $(UNITS); do to='$(DESTDIR)$(UNIT_DIRECTORY)'/$$unit && install -d -m 755 "$${to%/*}" && \
	    install -m 644 hooks/systemd/$${unit#system/} "$$to" && \
	    sed -i 's:/usr/bin/vbackup:$(COMMAND):' "$$to" || exit; done

# Cockpit's bridge sends a compressed file as it is.
install-cockpit: ## Install the page for Cockpit below DESTDIR/PREFIX
	install -d -m 755 '$(DESTDIR)$(COCKPIT)/vbackup'
	install -m 644 $(addprefix integrations/cockpit/,manifest.json *.html *.js *.py style.css) '$(DESTDIR)$(COCKPIT)/vbackup'
	gzip -9nc integrations/cockpit/patternfly.css > '$(DESTDIR)$(COCKPIT)/vbackup/patternfly.css.gz'
	chmod 644 '$(DESTDIR)$(COCKPIT)/vbackup/patternfly.css.gz'

uninstall: ## Remove what install and install-cockpit have installed
	rm -rf '$(DESTDIR)$(LIBRARY)' '$(DESTDIR)$(EXAMPLES)' '$(DESTDIR)$(COCKPIT)/vbackup'
	rm -f '$(DESTDIR)$(COMMAND)' $(foreach script,$(COMPLETIONS),'$(DESTDIR)$(PREFIX)/share/$(script)') \
	    $(foreach page,$(MAN_PAGES),'$(DESTDIR)$(MAN_DIRECTORY)/man$(call section,$(page))/$(notdir $(page))') \
	    $(foreach unit,$(UNITS),'$(DESTDIR)$(UNIT_DIRECTORY)/$(unit)')

deb: | deb-packages $(VENDORED_READY) ## Build the Debian packages in build/deb
	packaging/build-deb build/deb $(VENDORED)

rpm: ## Build the RPM packages in build/rpm, with rpmbuild
	packaging/build-rpm build/rpm

wheel: $(VENV_READY) ## Build the wheel for pip and pipx in build/wheel
	packaging/build-wheel build/wheel $(BIN)/python

clean: ## Remove everything that make has created here, with the virtual environment
	rm -rf $(VENV) build htmlcov .coverage *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
	    .hypothesis
	find vbackup tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Not made where they cannot be had: the next make tries again.
$(ENGINES_READY): .ci/engine-packages .ci/unpack-packages
	.ci/unpack-packages $(ENGINES) engine-packages

$(MONITORS_READY): .ci/monitor-packages .ci/unpack-packages
	.ci/unpack-packages $(MONITORS) monitor-packages

FORCE:

deb-packages:
	@.ci/install-packages deb-packages

# Exactly the files whose digests are listed.
$(VENDORED_READY): packaging/vendored.txt
	rm -rf $(VENDORED)
	$(PYTHON) -m venv $(VENDORED)/venv
	$(VENDORED)/venv/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	    --require-hashes --requirement $< --dest $(VENDORED)
	rm -rf $(VENDORED)/venv
	@touch $@

# Checking the system packages takes no time, and does not make other targets out of date.
packages:
	@.ci/install-packages

$(VENV_READY): setup.cfg | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@
