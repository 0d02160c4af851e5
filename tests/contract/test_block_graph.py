"""How a disk of the guest is found: its device, its node, the layers below."""

from __future__ import annotations

from typing import Any

from tests.contract.conftest import DISK, QDEV, SIZE_BYTES, Bench, add_bitmap, backup, plain_file
from tests.unit.builders import Recorder
from vbackup.images import targets
from vbackup.model import QEMUS_OWN, BlockDriver, Disk, NodeOptions
from vbackup.qemu.monitor import block_graph, schema
from vbackup.undo import Undo


def disk(bench: Bench) -> Disk:
    return Disk("vda", DISK, str(bench.machine.disk_path), BlockDriver.QCOW2)


def device(bench: Bench, query: str) -> dict[str, Any]:
    return next(entry for entry in bench.execute(query) if entry.get("qdev") == QDEV)


def test_query_block_ties_the_device_to_its_node(bench: Bench) -> None:
    inserted = device(bench, "query-block")["inserted"]
    assert inserted["file"] == str(bench.machine.disk_path)
    assert inserted["node-name"] in bench.nodes()


def test_query_blockstats_shows_the_layers(bench: Bench) -> None:
    stats = device(bench, "query-blockstats")
    assert stats["node-name"] == device(bench, "query-block")["inserted"]["node-name"]
    below = stats["backing"]
    assert bench.nodes()[below["node-name"]]["file"] == str(bench.machine.backing_path)
    assert "backing" not in below


def test_flat_list_has_every_node_of_the_chain(bench: Bench) -> None:
    stats = device(bench, "query-blockstats")
    assert {stats["node-name"], stats["backing"]["node-name"]} <= set(bench.nodes())


def test_disk_is_found_with_its_layers(bench: Bench) -> None:
    node = block_graph(bench.monitor).disk_node(disk(bench))
    assert [layer.filename for layer in node.layers] == [
        str(bench.machine.disk_path),
        str(bench.machine.backing_path),
    ]
    assert node.top.virtual_size_bytes == SIZE_BYTES
    assert [layer.read_only for layer in node.layers] == [False, True]
    assert node.keeps_bitmaps


def test_bitmaps_are_found_on_their_layer(bench: Bench) -> None:
    top = block_graph(bench.monitor).disk_node(disk(bench)).top.node_name
    bench.transaction(add_bitmap(top, "vbackup-test", persistent=True))
    found = block_graph(bench.monitor).disk_node(disk(bench)).top.bitmaps
    assert found["vbackup-test"].recording
    assert found["vbackup-test"].persistent


def test_disk_keeps_its_node_while_a_backup_runs(bench: Bench) -> None:
    """QEMU puts a filter above it for that time."""
    graph = block_graph(bench.monitor)
    before = graph.disk_node(disk(bench))
    bench.transaction(backup("j", before.top.node_name, bench.node("target"), speed=65536))
    bench.wait("j", "running")
    during = block_graph(bench.monitor).disk_node(disk(bench))
    assert [layer.node_name for layer in during.layers] == [layer.node_name for layer in before.layers]


def test_added_nodes_are_no_disks(bench: Bench) -> None:
    before = block_graph(bench.monitor)
    bench.node("target")
    after = block_graph(bench.monitor)
    assert after.node_names() - before.node_names() >= {"target"}
    assert len(bench.execute("query-block")) == len(bench.execute("query-blockstats"))


def test_options_of_a_target_are_told_and_kept_when_it_is_flushed(bench: Bench) -> None:
    """QEMU resets what is not given to blockdev-reopen: it would flush to the disk as the node is closed."""
    path = bench.image()
    wanted = NodeOptions(no_flush=True, detect_zeroes=True)
    bench.monitor.execute("blockdev-add", {**targets.node("plain", ""), "file": plain_file(str(bench.image()))})
    with Undo(Recorder()) as undo:
        targets.open_in_qemu(bench.monitor, [targets.Target(path, "vbackup-x")], undo=undo, options=wanted)
        assert block_graph(bench.monitor).options("vbackup-x") == wanted
        targets.flush_in_qemu(bench.monitor, ["vbackup-x", "plain"])
        graph = block_graph(bench.monitor)
        assert graph.options("vbackup-x") == wanted
        assert graph.options("plain") == graph.options("not-there") == QEMUS_OWN


def test_compressions_are_told_by_the_schema(bench: Bench) -> None:
    """The fake's is only a part of one, in which there is nothing about the making of images."""
    known = schema(bench.monitor)
    types = known.qcow2_compression_types()
    assert ("zlib" in types) == bool(known.members("blockdev-create"))
