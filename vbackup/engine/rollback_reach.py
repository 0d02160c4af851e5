"""How a rollback reaches the disks that it writes: the QEMU that has them, and the one that can read the repository.

For a domain of this host that is the same storage daemon. Images on another host are in a storage daemon there, beside
which one here reads the repository and writes through NBD; the user's ssh carries that (vbackup.remote).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vbackup.engine.base import Choice
from vbackup.model import DiskNode
from vbackup.qapi.actions import Action, BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge
from vbackup.qemu import exports
from vbackup.qemu.monitor import Monitor
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_client import BITMAP_PREFIX, DIRTY, NbdClient
from vbackup.qemu.transaction import send
from vbackup.repository.block_list import BLOCK_BYTES, SEGMENT_BLOCKS, mask_of

_CHANGED = "changed"
#: Seconds that QEMU waits for the export when it opens it.
_OPEN_S = 10


class Reach(Protocol):
    """Where the disks of a rollback are, for whoever copies and compares."""

    @property
    def monitor(self) -> Monitor:
        """The QEMU that opens the images of the repository."""

    def written(self, dev: str, node_name: str) -> AbstractContextManager[str]:
        """Yield the node in that QEMU which writes to the disk, whose own node is ``node_name``."""

    def read(self, dev: str, node_name: str) -> AbstractContextManager[NbdAddress]:
        """Yield where the disk can be read, as the guest will."""


class Here:
    """The QEMU that has the disks reads the repository, too."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor

    def written(self, dev: str, node_name: str) -> AbstractContextManager[str]:
        """Yield the disk's own node."""
        return nullcontext(node_name)

    @contextmanager
    def read(self, dev: str, node_name: str) -> Iterator[NbdAddress]:
        """Export the disk on a socket in a directory that only this user can enter."""
        with tempfile.TemporaryDirectory(prefix="vbackup-") as directory:
            path = Path(directory) / "nbd"
            self.monitor.execute("nbd-server-start", {"addr": _unix(path)})
            _export(self.monitor, dev, node_name, is_writable=False)
            yield NbdAddress(dev, path=path)
            self.monitor.execute("nbd-server-stop")  # and the export with it


@dataclass(frozen=True)
class There:
    """A QEMU on another host has the disks, with an NBD server; a storage daemon here reads the repository."""

    monitor: Monitor  #: of the daemon here
    disks: Monitor  #: of the QEMU with the disks
    socket: Path  #: to its NBD server, here

    @contextmanager
    def written(self, dev: str, node_name: str) -> Iterator[str]:
        """Yield a node here that writes to the export of the disk."""
        target = f"target-{dev}"
        _export(self.disks, dev, node_name, is_writable=True)
        try:
            node = {"driver": "nbd", "node-name": target, "export": dev, "open-timeout": _OPEN_S}
            server = {"type": "unix", "path": os.fspath(self.socket)}
            self.monitor.execute("blockdev-add", {**node, "server": server})
            yield target
            self.monitor.execute("blockdev-del", {"node-name": target})
        finally:
            exports.end(self.disks, dev)

    @contextmanager
    def read(self, dev: str, node_name: str) -> Iterator[NbdAddress]:
        """Export the disk."""
        _export(self.disks, dev, node_name, is_writable=False)
        try:
            yield NbdAddress(dev, path=self.socket)
        finally:
            exports.end(self.disks, dev)

    def dirty(self, node: DiskNode, choice: Choice) -> dict[int, int]:
        """Return the blocks that the bitmaps record as changed since the base, by segment: from the NBD server."""
        top, dev = node.top.node_name, node.disk.dev
        sources = tuple(BlockDirtyBitmap(one.node_name, one.bitmap) for one in choice.bitmaps)
        actions: list[Action] = [
            BlockDirtyBitmapAdd(top, _CHANGED, granularity=BLOCK_BYTES, disabled=True),
            BlockDirtyBitmapMerge(top, _CHANGED, sources),
        ]
        send(self.disks, {"actions": [action.document() for action in actions]})
        _export(self.disks, dev, top, is_writable=False, bitmaps=[_CHANGED])
        try:
            address = NbdAddress(dev, path=self.socket)
            with NbdClient(address, context=f"{BITMAP_PREFIX}{_CHANGED}") as client:
                blocks: dict[int, int] = {}
                for start_bytes, length_bytes, flags in client.blocks(0, client.size_bytes):
                    if flags & DIRTY:
                        _add(blocks, start_bytes // BLOCK_BYTES, -(-(start_bytes + length_bytes) // BLOCK_BYTES))
                return blocks
        finally:
            exports.end(self.disks, dev)
            self.disks.execute("block-dirty-bitmap-remove", {"node": top, "name": _CHANGED})


def _add(blocks: dict[int, int], begin: int, end: int) -> None:
    """Add a range of blocks to masks by segment."""
    for number in range(begin // SEGMENT_BLOCKS, -(-end // SEGMENT_BLOCKS)):
        first = max(begin - number * SEGMENT_BLOCKS, 0)
        last = min(end - number * SEGMENT_BLOCKS, SEGMENT_BLOCKS)
        blocks[number] = blocks.get(number, 0) | mask_of(first, last)


def _unix(path: Path) -> dict[str, Any]:
    return {"type": "unix", "data": {"path": os.fspath(path)}}


def _export(monitor: Monitor, dev: str, node_name: str, *, is_writable: bool, bitmaps: list[str] | None = None) -> None:
    options = {"type": "nbd", "id": dev, "name": dev, "node-name": node_name, "writable": is_writable}
    monitor.execute("block-export-add", {**options, **({} if bitmaps is None else {"bitmaps": bitmaps})})
