"""``vbackup bitmap``: list the dirty bitmaps of disks, and change them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from vbackup.cli import output, qemu
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError
from vbackup.operations import bitmap
from vbackup.qapi.actions import BlockDirtyBitmap
from vbackup.repository.history import History
from vbackup.repository.repository import Repository


def run(options: argparse.Namespace, context: Context) -> int:
    """List the bitmaps, or change some."""
    return _list(options, context) if options.bitmap_command == "list" else _change(options, context)


def _list(options: argparse.Namespace, context: Context) -> int:
    """Print the bitmaps."""
    with context.reporting() as reporter, qemu.opened(options, context, reporter) as attached:
        found = bitmap.listing(attached, disks=options.disk)
    if context.as_json:
        context.print_document("vbackup.bitmaps/1", {"bitmaps": [_document(one) for one in found]})
        return Status.DONE
    if not found:
        print("There are no bitmaps.")
        return Status.DONE
    output.table(
        ("DISK", "NODE", "STATE", "DIRTY", "OWNER", "BITMAP"),
        [
            (
                one.dev,
                one.layer.node_name,
                one.bitmap.state,
                output.size(one.bitmap.dirty_bytes),
                f"vbackup, repository {one.repository_id}" if one.repository_id else one.owner.value,
                one.bitmap.name,
            )
            for one in found
        ],
    )
    return Status.DONE


def _document(one: bitmap.Listed) -> dict[str, Any]:
    return {
        "dev": one.dev,
        "node_name": one.layer.node_name,
        "layer": one.depth,
        "file": one.layer.filename,
        "name": one.bitmap.name,
        "owner": one.owner.value,
        "repository": one.repository_id,
        "checkpoint": one.checkpoint,
        "state": one.bitmap.state,
        "recording": one.bitmap.recording,
        "busy": one.bitmap.busy,
        "persistent": one.bitmap.persistent,
        "inconsistent": one.bitmap.inconsistent,
        "granularity_bytes": one.bitmap.granularity_bytes,
        "dirty_bytes": one.bitmap.dirty_bytes,
    }


def _change(options: argparse.Namespace, context: Context) -> int:
    """Change the bitmap on all disks concerned."""
    made = bitmap.Change(options.bitmap_command)
    if not options.name:
        raise UsageError("The bitmap's name is empty.")
    is_add, is_merge = made is bitmap.Change.ADD, made is bitmap.Change.MERGE
    request = bitmap.ChangeRequest(
        change=made,
        name=options.name,
        disks=tuple(options.disk),
        node_name=options.node,
        sources=tuple(map(_source, options.source)) if is_merge else (),
        granularity_bytes=options.granularity if is_add else None,
        persistent=is_add and options.persistent,
        disabled=is_add and options.disabled,
        force=made is bitmap.Change.REMOVE and options.force,
    )
    with context.reporting() as reporter, qemu.opened(options, context, reporter) as attached:
        changed = bitmap.change(
            request,
            attached=attached,
            history=_history(context, attached.uuid),
            reporter=reporter,
            stop=context.stop,
        )
    if context.as_json:
        places = [{"dev": one.dev, "node_name": one.node_name} for one in changed]
        context.print_document("vbackup.bitmap/1", {"change": made.value, "name": options.name, "disks": places})
    else:
        for one in changed:
            print(output.plain(f"Disk {one.dev}: {_DONE[made.value]} bitmap {one.name} on {one.node_name}."))
    return Status.DONE


_DONE = {
    "add": "added",
    "remove": "removed",
    "clear": "cleared",
    "enable": "enabled",
    "disable": "disabled",
    "merge": "merged into",
}


def _source(text: str) -> Any:
    node, colon, name = text.partition(":")
    return BlockDirtyBitmap(node=node, name=name) if colon else text


def _history(context: Context, uuid: str | None) -> Callable[[str], History | None]:
    """The domain's backups where the repository that is asked for is the one at hand."""

    def history(repository_id: str) -> History | None:
        if uuid is None or not context.has_repository:
            return None
        repository = Repository.open(context.repository_path())
        return repository.catalogue(uuid).history if repository.id == repository_id else None

    return history
