"""``vbackup notify``: list who is told what becomes of the backups, send a test message, or tell what is overdue."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.api import (
    NotifierState,
    notifiers,
    read_config,
    send_test_notices,
    status,
    tell_overdue,
)
from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import NoticeError, Status, UsageError, error_document

_NONE = "-"


def run(options: argparse.Namespace, context: Context) -> int:
    """Run the command within the command."""
    return {"list": _list, "test": _test, "overdue": _overdue}[options.notify_command](options, context)


def _list(options: argparse.Namespace, context: Context) -> int:
    """Print the notifiers; the exit status is 0 whatever was told."""
    found = notifiers(read_config(options.config), options.words)
    if context.as_json:
        context.print_document("vbackup.notify/1", {"action": "list", "notifiers": [_document(one) for one in found]})
        return Status.DONE
    if not found:
        print("No notifiers: a [notify.NAME] in the configuration makes one.")
        return Status.DONE
    output.table(("NOTIFIER", "BY", "WHEN", "JOBS", "LAST TOLD", "LAST MESSAGE"), [_row(one) for one in found])
    for one in found:
        if one.problem is not None:
            print(output.plain(one.problem))
    return Status.DONE


def _row(one: NotifierState) -> tuple[str, ...]:
    last = _NONE if one.last is None else output.local_minute(one.last)
    when = "every run" if one.kind.value == "ping" else ", ".join(each.value for each in one.when)
    return (one.name, one.kind.value, when, ", ".join(one.jobs) or _NONE, last, one.title or _NONE)


def _document(one: NotifierState, **more: Any) -> dict[str, Any]:
    return {
        "name": one.name,
        "kind": one.kind.value,
        "when": [each.value for each in one.when],
        "jobs": list(one.jobs),
        "last": None if one.last is None else one.last.isoformat(),
        "title": one.title,
        "problem": one.problem,
        **more,
    }


def _test(options: argparse.Namespace, context: Context) -> int:
    """Send the messages; the exit status is that of the error if none was sent, and 3 if only some were not."""
    config = read_config(options.config)
    if not config.notifiers:
        raise UsageError("The configuration has no notifier: a [notify.NAME] makes one.")
    results = send_test_notices(config, options.words)
    if context.as_json:
        states = notifiers(config, options.words)
        document = [_document(one, sent=results[one.name] is None, error=_error(results[one.name])) for one in states]
        context.print_document("vbackup.notify/1", {"action": "test", "notifiers": document})
    else:
        for name, error in results.items():
            if error is None and not context.is_quiet:
                print(output.plain(f"{name}: a test message was sent."))
    errors = [error for error in results.values() if error is not None]
    with context.reporting(steps=False) as reporter:
        for error in errors:
            reporter.warning(str(error))
    if not errors:
        return Status.DONE
    return Status.FAILED if len(errors) == len(results) else Status.SOME_FAILED


def _error(error: NoticeError | None) -> dict[str, object] | None:
    return None if error is None else error_document(error)


def _overdue(options: argparse.Namespace, context: Context) -> int:
    """Tell what is overdue; the exit status is 1 if somebody could not be told."""
    config = read_config(options.config)
    overview = status(config=config)
    with context.reporting(is_log=False) as reporter:
        unsent = tell_overdue(overview, config, reporter=reporter)
    if context.as_json:
        document = [_document(one) for one in notifiers(config)]
        context.print_document("vbackup.notify/1", {"action": "overdue", "notifiers": document})
    return Status.FAILED if unsent else Status.DONE
