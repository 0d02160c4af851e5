"""Prove by content that what lies below the bitmaps is unchanged, where size and times do not tell.

A digest is read in two cases: a base depends on it (vbackup.engine.base), or nothing is recorded yet with which a later
backup could compare. Both come before the moment of the backup, so the guest is not frozen, and what changes later is
found by the next comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from vbackup.domain import file_contents
from vbackup.engine import base, underlay
from vbackup.engine.base import Choice
from vbackup.layers import FileState
from vbackup.model import BlockDriver, DiskNode, Level
from vbackup.names import Naming
from vbackup.report import Phase, Reporter
from vbackup.repository.history import History, Start, image_of
from vbackup.stop import Stop

#: Seconds between two reports of how far a file is.
REPORT_S = 0.5


class Proving(Protocol):
    """What a proof needs of the domain whose disks it is about."""

    @property
    def naming(self) -> Naming:
        """The names of what its owner has in QEMU."""

    @property
    def reporter(self) -> Reporter:
        """Gets the progress."""

    @property
    def stop(self) -> Stop:
        """The request to stop."""


def compared(
    level: Level,
    nodes: Sequence[DiskNode],
    history: History,
    domain: Proving,
    *,
    starts: Callable[[str], Sequence[Start]] | None = None,
) -> list[DiskNode]:
    """Return the disks with the digests on which their bases depend. Raises what the request to stop raises.

    ``starts`` returns the only checkpoints that a disk may start from, by dev; None: those of the history.
    """
    return [
        _with_digests(
            node,
            base.undecided(
                level, node, history, naming=domain.naming, starts=None if starts is None else starts(node.disk.dev)
            ),
            domain,
            why="compare",
        )[0]
        for node in nodes
    ]


def recorded(
    choices: Sequence[tuple[DiskNode, Choice]], history: History, domain: Proving
) -> list[tuple[DiskNode, Choice]]:
    """Return the disks with the digests that the backup records, for those from which a later one may start."""
    return [
        (
            node
            if choice.level is Level.COPY or not node.bears_checkpoints
            else _recorded(node, choice, history, domain),
            choice,
        )
        for node, choice in choices
    ]


def _recorded(node: DiskNode, choice: Choice, history: History, domain: Proving) -> DiskNode:
    dev = node.disk.dev
    newest = history.newest(dev)
    base_chain = choice.chain or (image_of(choice.base, dev).chain if choice.base is not None else None)
    bases = [base_chain, image_of(newest, dev).chain if newest is not None else None]
    chain = underlay.remembered(node.chain, bases, is_trusted=choice.base is not None)
    node = replace(node, looked_at=chain)
    with_bitmaps = [layer.node_name for layer in node.layers if layer.bitmaps]
    unread = underlay.unread(chain, base_chain, with_bitmaps=with_bitmaps)
    node, unreadable = _with_digests(node, unread, domain, why="record")
    # What may never be read is trusted by size and time. What cannot be read only now keeps its ctime, so that it costs
    # a full when it was touched, and is not trusted without a proof.
    denied = [file for file in unreadable if file_contents.is_denied(file)]
    if not denied:
        return node

    def without_ctime(file: FileState) -> FileState:
        return replace(file, ctime_ns=None) if file in denied else file

    return replace(node, looked_at=node.chain.with_files(without_ctime, below=1))


def _with_digests(
    node: DiskNode, files: Collection[FileState], domain: Proving, *, why: str
) -> tuple[DiskNode, list[FileState]]:
    """Return the disk with the digests of these files, and the files that cannot be read."""
    if not files:
        return node, []
    # The guest reads the file of a data file as it is, and that of a raw layer.
    qcow2 = {state.file for layer, state in zip(node.layers, node.chain.layers) if layer.driver == BlockDriver.QCOW2}
    made = {}
    for file in files:
        progress = _Progress(file, node.disk.dev, domain, why)
        made[file] = file_contents.digest(
            file, is_qcow2=file in qcow2, check=domain.stop.check, progress=progress.report
        )
    chain = node.chain.with_files(lambda file: replace(file, digest=made.get(file, file.digest)), below=1)
    unreadable = [file for file, digest in made.items() if digest is None]
    for file in unreadable:
        domain.reporter.step(
            f"Disk {node.disk.dev}: the content of {file.path}, which is below it, cannot be read to {why} it."
        )
    return replace(node, looked_at=chain), unreadable


@dataclass
class _Progress:
    """Tells when a file is read, and how far it is."""

    file: FileState
    dev: str
    domain: Proving
    why: str
    next_s: float = field(default=0.0, init=False)
    is_reported: bool = field(default=False, init=False)

    def report(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if done_bytes == 0:
            self.domain.reporter.step(
                f"Disk {self.dev}: {self.file.path}, which is below it, is read to {self.why} its content."
            )
            self.next_s = now_s + REPORT_S
        elif now_s >= self.next_s or (self.is_reported and done_bytes >= total_bytes):
            self.next_s, self.is_reported = now_s + REPORT_S, True
            self.domain.reporter.progress(self.dev, Phase.CHECK, done_bytes, total_bytes)
