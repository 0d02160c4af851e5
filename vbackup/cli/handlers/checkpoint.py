"""``vbackup checkpoint``: list or delete checkpoints of a tracker of pull sessions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vbackup.api import Tracker, documents
from vbackup.cli import output
from vbackup.cli.arguments import domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status


def run(options: argparse.Namespace, context: Context) -> int:
    """List checkpoints, or delete some, and print the result."""
    if options.action == "list":
        _list(options, context)
    else:
        _delete(options, context)
    return Status.DONE


def _list(options: argparse.Namespace, context: Context) -> None:
    wanted = domain_of(options)
    with context.connect_to_libvirt() as vb, context.reporting(steps=False) as reporter:
        found = vb.trackers(wanted, reporter=reporter if options.tracker is None else None)
        trackers = [one for one in found if options.tracker in (None, one.name)]
        if options.tracker is not None and not trackers:
            trackers = [vb.tracker(wanted, options.tracker)]
    if context.as_json:
        context.print_document("vbackup.checkpoints/1", {"checkpoints": _documents(trackers)})
    elif not any(one.checkpoints for one in trackers):
        print("No checkpoints.")
    else:
        output.table(
            ("CHECKPOINT", "TRACKER", "TIME", "LEVEL", "DISKS"),
            [
                (
                    one.id,
                    tracker.name,
                    output.local_time(one.time),
                    one.level.value,
                    " ".join(disk.dev for disk in one.disks.values() if disk.bitmap is not None),
                )
                for tracker in trackers
                for one in tracker.checkpoints
            ],
        )


def _documents(trackers: Sequence[Tracker]) -> list[dict[str, Any]]:
    return [
        {
            "id": one.id,
            "tracker": tracker.name,
            "domain": {"name": tracker.domain_name, "uuid": tracker.domain_uuid},
            "time": documents.time(one.time),
            "session": one.session,
            "level": one.level.value,
            "is_base": one is tracker.base,
            "disks": [
                {"dev": disk.dev, "level": disk.level.value, "size_bytes": disk.size_bytes, "bitmap": disk.bitmap}
                for disk in one.disks.values()
            ],
        }
        for tracker in trackers
        for one in tracker.checkpoints
    ]


def _delete(options: argparse.Namespace, context: Context) -> None:
    domain = domain_of(options)
    with context.connect_to_libvirt() as vb, context.reporting(domain) as reporter:
        left = vb.delete_checkpoints(
            domain, options.tracker, options.checkpoints, exclusive=options.exclusive, reporter=reporter
        )
    if context.as_json:
        context.print_document("vbackup.checkpoints/1", {"checkpoints": _documents([left])})
    elif not context.is_quiet:
        base = f"the next session starts from {left.base.id}" if left.base is not None else "the next session is full"
        print(output.plain(f"Deleted {', '.join(options.checkpoints)} of tracker {left.name}; {base}."))
