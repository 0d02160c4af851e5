"""``vbackup tracker``: list the trackers of pull sessions, or forget one."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.api import Tracker, documents
from vbackup.cli import output
from vbackup.cli.arguments import domain_of, optional_domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status


def run(options: argparse.Namespace, context: Context) -> int:
    """List trackers, or forget one, and print the result."""
    if options.action == "list":
        _list(options, context)
    else:
        _forget(options, context)
    return Status.DONE


def _list(options: argparse.Namespace, context: Context) -> None:
    with context.connect_to_libvirt() as vb, context.reporting(steps=False) as reporter:
        trackers = vb.trackers(optional_domain_of(options), reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.trackers/1", {"trackers": [_document(one) for one in trackers]})
    elif not trackers:
        print("No trackers.")
    else:
        output.table(
            ("DOMAIN", "TRACKER", "CHECKPOINTS", "BASE"),
            [
                (one.domain_name, one.name, str(len(one.checkpoints)), one.base.id if one.base is not None else "")
                for one in trackers
            ],
        )


def _document(one: Tracker) -> dict[str, Any]:
    base = one.base
    return {
        "name": one.name,
        "domain": {"name": one.domain_name, "uuid": one.domain_uuid},
        "base": None if base is None else base.id,
        "base_time": None if base is None else documents.time(base.time),
        "checkpoints": [checkpoint.id for checkpoint in one.checkpoints],
    }


def _forget(options: argparse.Namespace, context: Context) -> None:
    domain = domain_of(options)
    with context.connect_to_libvirt() as vb, context.reporting(domain) as reporter:
        forgotten = vb.forget_tracker(domain, options.tracker, exclusive=options.exclusive, reporter=reporter)
        left = vb.trackers(forgotten.domain_uuid) if context.as_json else []
    if context.as_json:
        context.print_document(
            "vbackup.trackers/1", {"forgotten": forgotten.name, "trackers": [_document(one) for one in left]}
        )
    elif not context.is_quiet:
        print(
            output.plain(
                f"Tracker {forgotten.name} of domain {forgotten.domain_name} is forgotten; its next session is full."
            )
        )
