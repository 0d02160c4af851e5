"""Speak QMP to a QEMU: the protocol that every monitor implements, and the queries that need only a monitor.

passthrough reaches a domain's QEMU through libvirt. socket connects to a QMP socket: that of a QEMU without libvirt,
or of the vbackup.qemu.storage_daemon that has the disks of a domain that is off open. All implementations pass the same
contract tests (tests/contract), and so does the fake that the unit tests use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vbackup.errors import QmpError
from vbackup.qemu import partial_graph
from vbackup.qemu.block_graph import BlockGraph, BlockNodes, chains_of

if TYPE_CHECKING:
    from vbackup.qapi.schema import Schema


@dataclass(frozen=True)
class Event:
    """A QMP event, without its timestamp."""

    name: str
    data: Mapping[str, Any]


class Monitor(Protocol):
    """A QEMU that answers QMP commands and reports job events.

    Every call can raise ConnectionLostError (whether QEMU executed the command is unknown; the next call tries to
    reconnect), QemuGoneError (QEMU has ended) or MonitorError (StateLockedError while libvirt is busy with the domain).
    """

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """Execute one QMP command and return the "return" member of its reply.

        ``fd`` is sent with the command (for add-fd); the caller still owns and closes it. Raises QmpError if QEMU
        answers with an error: the command had no effect. Raises MalformedError if the answer is not a QMP reply,
        FdsNotPassedError if the connection cannot carry descriptors (another host); the caller can use a path.
        """

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next JOB_STATUS_CHANGE or BLOCK_JOB_ERROR event, None if none comes within ``timeout_s`` seconds.

        Events can be lost with a connection: after None, query the jobs.
        """


def block_graph(monitor: Monitor, *, chains: Mapping[str, Sequence[str]] | None = None) -> BlockGraph:
    """Query QEMU's current block graph. ``chains`` and errors as for BlockGraph."""
    try:
        # First: where it fails, query-block can be dangerous.
        named = monitor.execute("query-named-block-nodes", {"flat": True})
    except QmpError as err:
        partial = partial_graph.query(monitor, err)
        return BlockGraph(partial.query_block, monitor.execute("query-blockstats"), [], partial=partial, chains=chains)
    return BlockGraph(monitor.execute("query-block"), monitor.execute("query-blockstats"), named, chains=chains)


def block_nodes(monitor: Monitor) -> BlockNodes:
    """Query QEMU's current nodes, in a third of the time of ``block_graph``. Errors as for BlockNodes."""
    try:
        return BlockNodes(monitor.execute("query-named-block-nodes", {"flat": True}))
    except QmpError as err:
        return BlockNodes([], partial=partial_graph.query(monitor, err))


def block_chains(monitor: Monitor) -> dict[str, tuple[str, ...]]:
    """Query the nodes of QEMU's devices: device alias to node names, the root first. Raises MalformedError."""
    return chains_of(monitor.execute("query-blockstats"))


def schema(monitor: Monitor) -> Schema:
    """Return the QMP schema of that QEMU (query-qmp-schema), queried once per kind of QEMU in this process.

    Version and command list identify the kind: a storage daemon has fewer commands. Nothing is cached on disk: a
    distribution may patch QEMU without changing its version, and the query takes only milliseconds.
    """
    key = json.dumps([monitor.execute("query-version"), monitor.execute("query-commands")], sort_keys=True)
    if key not in _SCHEMAS:
        from vbackup.qapi.schema import Schema  # not needed for a backup

        _SCHEMAS[key] = Schema(monitor.execute("query-qmp-schema"))
    return _SCHEMAS[key]


_SCHEMAS: dict[str, Schema] = {}
