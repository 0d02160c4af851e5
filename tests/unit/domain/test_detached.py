"""Which nodes of a detached disk are closed."""

from __future__ import annotations

from tests.unit.builders import disk, fixture_graph, fixture_replies
from tests.unit.engine.test_foreign_jobs import Qemu
from vbackup.domain import detached


def node_of(dev: str) -> str:
    return fixture_graph("bitmaps").chains[disk(dev).alias][0]


def test_disk_that_is_there_is_not_closed() -> None:
    qemu = Qemu()
    assert detached.close_detached(qemu, {"vda": node_of("vda")}) == []
    assert "blockdev-del" not in [command for command, _ in qemu.sent]


def test_nodes_of_others_are_never_closed() -> None:
    """Whatever is left of a disk that is gone: only libvirt's own nodes are closed."""
    nodes = fixture_replies("bitmaps")[2]
    mine = {**nodes[0], "node-name": "mine"}
    qemu = Qemu(query_named_block_nodes=[*nodes, mine], blockdev_del={})
    assert detached.close_detached(qemu, {"vdz": "mine"}) == ["vdz"]
    assert "blockdev-del" not in [command for command, _ in qemu.sent]


def test_node_of_a_detached_disk_is_closed_with_what_is_below_it() -> None:
    nodes = fixture_replies("bitmaps")[2]
    left = [{**nodes[0], "node-name": f"libvirt-9-{kind}"} for kind in ("format", "storage")]
    edges = {
        "nodes": [{"id": number, "type": "block-driver", "name": one["node-name"]} for number, one in enumerate(left)],
        "edges": [{"parent": 0, "child": 1, "name": "file"}],
    }
    qemu = Qemu(query_named_block_nodes=[*nodes, *left], blockdev_del={}, x_debug_query_block_graph=edges)
    assert detached.close_detached(qemu, {"vda": node_of("vda"), "vdz": "libvirt-9-format"}) == ["vdz"]
    closed = [arguments["node-name"] for command, arguments in qemu.sent if command == "blockdev-del"]
    assert closed == ["libvirt-9-format", "libvirt-9-storage"]
