"""Speak QMP to a QEMU: what every monitor can do. Its kinds are the modules of this package.

passthrough goes through libvirt to a domain's QEMU, socket straight to a QMP socket: to a QEMU without
libvirt, or to the vbackup.qemu.storage_daemon that has the disks of a domain that is off. All pass the same
contract tests (tests/contract), and so does the fake that the unit tests use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vbackup.qemu.block_graph import BlockGraph, BlockNodes, chains_of

if TYPE_CHECKING:
    from vbackup.qapi.schema import Schema


@dataclass(frozen=True)
class Event:
    """A QMP event."""

    name: str
    data: Mapping[str, Any]


class Monitor(Protocol):
    """A QEMU that answers QMP commands and tells of its jobs.

    Every call can raise ConnectionLostError (whether the command was carried out is unknown; the next
    call tries to connect again), QemuGoneError (QEMU is not there any more) or MonitorError.
    """

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """Send one command and return what is behind its "return".

        ``fd`` goes along with it (add-fd); the caller keeps and closes its own. Raises QmpError where
        QEMU answers with an error, MalformedError where the answer is no QMP reply, FdsNotPassedError
        where the way to QEMU carries no descriptors (another host).
        """

    def next_event(self, timeout_s: float) -> Event | None:
        """The next job event that has not been fetched yet; None if none came in time.

        Events may be lost with a connection: after waiting, ask.
        """


def block_graph(monitor: Monitor, *, chains: Mapping[str, Sequence[str]] | None = None) -> BlockGraph:
    """Ask QEMU for its block graph as it is now; ``chains`` as for BlockGraph."""
    return BlockGraph(
        monitor.execute("query-block"),
        monitor.execute("query-blockstats"),
        monitor.execute("query-named-block-nodes", {"flat": True}),
        chains=chains,
    )


def block_nodes(monitor: Monitor) -> BlockNodes:
    """Ask QEMU for its nodes as they are now; a third of what the whole graph takes to ask for."""
    return BlockNodes(monitor.execute("query-named-block-nodes", {"flat": True}))


def block_chains(monitor: Monitor) -> dict[str, tuple[str, ...]]:
    """Ask QEMU which nodes its devices have, by alias, the root first."""
    return chains_of(monitor.execute("query-blockstats"))


def schema(monitor: Monitor) -> Schema:
    """The schema of that QEMU's QMP; asked for once for each QEMU that this process meets.

    A QEMU is known by its version and its commands: a storage daemon has fewer. Nothing is kept on disk, since
    a distribution may mend a QEMU without another version, and the answer takes some milliseconds.
    """
    key = json.dumps([monitor.execute("query-version"), monitor.execute("query-commands")], sort_keys=True)
    if key not in _SCHEMAS:
        from vbackup.qapi.schema import Schema  # which a backup does not ask for

        _SCHEMAS[key] = Schema(monitor.execute("query-qmp-schema"))
    return _SCHEMAS[key]


_SCHEMAS: dict[str, Schema] = {}
