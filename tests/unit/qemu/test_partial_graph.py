"""What is known of QEMU's nodes although it found an image corrupt, and what is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_qemu import FakeBitmap, FakeDisk
from tests.unit import builders
from tests.unit.blind_qemu import BlindQemu
from vbackup.errors import CorruptImageError, DiskError, QmpError, Status
from vbackup.model import Disk
from vbackup.qemu.monitor import block_graph, block_nodes

ALIASES = {"vda": "virtio-disk0", "vdb": "virtio-disk1", "vdc": "virtio-disk2"}


@pytest.fixture
def qemu() -> Iterator[BlindQemu]:
    """vda is corrupt; vdb has one layer, vdc three."""
    disks = [
        FakeDisk("virtio-disk0", path="/images/vda.qcow2"),
        FakeDisk("virtio-disk1", path="/images/vdb.qcow2"),
        FakeDisk("virtio-disk2", path="/images/vdc.qcow2", backing_paths=("/images/one.qcow2", "/images/two.qcow2")),
    ]
    with BlindQemu(disks) as made:
        for dev in ("vdb", "vdc"):
            made.bitmaps(made.top(ALIASES[dev]))["b"] = FakeBitmap("b")
        yield made


def disk(dev: str) -> Disk:
    return builders.disk(dev, alias=ALIASES[dev])


def test_nodes_have_their_names_and_the_active_layers_their_bitmaps(qemu: BlindQemu) -> None:
    names = block_nodes(qemu).node_names()
    corrupt = qemu.eject(ALIASES["vda"])
    nodes = block_nodes(qemu)
    assert nodes.node_names() == names
    assert nodes.refusal is not None
    top = qemu.top(ALIASES["vdb"])
    assert (set(nodes.bitmaps(top)), nodes.is_described(top)) == ({"b"}, True)
    assert (nodes.bitmaps(corrupt), nodes.is_described(corrupt)) == ({}, False)
    qemu.ejected = None
    assert block_nodes(qemu).refusal is None


def test_corrupt_disk_is_told_and_the_others_are_found(qemu: BlindQemu) -> None:
    whole = block_graph(qemu)
    qemu.eject(ALIASES["vda"])
    graph = block_graph(qemu)
    with pytest.raises(CorruptImageError, match=r"/images/vda\.qcow2.*--exclude-disk vda") as caught:
        graph.disk_node(disk("vda"))
    assert (caught.value.dev, caught.value.status) == ("vda", Status.UNSUITABLE)
    assert graph.disk_node(disk("vdb")) == whole.disk_node(disk("vdb"))
    assert graph.disk_node(disk("vdb")).lists_bitmaps
    found, expected = graph.disk_node(disk("vdc")), whole.disk_node(disk("vdc"))
    assert [layer.node_name for layer in found.layers] == [layer.node_name for layer in expected.layers]
    assert [layer.filename for layer in found.layers] == [layer.filename for layer in expected.layers]
    assert [layer.lists_bitmaps for layer in found.layers] == [True, False, False]
    assert (set(found.top.bitmaps), found.lists_bitmaps) == ({"b"}, False)


def test_query_that_could_end_qemu_is_not_sent(qemu: BlindQemu) -> None:
    corrupt = qemu.eject(ALIASES["vda"])
    qemu.has_filter_above = True
    qemu.sent.clear()
    graph = block_graph(qemu)
    assert "query-block" not in [sent.command for sent in qemu.sent]
    with pytest.raises(CorruptImageError):
        graph.disk_node(disk("vda"))
    with pytest.raises(DiskError, match=f"Disk vdb: QEMU cannot describe its nodes.*{corrupt} is ejected"):
        graph.disk_node(disk("vdb"))
    assert not graph.is_described(qemu.top(ALIASES["vdb"]))


def test_second_corrupt_disk_is_told_too(qemu: BlindQemu) -> None:
    qemu.eject(ALIASES["vda"])
    qemu.ejected_too = frozenset((qemu.top(ALIASES["vdb"]),))
    graph = block_graph(qemu)
    for dev in ("vda", "vdb"):
        with pytest.raises(CorruptImageError, match=f"Disk {dev}: "):
            graph.disk_node(disk(dev))
    assert graph.disk_node(disk("vdc")).top.bitmaps


@pytest.mark.parametrize("description", ["Can't get image size '/dev/x': No medium found", "Block device  is eject"])
def test_refusal_for_another_reason_blinds_as_little(qemu: BlindQemu, description: str) -> None:
    qemu.answers = {"query-named-block-nodes": QmpError("query-named-block-nodes", "GenericError", description)}
    qemu.eject(ALIASES["vda"])
    graph = block_graph(qemu)
    with pytest.raises(CorruptImageError):
        graph.disk_node(disk("vda"))
    assert set(graph.disk_node(disk("vdb")).top.bitmaps) == {"b"}


def test_without_the_graph_the_refusal_is_the_error(qemu: BlindQemu) -> None:
    qemu.eject(ALIASES["vda"])
    qemu.answers = {"x-debug-query-block-graph": QmpError("x", "CommandNotFound", "not found")}
    with pytest.raises(QmpError, match="is ejected") as caught:
        block_nodes(qemu)
    assert caught.value.command == "query-named-block-nodes"


def test_query_block_that_fails_too_leaves_the_names(qemu: BlindQemu) -> None:
    qemu.eject(ALIASES["vda"])
    qemu.answers = {"query-block": QmpError("query-block", "GenericError", "Can't get image size")}
    nodes = block_nodes(qemu)
    assert qemu.top(ALIASES["vdb"]) in nodes.node_names()
    assert not nodes.is_described(qemu.top(ALIASES["vdb"]))
