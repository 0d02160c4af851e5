"""``vbackup bitmap``: list the dirty bitmaps of disks, or change one on each of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vbackup.api import BitmapChange, BitmapRequest, BlockDirtyBitmap, ListedBitmap
from vbackup.cli import output, qemu
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError

#: What the result says of each change.
_DONE = {
    BitmapChange.ADD: "added",
    BitmapChange.REMOVE: "removed",
    BitmapChange.CLEAR: "cleared",
    BitmapChange.ENABLE: "enabled",
    BitmapChange.DISABLE: "disabled",
    BitmapChange.MERGE: "merged into",
}


def run(options: argparse.Namespace, context: Context) -> int:
    """List the bitmaps, or change some, and print the result."""
    if options.bitmap_command == "list":
        _list(options, context)
    else:
        _change(BitmapChange(options.bitmap_command), options, context=context)
    return Status.DONE


def _list(options: argparse.Namespace, context: Context) -> None:
    with (
        context.connect_to_libvirt() as vb,
        context.reporting() as reporter,
        qemu.attach(options, vb, reporter=reporter) as attached,
    ):
        bitmaps = vb.bitmaps(attached, disks=options.disk)
    if context.as_json:
        context.print_document("vbackup.bitmaps/1", {"bitmaps": [_document(listed) for listed in bitmaps]})
    elif bitmaps:
        _print(bitmaps)
    else:
        print("No bitmaps.")


def _document(listed: ListedBitmap) -> dict[str, Any]:
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


def _print(bitmaps: Sequence[ListedBitmap]) -> None:
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


def _owner(listed: ListedBitmap) -> str:
    of = listed.repository_id or listed.tracker
    return f"{listed.owner.value} {of}" if of else listed.owner.value


def _change(change: BitmapChange, options: argparse.Namespace, *, context: Context) -> None:
    if not options.name:
        raise UsageError("The bitmap name is empty.")
    is_add, is_merge = change is BitmapChange.ADD, change is BitmapChange.MERGE
    request = BitmapRequest(
        change=change,
        name=options.name,
        disks=tuple(options.disk),
        node_name=options.node,
        sources=tuple(map(_source, options.source)) if is_merge else (),
        granularity_bytes=options.granularity if is_add else None,
        persistent=is_add and options.persistent,
        disabled=is_add and options.disabled,
        force=change is BitmapChange.REMOVE and options.force,
    )
    with (
        context.connect_to_libvirt() as vb,
        context.reporting() as reporter,
        qemu.attach(options, vb, reporter=reporter) as attached,
    ):
        changed = vb.change_bitmap(attached, request, reporter=reporter)
    if context.as_json:
        disks = [{"dev": place.dev, "node_name": place.node_name} for place in changed]
        context.print_document("vbackup.bitmap/1", {"change": change.value, "name": options.name, "disks": disks})
    elif not context.is_quiet:
        for place in changed:
            print(output.plain(f"Disk {place.dev}: {_DONE[change]} bitmap {place.name} on {place.node_name}."))


def _source(text: str) -> Any:
    node, colon, name = text.partition(":")
    return BlockDirtyBitmap(node=node, name=name) if colon else text
