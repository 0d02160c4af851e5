"""Each disk is found in QEMU's block graph by its device, below the filters, with all its layers."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit import builders
from tests.unit.builders import FOREIGN, REPOSITORY, fixture_graph, fixture_replies, fixture_xml
from vbackup.domain import domain_xml
from vbackup.errors import DiskError, MalformedError, NotLoadedError, Status
from vbackup.model import BlockDriver, Disk, DiskNode
from vbackup.qemu.block_graph import MAX_LAYERS, BlockGraph
from vbackup.qemu.monitor import block_graph

FULL, INCREMENTAL = "20261123T101500Z-full", "20261124T101500Z-incremental"


def disk_nodes(name: str) -> dict[str, DiskNode]:
    graph = fixture_graph(name)
    return {disk.dev: graph.disk_node(disk) for disk in domain_xml.parse(fixture_xml(name)).disks}


def changed(name: str, change: Any) -> BlockGraph:
    """The graph of a fixture whose replies were damaged by ``change``."""
    replies = copy.deepcopy(fixture_replies(name))
    change(*replies)
    return BlockGraph(*replies)


def vda(**changes: Any) -> Disk:
    return builders.disk("vda", **{"path": "/capture/vda.one", **changes})


# real replies


def test_every_disk_of_the_rich_domain_is_found_with_its_image() -> None:
    found = {
        dev: [(layer.driver.name, layer.filename) for layer in node.layers] for dev, node in disk_nodes("rich").items()
    }
    loop = found.pop("vdh")
    assert [driver for driver, _ in loop] == ["raw"]
    assert found == {
        "vda": [("qcow2", "/capture/zwei Wörter & <mehr>/dïsk 'a'.qcow2"), ("qcow2", "/capture/base.qcow2")],
        "vdb": [("qcow2", "/capture/disk.qcow2")],
        "vdc": [("qcow2", "/capture/other/disk.qcow2")],
        "vdd": [("raw", "/capture/plain.raw")],
        "vdi": [("qcow2", "/capture/both.qcow2")],
        "vdj": [("raw", "nbd+unix:///export?socket=/capture/nbd")],
        "sda": [("qcow2", "/capture/scsi.qcow2")],
        "sdb": [("raw", "/capture/sata.raw")],
        "hda": [("qcow2", "/capture/ide.qcow2")],
    }


@pytest.mark.parametrize("name", ["rich", "many", "snapshot", "bitmaps"])
def test_node_found_has_the_image_that_libvirt_names(name: str) -> None:
    for dev, node in disk_nodes(name).items():
        if node.disk.path is not None:
            assert node.top.filename == node.disk.path, dev


def test_twenty_eight_disks_have_twenty_eight_nodes() -> None:
    assert len({node.top.node_name for node in disk_nodes("many").values()}) == 28


def test_filter_on_top_is_left_aside() -> None:
    """copy_on_read puts one there, and the bitmaps are below it."""
    tops = {dev: node.top.node_name for dev, node in disk_nodes("rich").items()}
    assert tops["vda"].startswith("libvirt-")
    assert "CoR" not in tops["vda"]
    assert "CoR" not in tops["vdi"]


def test_only_the_active_layer_is_written_to() -> None:
    assert [layer.read_only for layer in disk_nodes("rich")["vda"].layers] == [False, True]


def test_only_qcow2_keeps_bitmaps() -> None:
    keeping = {dev for dev, node in disk_nodes("rich").items() if node.keeps_bitmaps}
    assert keeping == {"vda", "vdb", "vdc", "vdi", "sda", "hda"}


def test_layers_below_a_snapshot_are_shown_with_their_bitmaps() -> None:
    nodes = disk_nodes("snapshot")
    assert [layer.filename for layer in nodes["vda"].layers] == ["/capture/vda.one", "/capture/vda.qcow2"]
    name = f"vbackup-{REPOSITORY}-{FULL}-vda"
    assert [layer.bitmaps[name].dirty_bytes for layer in nodes["vda"].layers] == [65536, 65536]
    assert [len(node.layers) for node in nodes.values()] == [2, 1, 2]
    assert [layer.driver.name for layer in nodes["vdc"].layers] == ["qcow2", "raw"]


def test_bitmaps_are_read_in_every_state() -> None:
    nodes = disk_nodes("bitmaps")
    bitmaps = nodes["vda"].top.bitmaps
    full = bitmaps[f"vbackup-{REPOSITORY}-{FULL}-vda"]
    assert (full.recording, full.persistent, full.busy, full.inconsistent) == (True, True, False, False)
    assert (full.granularity_bytes, full.dirty_bytes) == (65536, 1024 * 1024)
    working = bitmaps[f"vbackup-{REPOSITORY}-{INCREMENTAL}-vda-working"]
    assert (working.recording, working.persistent, working.busy) == (False, False, True)
    assert {f"vbackup-{FOREIGN}-{FULL}-vda", "libvirt-checkpoint"} <= set(bitmaps)
    inconsistent = nodes["vdb"].top.bitmaps[f"vbackup-{REPOSITORY}-{FULL}-vdb"]
    assert (inconsistent.inconsistent, inconsistent.recording) == (True, False)
    raw = nodes["vdc"].top.bitmaps[f"vbackup-{REPOSITORY}-{FULL}-vdc"]
    assert (raw.persistent, raw.dirty_bytes) == (False, 65536)


def test_bitmap_without_a_name_is_left_out() -> None:
    for node in disk_nodes("bitmaps").values():
        assert "" not in node.top.bitmaps


def test_disk_is_found_below_the_filter_of_a_running_job() -> None:
    node = disk_nodes("bitmaps")["vda"]
    assert (node.top.driver, len(node.layers)) == (BlockDriver.QCOW2, 1)


def test_node_names_are_those_of_all_nodes() -> None:
    assert {"target", "libvirt-1-format", "libvirt-1-storage"} <= fixture_graph("bitmaps").node_names()


def test_missing_node_has_no_bitmaps() -> None:
    graph = fixture_graph("bitmaps")
    assert graph.bitmaps("no-such-node") == {}
    assert len(graph.bitmaps(disk_nodes("bitmaps")["vda"].top.node_name)) == 5


# a disk that cannot be found


def test_unknown_alias_names_the_disk_and_the_devices_there_are() -> None:
    with pytest.raises(DiskError, match=r"Disk vda: .*alias virtio-disk9.*scsi0-0-0-0.*virtio-disk0") as caught:
        fixture_graph("rich").disk_node(builders.disk("vda", alias="virtio-disk9x"))
    assert caught.value.dev == "vda"


def test_device_without_a_medium_is_not_found() -> None:
    with pytest.raises(DiskError, match="Disk hdc"):
        fixture_graph("rich").disk_node(Disk("hdc", "ide0-1-0", None, BlockDriver.RAW))


def test_qemu_without_devices_is_an_error() -> None:
    with pytest.raises(DiskError, match="it has: none"):
        BlockGraph([], [], []).disk_node(vda())


def test_nodes_without_a_device_are_found_by_the_given_chain() -> None:
    """As in a storage daemon: query-block and query-blockstats are empty."""
    _, _, nodes = builders.fixture_replies("snapshot")
    names = [node["node-name"] for node in nodes if node["drv"] == "qcow2" and "vda" in node["file"]]
    found = BlockGraph([], [], nodes, chains={"virtio-disk0": names}).disk_node(builders.disk(path=None))
    assert [layer.node_name for layer in found.layers] == names
    assert len(names) == 2


def test_alias_is_compared_as_a_whole() -> None:
    """virtio-disk1 is not virtio-disk10."""
    graph = block_graph(FakeQemu([FakeDisk("virtio-disk10", path="/images/ten.qcow2")]))
    with pytest.raises(DiskError, match="virtio-disk1 "):
        graph.disk_node(vda(alias="virtio-disk1"))


def test_other_image_than_libvirts_is_refused() -> None:
    with pytest.raises(DiskError, match=r"its image is /images/old.qcow2, but QEMU has /capture/vda.one open"):
        fixture_graph("snapshot").disk_node(vda(path="/images/old.qcow2"))


def test_other_format_than_libvirts_is_refused() -> None:
    with pytest.raises(DiskError, match="format is qcow2, but QEMU opened it as raw"):
        fixture_graph("rich").disk_node(
            Disk("vdd", "virtio-disk3", "/capture/plain.raw", BlockDriver.QCOW2),
        )


def test_disk_without_a_path_is_taken_as_qemu_has_it() -> None:
    """A volume of a pool, a network disk."""
    assert fixture_graph("snapshot").disk_node(vda(path=None)).top.filename == "/capture/vda.one"


@pytest.mark.parametrize(
    "filename",
    [
        "/dev/fdset/3",
        "nbd+unix:///export?socket=/capture/nbd",
        "nfs://server/vda.one",
        'json:{"driver": "qcow2", "file": {"driver": "nbd", "path": "/x"}}',
        'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/dev/fdset/3"}}',
        'json:{"driver": "raw", "file": "file0"}',
        'json:["list"]',
        "",
    ],
)
def test_file_name_that_is_not_a_path_is_not_compared(filename: str) -> None:
    def change(_block: Any, _stats: Any, nodes: Any) -> None:
        next(node for node in nodes if node["file"] == "/capture/vda.one" and node["drv"] == "qcow2")["file"] = filename

    assert changed("snapshot", change).disk_node(vda()).top.filename == filename


@pytest.mark.parametrize("path", ["/capture/vda.one", "/capture/other.one"])
def test_path_in_a_json_file_name_is_compared(path: str) -> None:
    options = {"driver": "qcow2", "file": {"driver": "raw", "file": {"driver": "file", "filename": path}}}

    def change(_block: Any, _stats: Any, nodes: Any) -> None:
        top = next(node for node in nodes if node["file"] == "/capture/vda.one" and node["drv"] == "qcow2")
        top["file"] = "json:" + json.dumps(options)

    graph = changed("snapshot", change)
    if path == "/capture/vda.one":
        graph.disk_node(vda())
    else:
        with pytest.raises(DiskError, match=r"/capture/other\.one open"):
            graph.disk_node(vda())


@pytest.mark.parametrize("filename", ["json:{", "json:", "json:" + "[" * 100_000], ids=lambda text: text[:8])
def test_file_name_that_is_not_json_is_malformed(filename: str) -> None:
    def change(_block: Any, _stats: Any, nodes: Any) -> None:
        next(node for node in nodes if node["file"] == "/capture/vda.one" and node["drv"] == "qcow2")["file"] = filename

    with pytest.raises(MalformedError):
        changed("snapshot", change).disk_node(vda())


def test_node_that_is_not_listed_is_an_error() -> None:
    def change(_block: Any, _stats: Any, nodes: Any) -> None:
        nodes[:] = [node for node in nodes if node["file"] != "/capture/vda.qcow2"]

    with pytest.raises(DiskError, match="does not list"):
        changed("snapshot", change).disk_node(vda())


def test_disk_with_only_filters_is_an_error() -> None:
    qemu = FakeQemu([FakeDisk(path="/images/vda.qcow2", format="throttle")])
    with pytest.raises(DiskError, match="only filter nodes"):
        block_graph(qemu).disk_node(builders.disk())


@pytest.mark.parametrize(
    "filters", [("copy-on-read",), ("throttle",), ("throttle", "copy-on-read", "copy-before-write")]
)
def test_any_stack_of_filters_is_looked_through(filters: tuple[str, ...]) -> None:
    qemu = FakeQemu([FakeDisk(path="/images/vda.qcow2", filters=filters, backing_paths=("/images/base.qcow2",))])
    node = block_graph(qemu).disk_node(builders.disk())
    assert [layer.filename for layer in node.layers] == ["/images/vda.qcow2", "/images/base.qcow2"]


def test_old_qcow2_stores_no_bitmaps() -> None:
    qemu = FakeQemu([FakeDisk(path="/images/vda.qcow2", compat="0.10")])
    assert not block_graph(qemu).disk_node(builders.disk()).keeps_bitmaps


def test_chain_without_an_end_is_malformed() -> None:
    stats: dict[str, Any] = {"node-name": "n"}
    for _ in range(MAX_LAYERS + 1):
        stats = {"node-name": "n", "backing": stats}
    with pytest.raises(MalformedError, match="backing chain"):
        BlockGraph([], [{"qdev": "x", **stats}], [])


# malformed replies


@pytest.mark.parametrize(
    ("which", "reply"),
    [
        (0, None),
        (0, {}),
        (0, [7]),
        (0, [{"qdev": 7}]),
        (0, [{"qdev": "x", "inserted": 7}]),
        (0, [{"qdev": "x", "inserted": {}}]),
        (1, [{"qdev": "x", "node-name": 7}]),
        (1, [{"qdev": "x", "node-name": "n", "backing": 7}]),
        (1, [{"qdev": "x", "node-name": "n", "backing": {}}]),
        (2, [{}]),
        (2, [{"node-name": "n"}]),
        (2, [{"node-name": "n", "image": {}, "drv": "raw", "ro": False, "file": ""}]),
        (2, [{"node-name": "n", "image": {"virtual-size": -1}, "drv": "raw", "ro": False, "file": ""}]),
        (2, [{"node-name": "n", "image": {"virtual-size": 2**63}, "drv": "raw", "ro": False, "file": ""}]),
        (2, [{"node-name": "n", "image": {"virtual-size": 1}, "drv": "raw", "ro": "no", "file": ""}]),
        (
            2,
            [
                {
                    "node-name": "n",
                    "image": {"virtual-size": 1},
                    "drv": "raw",
                    "ro": False,
                    "file": "",
                    "dirty-bitmaps": 7,
                }
            ],
        ),
        (
            2,
            [
                {
                    "node-name": "n",
                    "image": {"virtual-size": 1},
                    "drv": "raw",
                    "ro": False,
                    "file": "",
                    "dirty-bitmaps": [{}],
                }
            ],
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_reply_that_is_not_what_qapi_says_is_malformed(which: int, reply: Any) -> None:
    replies: list[Any] = [[], [], []]
    replies[which] = reply
    with pytest.raises(MalformedError, match=("query-block", "query-blockstats", "query-named-block-nodes")[which]):
        BlockGraph(*replies)


@pytest.mark.parametrize(
    ("stored", "listed", "active", "missing"),
    [
        ((), (), True, None),
        (("a", "b"), ("a", "b"), None, None),
        (("a",), ("a", "working"), True, None),
        (("a", "b"), ("b",), None, r"\(a\)"),
        (("a", "b"), (), True, r"\(a, b\)"),
        ((), (), False, "is inactive"),
    ],
)
def test_disk_whose_stored_bitmaps_are_not_loaded_is_refused(
    stored: tuple[str, ...], listed: tuple[str, ...], active: bool | None, missing: str | None
) -> None:
    state = {"recording": True, "busy": False, "persistent": True, "granularity": 65536, "count": 0}
    data = {"compat": "1.1", "bitmaps": [{"name": name, "granularity": 65536, "flags": ["auto"]} for name in stored]}
    node = {
        "node-name": "n",
        "drv": "qcow2",
        "ro": False,
        "file": "/capture/vda.one",
        "image": {"virtual-size": 65536, "format-specific": {"type": "qcow2", "data": data}},
        "dirty-bitmaps": [{"name": name, **state} for name in listed],
        **({} if active is None else {"active": active}),
    }
    graph = BlockGraph([], [], [node], chains={"virtio-disk0": ["n"]})
    if missing is None:
        assert set(graph.disk_node(vda()).top.bitmaps) == set(listed)
        return
    with pytest.raises(NotLoadedError, match=missing) as caught:
        graph.disk_node(vda())
    assert (caught.value.dev, caught.value.status) == ("vda", Status.BUSY)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("json:{")


@st.composite
def damaged_replies(draw: st.DrawFn) -> list[Any]:
    """Real replies with some values replaced or removed, anywhere inside."""
    replies: list[Any] = list(copy.deepcopy(fixture_replies(draw(st.sampled_from(["snapshot", "bitmaps"])))))
    for _ in range(draw(st.integers(1, 4))):
        container: Any = replies
        while True:
            keys = list(container) if isinstance(container, dict) else list(range(len(container)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = container[key]
            if isinstance(inner, (dict, list)) and inner and draw(st.integers(0, 5)):
                container = inner
                continue
            if container is not replies and isinstance(container, dict) and draw(st.booleans()):
                del container[key]
            else:
                container[key] = draw(scalars | st.just({}) | st.just([]))
            break
    return replies


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(damaged_replies())
def test_any_damage_to_real_replies_is_malformed(replies: list[Any]) -> None:
    with suppress(MalformedError, DiskError, NotLoadedError):
        graph = BlockGraph(*replies)
        for name in ("snapshot", "bitmaps"):
            for disk in domain_xml.parse(fixture_xml(name)).disks:
                with suppress(DiskError, NotLoadedError):
                    graph.disk_node(disk)
