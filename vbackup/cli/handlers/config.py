"""``vbackup config``: check and show the configuration, make a first one, or get one back from a repository."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vbackup.api import (
    CheckedConfig,
    CheckedJob,
    ShownKey,
    check_config,
    config_schema,
    config_text,
    documents,
    effective_config,
    kept_config,
    kept_configs,
    propose_config,
    read_config,
    write_config,
)
from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import ConfigError, Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Run the command within the command."""
    run_one = {"check": _check, "show": _show, "schema": _schema, "init": _init, "recover": _recover}
    return run_one[options.config_command](options, context)


def _check(options: argparse.Namespace, context: Context) -> int:
    """Print all that is wrong; the exit status is 2 if the configuration has a fault."""
    checked = check_config(options.config, is_offline=options.offline, stop=context.stop)
    if context.as_json:
        context.print_document("vbackup.configcheck/1", _check_document(checked))
    elif checked.faults or not context.is_quiet:
        _print_checked(checked)
    return Status.USAGE if checked.faults else Status.DONE


def _check_document(checked: CheckedConfig) -> dict[str, Any]:
    return {
        "files": list(map(str, checked.paths)),
        "valid": not checked.faults,
        "offline": checked.is_offline,
        "faults": [_fault_document(fault) for fault in checked.faults],
        "warnings": [_fault_document(warning) for warning in checked.warnings],
        "jobs": [
            {
                "name": job.name,
                "repository": job.repository,
                "domains": [{"name": one.name, "host": one.host} for one in job.domains if one.left_out is None],
                "left_out": [
                    {"name": one.name, "host": one.host, "reason": one.left_out}
                    for one in job.domains
                    if one.left_out is not None
                ],
                "next": None if job.next is None else documents.time(job.next),
            }
            for job in checked.jobs
        ],
    }


def _fault_document(fault: ConfigError) -> dict[str, Any]:
    return {"path": fault.path, "line": fault.line, "message": fault.fault}


def _print_checked(checked: CheckedConfig) -> None:
    for fault in checked.faults:
        print(output.plain(str(fault)))
    for warning in checked.warnings:
        place = f"{warning.path}:{warning.line}" if warning.line else warning.path
        print(output.plain(f"{place}: warning: {warning.fault}"))
    for job in checked.jobs if not checked.faults else ():
        print(output.plain(_job_sentence(job)))
    if checked.faults:
        print(_verdict(len(checked.refused), len(checked.faults) - len(checked.refused)))
    else:
        print("The configuration is valid." if checked.is_offline else "The configuration is valid and can be used.")


def _verdict(refused: int, unmet: int) -> str:
    """Return what the faults mean: ``refused`` of the configuration, and ``unmet`` of what it names."""
    more = " more" if refused else ""
    where = f"{unmet}{more} place{'s' if unmet > 1 else ''} where runs would fail as things are now"
    if not refused:
        return f"{where}; the configuration itself is valid."
    said = f"{refused} fault{'s' if refused > 1 else ''}; nothing is run with this configuration."
    return f"{said} {where}." if unmet else said


def _job_sentence(job: CheckedJob) -> str:
    names = [one.name for one in job.domains if one.left_out is None]
    when = "when it is called" if job.next is None else f"next on {output.local_minute(job.next)}"
    domains = (
        f"{len(names)} domain{'s' if len(names) != 1 else ''} ({', '.join(names[:10])}{', ...' if names[10:] else ''})"
    )
    return f"Job {job.name}: {domains} to {job.repository}, {when}."


def _show(options: argparse.Namespace, context: Context) -> int:
    config = read_config(options.config)
    shown = effective_config(config)
    if context.as_json:
        context.print_document(
            "vbackup.config/1",
            {"files": list(map(str, config.paths)), "keys": [_key_document(one) for one in shown]},
        )
    else:
        print(config_text(shown, with_origin=options.origin), end="")
    return Status.DONE


def _key_document(one: ShownKey) -> dict[str, Any]:
    return {
        "table": list(one.table),
        "name": one.name,
        "value": one.value,
        "default": one.default,
        "path": None if one.place is None else str(one.place.path),
        "line": None if one.place is None else one.place.line,
    }


def _schema(_options: argparse.Namespace, _context: Context) -> int:
    print(json.dumps(config_schema(), indent=2, ensure_ascii=False))
    return Status.DONE


def _init(options: argparse.Namespace, context: Context) -> int:
    _refuse_json(context)
    repository = context.repository_path() if context.has_repository else None
    _give(options, propose_config(context.uris, repository=repository), context)
    return Status.DONE


def _recover(options: argparse.Namespace, context: Context) -> int:
    _refuse_json(context)
    if not options.list:
        _give(options, kept_config(context.repository_path(), options.host), context)
        return Status.DONE
    found = kept_configs(context.repository_path())
    rows = [(one.host, "-" if one.time is None else output.local_minute(one.time), one.path.name) for one in found]
    if rows:
        output.table(("HOST", "WRITTEN", "FILE"), rows)
    elif not context.is_quiet:
        print("No run of 'vbackup run' has kept a configuration in this repository.")
    return Status.DONE


def _refuse_json(context: Context) -> None:
    if context.as_json:
        raise UsageError("This prints TOML: leave out --json. 'vbackup config show --json' prints JSON.")


def _give(options: argparse.Namespace, text: str, context: Context) -> None:
    """Print the configuration, or write it to a file, which must be new."""
    if options.output in (None, Path("-")):
        sys.stdout.write("\n".join(map(output.plain, text.split("\n"))))
        return
    write_config(options.output, text)
    if not context.is_quiet:
        print(output.plain(f"Wrote {options.output}. Look through it, then run 'vbackup config check'."))
