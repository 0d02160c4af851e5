"""The user's scripts of a command, as its options and its environment name them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vbackup.api import SCRIPT_DIRECTORY, SCRIPT_TIMEOUT_S, DomainScripts, ScriptSettings
from vbackup.cli.context import Context
from vbackup.errors import UsageError, VbackupError
from vbackup.report import Reporter
from vbackup.stop import Stop


def settings_of(options: argparse.Namespace) -> ScriptSettings:
    """Return what add_scripts' arguments ask for."""
    if options.no_scripts:
        return ScriptSettings()
    timeout_s = SCRIPT_TIMEOUT_S if options.script_timeout is None else options.script_timeout
    from_environment = os.environ.get("VBACKUP_SCRIPTS")
    named = options.scripts or (Path(from_environment) if from_environment else None)
    return ScriptSettings(named or SCRIPT_DIRECTORY, is_wanted=named is not None, timeout_s=timeout_s)


def for_several(options: argparse.Namespace, reporter: Reporter) -> ScriptSettings:
    """Return what the arguments ask for, for several domains; what is to be said of the scripts for all is said once.

    Raises UsageError, UnsafeScriptError, StorageError, before there is anything of the first domain.
    """
    if options.dry_run:
        return ScriptSettings()
    settings = settings_of(options)
    common = settings.find().warnings
    for warning in common:
        reporter.warning(warning)
    return replace(settings, reported=common)


@contextmanager
def beginning(options: argparse.Namespace, domain: str, context: Context) -> Iterator[None]:
    """Run the on-failure scripts for all domains if the block fails: there is no domain yet that has its own.

    Not for a usage error, which is for whoever has just typed it. ``domain``: as the user names it, or empty. Raises
    UsageError, UnsafeScriptError and StorageError before the block, if the scripts cannot be found.
    """
    settings = ScriptSettings() if options.dry_run else settings_of(options)
    settings.find()
    try:
        yield
    except UsageError:
        raise
    except VbackupError:
        with context.reporting(domain or None) as reporter:
            own = of_domain(options, domain, work="backup", reporter=reporter, stop=context.stop)
            own.know(repository=os.fspath(context.repository_path().absolute()))
            with own.attended():
                raise


def of_domain(options: argparse.Namespace, domain: str, *, work: str, reporter: Reporter, stop: Stop) -> DomainScripts:
    """Return the scripts for the one domain of a command. Raises what DomainScripts raises."""
    return DomainScripts(settings_of(options), reporter=reporter, stop=stop, work=work, domain=domain)
