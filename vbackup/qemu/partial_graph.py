"""What QEMU still says of its nodes when query-named-block-nodes fails.

That command fails as a whole if one image was found corrupt ("Block device X is ejected": qcow2_signal_corruption in
block/qcow2.c takes the driver from the node). x-debug-query-block-graph has the names of all nodes nevertheless, and
query-block the root nodes of the healthy disks with their bitmaps, and what their layers below are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vbackup.errors import MalformedError, QmpError
from vbackup.fields import objects
from vbackup.qemu import debug_graph
from vbackup.qemu.debug_graph import Executes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Partial:
    """The nodes, as far as QEMU describes them."""

    refusal: QmpError  #: of query-named-block-nodes
    names: frozenset[str]  #: of all nodes
    query_block: Any  #: the reply; an empty list if QEMU could not be asked

    def entries(self) -> list[Any]:
        """Return the QAPI BlockDeviceInfo of each root node, as query-named-block-nodes would."""
        devices = objects(self.query_block, "query-block", MalformedError)
        return [info for info in (device.raw("inserted") for device in devices) if info is not None]


def query(monitor: Executes, refusal: QmpError) -> Partial:
    """Ask QEMU otherwise, after its ``refusal`` of query-named-block-nodes; raise that if there is no other way."""
    log.debug("%s", refusal)
    try:
        graph = monitor.execute("x-debug-query-block-graph")
    except QmpError:
        raise refusal from None
    if _is_dangerous(graph, refusal):
        return Partial(refusal, debug_graph.node_names(graph), [])
    try:
        query_block = monitor.execute("query-block")
    except QmpError as err:
        log.debug("%s", err)
        query_block = []
    return Partial(refusal, debug_graph.node_names(graph), query_block)


def _is_dangerous(graph: object, refusal: QmpError) -> bool:
    """Return True if query-block could end QEMU: the node without a driver is below another one, as a job's filter.

    QEMU 7.2 fails an assertion (qentry_destroy) when it makes the file name of a filter above a node that had none
    before the driver went. Otherwise the command fails, so nothing is lost.
    """
    ejected = refusal.description.ejected_node
    if ejected is None:
        return bool(debug_graph.nodes_of_jobs(graph))
    below: Mapping[str, frozenset[str]] = debug_graph.nodes_of_nodes(graph)
    return any(ejected in names for names in below.values())
