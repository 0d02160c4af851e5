"""Which node is used by which other node or job: x-debug-query-block-graph, for QEMU 4.0 and later.

It is a command for debugging, so callers have to work without its answer too.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from vbackup.errors import MalformedError, QmpError
from vbackup.fields import Fields

log = logging.getLogger(__name__)


class Executes(Protocol):
    """A vbackup.qemu.monitor.Monitor, which itself needs this module."""

    def execute(self, command: str) -> Any:
        """Execute a command without arguments. Raises QmpError."""


def children(monitor: Executes) -> Mapping[str, Collection[str]]:
    """Return the nodes directly below each node; empty if QEMU cannot list them."""
    try:
        return _held(monitor.execute("x-debug-query-block-graph"), "block-driver")
    except QmpError as err:
        log.debug("%s", err)
        return {}


def nodes_of_jobs(reply: object) -> Mapping[str, frozenset[str]]:
    """Return the nodes that each job holds, by job id, from a reply to x-debug-query-block-graph (QAPI XDbgBlockGraph).

    Raises MalformedError if the reply is not as QAPI defines it.
    """
    return _held(reply, "block-job")


def node_names(reply: object) -> frozenset[str]:
    """Return the names of all block nodes. Raises MalformedError likewise."""
    nodes = Fields(reply, "x-debug-query-block-graph", MalformedError).objects("nodes")
    return frozenset(node.text("name") for node in nodes if node.text("type") == "block-driver")


def nodes_of_nodes(reply: object) -> Mapping[str, frozenset[str]]:
    """Return the nodes directly below each node, by its name. Raises MalformedError likewise."""
    return _held(reply, "block-driver")


def devices_without_rights(reply: object) -> Mapping[str, Collection[str]]:
    """Return the devices that may not even read their node, and these nodes, by device, from the same kind of reply.

    QEMU takes the rights of all devices away while its block nodes are inactive. Raises MalformedError likewise.
    """
    return _held(reply, "block-backend", without_rights=True)


def _held(reply: object, kind: str, *, without_rights: bool = False) -> Mapping[str, frozenset[str]]:
    """Return the children of all graph nodes of that kind (QAPI XDbgBlockGraphNodeType), by the name of the parent.

    ``without_rights`` leaves only edges without any permission, whose parent has a name.
    """
    graph = Fields(reply, "x-debug-query-block-graph", MalformedError)
    kinds: dict[int, tuple[str, str]] = {}
    for node in graph.objects("nodes"):
        kinds[node.integer("id")] = (node.text("type"), node.text("name"))
    held = defaultdict(set)
    for edge in graph.objects("edges"):
        (parent_kind, parent), (_, child) = (kinds.get(edge.integer(end), ("", "")) for end in ("parent", "child"))
        if without_rights and (not parent or edge.strings("perm")):
            continue
        if parent_kind == kind:
            held[parent].add(child)
    return {name: frozenset(nodes) for name, nodes in held.items()}
