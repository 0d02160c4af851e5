"""``vbackup bitmap``: list the dirty bitmaps of disks, and change them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vbackup.cli import output, qemu
from vbackup.cli.arguments import add_common, add_qemu, granularity_bytes
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError

if TYPE_CHECKING:
    from vbackup.operations.bitmap import Listed
    from vbackup.repository.history import History

_CHANGES = {
    "add": "make an empty bitmap that records from now on",
    "remove": "remove a bitmap",
    "clear": "make a bitmap empty",
    "enable": "have a bitmap record",
    "disable": "have a bitmap record no more",
    "merge": "add what is dirty in other bitmaps to a bitmap",
}


def add(commands: Any) -> None:
    """The command's arguments; each kind of work is a command of its own."""
    parser = commands.add_parser(
        "bitmap",
        description="List the dirty bitmaps of disks, whose they are, and change them.",
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="bitmap_command", parser_class=type(parser)
    )
    listing = kinds.add_parser(
        "list", help="list bitmaps", description="List the bitmaps of all layers.", allow_abbrev=False
    )
    _add_place(listing)
    listing.set_defaults(run=run_list)
    for name, what in _CHANGES.items():
        one = kinds.add_parser(
            name, help=what, description=f"{what.capitalize()}, on all disks at once.", allow_abbrev=False
        )
        _add_change(one, name)


def _add_place(parser: argparse.ArgumentParser) -> None:
    add_qemu(parser)
    add_common(parser)
    parser.add_argument("--disk", metavar="DEV", nargs="+", action="extend", default=[], help="only these disks")


def _add_change(parser: argparse.ArgumentParser, name: str) -> None:
    _add_place(parser)
    parser.add_argument("name", metavar="NAME", help="the bitmap")
    parser.add_argument("--node", metavar="NODE", help="on this layer, not the active one")
    if name == "add":
        parser.add_argument(
            "--granularity", metavar="SIZE", type=granularity_bytes, help="what one bit stands for (default: QEMU's)"
        )
        parser.add_argument("--persistent", action="store_true", help="store it in the image when QEMU closes that")
        parser.add_argument("--disabled", action="store_true", help="do not record yet")
    if name == "remove":
        parser.add_argument("--force", action="store_true", help="even if a repository or libvirt relies on it")
    if name == "merge":
        parser.add_argument(
            "--source", metavar="[NODE:]NAME", nargs="+", action="extend", required=True, help="the bitmaps to add"
        )
    parser.set_defaults(run=run_change)


def run_list(options: argparse.Namespace, context: Context) -> int:
    """Print the bitmaps."""
    from vbackup.operations import bitmap

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


def _document(one: Listed) -> dict[str, Any]:
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


def run_change(options: argparse.Namespace, context: Context) -> int:
    """Change the bitmap on all disks concerned."""
    from vbackup.operations import bitmap

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
    from vbackup.qapi.actions import BlockDirtyBitmap

    node, colon, name = text.partition(":")
    return BlockDirtyBitmap(node=node, name=name) if colon else text


def _history(context: Context, uuid: str | None) -> Callable[[str], History | None]:
    """The domain's backups where the repository that is asked for is the one at hand."""

    def history(repository_id: str) -> History | None:
        if uuid is None or not context.has_repository:
            return None
        repository = context.repository()
        return repository.catalogue(uuid).history if repository.id == repository_id else None

    return history
