"""``vbackup bitmap``: list the dirty bitmaps of disks, or change one on each of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from vbackup.cli import output, qemu
from vbackup.cli.context import Context
from vbackup.errors import Status, StorageError, UsageError
from vbackup.operations import bitmap
from vbackup.qapi.actions import BlockDirtyBitmap
from vbackup.repository.history import History
from vbackup.repository.repository import Repository
from vbackup.sessions import store
from vbackup.sessions.store import Store

#: What the result says of each change.
_DONE = {
    bitmap.Change.ADD: "added",
    bitmap.Change.REMOVE: "removed",
    bitmap.Change.CLEAR: "cleared",
    bitmap.Change.ENABLE: "enabled",
    bitmap.Change.DISABLE: "disabled",
    bitmap.Change.MERGE: "merged into",
}


def run(options: argparse.Namespace, context: Context) -> int:
    """List the bitmaps, or change some, and print the result."""
    if options.bitmap_command == "list":
        _list(options, context)
    else:
        _change(bitmap.Change(options.bitmap_command), options, context=context)
    return Status.DONE


def _list(options: argparse.Namespace, context: Context) -> None:
    with context.reporting() as reporter, qemu.attach(options, context, reporter=reporter) as attached:
        bitmaps = bitmap.listing(attached, disks=options.disk, trackers=_trackers(attached.uuid))
    if context.as_json:
        context.print_document("vbackup.bitmaps/1", {"bitmaps": [_document(listed) for listed in bitmaps]})
    elif bitmaps:
        _print(bitmaps)
    else:
        print("No bitmaps.")


def _document(listed: bitmap.Listed) -> dict[str, Any]:
    return {
        "dev": listed.dev,
        "node_name": listed.layer.node_name,
        "layer": listed.depth,
        "file": listed.layer.filename,
        "name": listed.bitmap.name,
        "owner": listed.owner.value,
        "repository": listed.repository_id,
        "checkpoint": listed.checkpoint,
        "tracker": listed.tracker,
        "state": listed.bitmap.state,
        "recording": listed.bitmap.recording,
        "busy": listed.bitmap.busy,
        "persistent": listed.bitmap.persistent,
        "inconsistent": listed.bitmap.inconsistent,
        "granularity_bytes": listed.bitmap.granularity_bytes,
        "dirty_bytes": listed.bitmap.dirty_bytes,
    }


def _print(bitmaps: Sequence[bitmap.Listed]) -> None:
    output.table(
        ("DISK", "NODE", "STATE", "DIRTY", "OWNER", "BITMAP"),
        [
            (
                listed.dev,
                listed.layer.node_name,
                listed.bitmap.state,
                output.size(listed.bitmap.dirty_bytes),
                _owner(listed),
                listed.bitmap.name,
            )
            for listed in bitmaps
        ],
    )


def _owner(listed: bitmap.Listed) -> str:
    of = listed.repository_id or listed.tracker
    return f"{listed.owner.value} {of}" if of else listed.owner.value


def _trackers(uuid: str | None) -> list[str]:
    """Return the names of the domain's trackers, as far as they can be read; the list goes without them."""
    if uuid is None:
        return []
    with suppress(StorageError):
        return [one.name for one in Store(store.default_directory()).trackers(uuid)]
    return []


def _change(change: bitmap.Change, options: argparse.Namespace, *, context: Context) -> None:
    if not options.name:
        raise UsageError("The bitmap name is empty.")
    is_add, is_merge = change is bitmap.Change.ADD, change is bitmap.Change.MERGE
    request = bitmap.ChangeRequest(
        change=change,
        name=options.name,
        disks=tuple(options.disk),
        node_name=options.node,
        sources=tuple(map(_source, options.source)) if is_merge else (),
        granularity_bytes=options.granularity if is_add else None,
        persistent=is_add and options.persistent,
        disabled=is_add and options.disabled,
        force=change is bitmap.Change.REMOVE and options.force,
    )
    with context.reporting() as reporter, qemu.attach(options, context, reporter=reporter) as attached:
        changed = bitmap.change(
            request,
            attached=attached,
            history=_history(context, attached.uuid),
            reporter=reporter,
            stop=context.stop,
        )
    if context.as_json:
        disks = [{"dev": place.dev, "node_name": place.node_name} for place in changed]
        context.print_document("vbackup.bitmap/1", {"change": change.value, "name": options.name, "disks": disks})
    elif not context.is_quiet:
        for place in changed:
            print(output.plain(f"Disk {place.dev}: {_DONE[change]} bitmap {place.name} on {place.node_name}."))


def _source(text: str) -> Any:
    node, colon, name = text.partition(":")
    return BlockDirtyBitmap(node=node, name=name) if colon else text


def _history(context: Context, uuid: str | None) -> Callable[[str], History | None]:
    """Return a function from a repository id to the domain's history there, None if it is not the given repository."""

    def history(repository_id: str) -> History | None:
        if uuid is None or not context.has_repository:
            return None
        repository = Repository.open(context.repository_path())
        return repository.catalogue(uuid).history if repository.id == repository_id else None

    return history
