"""Find each disk's node, layers and bitmaps in what QEMU says of its block graph.

query-block ties a device (qdev) to its root node; query-blockstats shows how the nodes stand on each
other on every QEMU since 4.0 (query-named-block-nodes has ``children`` only from QEMU 11 on);
query-named-block-nodes has drivers, sizes and bitmaps, also behind filters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbackup.errors import DiskError, MalformedError
from vbackup.fields import Fields, objects
from vbackup.model import QEMUS_OWN, Bitmap, Disk, DiskNode, Layer, NodeOptions

#: Drivers that pass everything on to the node below: never the place of a disk's data or bitmaps.
FILTERS = frozenset(
    ("copy-on-read", "throttle", "copy-before-write", "preallocate", "compress", "blkdebug", "blklogwrites",
     "blkreplay", "snapshot-access", "mirror_top", "commit_top", "backup-top")
)  # fmt: skip

#: "Cannot store dirty bitmaps in qcow2 v2 files", says QEMU.
QCOW2_V2 = "0.10"

#: A backing chain longer than this is taken for a reply that loops (QEMU itself stops opening around 500).
MAX_LAYERS = 1000


@dataclass(frozen=True)
class _Node:
    driver: str
    layer: Layer
    options: NodeOptions


class BlockNodes:
    """QEMU's nodes: its answer to query-named-block-nodes, checked and made searchable.

    Raises MalformedError where the reply is not what QAPI says it is.
    """

    def __init__(self, query_named_block_nodes: Any) -> None:
        self._nodes = dict(_nodes(query_named_block_nodes))

    def node_names(self) -> frozenset[str]:
        """The names of all nodes, ours and others'."""
        return frozenset(self._nodes)

    def filename(self, node_name: str) -> str:
        """The file that a node was opened with. Raises MalformedError where the node is not there."""
        node = self._nodes.get(node_name)
        if node is None:
            raise MalformedError(f"QEMU does not list node {node_name}, which was opened; did somebody close it?")
        return _innermost(node.layer.filename)

    def options(self, node_name: str) -> NodeOptions:
        """How a node was opened, as far as vbackup opens nodes otherwise than QEMU by itself."""
        node = self._nodes.get(node_name)
        return node.options if node else QEMUS_OWN

    def nodes(self) -> Mapping[str, Layer]:
        """All nodes by name, filters and those of no disk included."""
        return {name: node.layer for name, node in self._nodes.items()}

    def bitmaps(self, node_name: str) -> Mapping[str, Bitmap]:
        """The named bitmaps of a node; none where the node is not there."""
        node = self._nodes.get(node_name)
        return node.layer.bitmaps if node else {}

    def is_read_only(self, node_name: str) -> bool:
        """True for a layer below the active one; False where the node is not there."""
        node = self._nodes.get(node_name)
        return node is not None and node.layer.read_only


class BlockGraph(BlockNodes):
    """QEMU's answers to all three queries: its nodes, and how they belong to disks.

    Raises MalformedError where a reply is not what QAPI says it is.
    """

    def __init__(
        self,
        query_block: Any,
        query_blockstats: Any,
        query_named_block_nodes: Any,
        *,
        chains: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """``chains`` has the nodes of disks (by alias, the top first) that the caller opened, and no device has."""
        super().__init__(query_named_block_nodes)
        opened = {alias: tuple(nodes) for alias, nodes in (chains or {}).items()}
        #: By alias the nodes that stand on each other, filters included, the root first.
        self.chains: Mapping[str, tuple[str, ...]] = {**chains_of(query_blockstats), **opened}
        self._roots = {**dict(_roots(query_block)), **{alias: nodes[0] for alias, nodes in opened.items()}}

    def disk_node(self, disk: Disk) -> DiskNode:
        """The disk's layers in QEMU, found by its alias and checked against its XML.

        Raises DiskError where QEMU has no such device, no medium in it, or another image open.
        """
        root = self._roots.get(disk.alias)
        if root is None:
            known = ", ".join(sorted(self._roots)) or "none"
            raise DiskError(
                disk.dev,
                f"QEMU has no disk device with the alias {disk.alias} (it has: {known}). Was it just detached?",
            )
        layers = []
        for node_name in self.chains.get(disk.alias, (root,)):
            node = self._nodes.get(node_name)
            if node is None:
                raise DiskError(disk.dev, f"QEMU uses node {node_name} for it but does not list that node; try again.")
            if node.driver not in FILTERS:
                layers.append(node.layer)
        if not layers:
            raise DiskError(disk.dev, f"below node {root} QEMU shows only filters; is a block job still starting?")
        _check_against_xml(disk, layers[0])
        return DiskNode(disk, tuple(layers))


def _check_against_xml(disk: Disk, top: Layer) -> None:
    """Refuse to back up an image that libvirt does not believe to be the disk's."""
    opened = _plain_path(top.filename)
    if disk.path is not None and opened is not None and opened != disk.path:
        raise DiskError(
            disk.dev,
            f"libvirt says its image is {disk.path}, but QEMU has {opened} open; was it changed behind libvirt's back?",
        )
    if disk.format == "qcow2" and top.driver != "qcow2":
        raise DiskError(disk.dev, f"libvirt says its format is qcow2, but QEMU opened it as {top.driver}.")


def _plain_path(filename: str) -> str | None:
    """The path in QEMU's filename, None where it is a descriptor or not a local file."""
    filename = _innermost(filename)
    return filename if filename.startswith("/") and not filename.startswith("/dev/fdset/") else None


def _innermost(filename: str) -> str:
    """What the protocol node opened: QEMU shows a node that has options of its own as ``json:`` and these."""
    if not filename.startswith("json:"):
        return filename
    try:
        options = json.loads(filename[len("json:") :])
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"QEMU gave a file name that is not JSON after json: ({err}).") from err
    while isinstance(options, dict) and isinstance(options.get("file"), dict):
        options = options["file"]
    inner = options.get("filename", "") if isinstance(options, dict) else ""
    return inner if isinstance(inner, str) else ""


def _alias(qdev: str) -> str:
    """The device's alias: ``/machine/peripheral/ALIAS/virtio-backend``, or the alias itself (SCSI, SATA, IDE)."""
    marker = "/machine/peripheral/"
    return qdev[len(marker) :].split("/", 1)[0] if qdev.startswith(marker) else qdev


def _roots(reply: Any) -> Iterable[tuple[str, str]]:
    for entry in objects(reply, "query-block", MalformedError):
        qdev = entry.optional_text("qdev")
        if qdev and "inserted" in entry:
            yield _alias(qdev), entry.object("inserted").text("node-name")


def chains_of(reply: Any) -> dict[str, tuple[str, ...]]:
    """By alias the nodes that stand on each other, filters included, the root first, from query-blockstats.

    Raises MalformedError.
    """
    found = {}
    for entry in objects(reply, "query-blockstats", MalformedError):
        qdev = entry.optional_text("qdev")
        if not qdev or "node-name" not in entry:
            continue
        node = entry
        chain = [node.text("node-name")]
        while "backing" in node:
            node = node.object("backing")
            chain.append(node.text("node-name"))
            if len(chain) > MAX_LAYERS:
                raise MalformedError(f"query-blockstats shows a backing chain of over {MAX_LAYERS} nodes for {qdev}.")
        found[_alias(qdev)] = tuple(chain)
    return found


def _nodes(reply: Any) -> Iterable[tuple[str, _Node]]:
    for entry in objects(reply, "query-named-block-nodes", MalformedError):
        name = entry.text("node-name")
        image = entry.object("image")
        bitmaps = {
            bitmap.name: bitmap
            for bitmap in (_bitmap(one) for one in (entry.objects("dirty-bitmaps") if "dirty-bitmaps" in entry else ()))
            if bitmap.name
        }
        driver = entry.text("drv")
        layer = Layer(
            node_name=name,
            driver=driver,
            read_only=entry.boolean("ro"),
            virtual_size_bytes=image.integer("virtual-size"),
            filename=entry.text("file"),
            stores_bitmaps=driver == "qcow2" and _compat(image) != QCOW2_V2,
            bitmaps=bitmaps,
        )
        yield name, _Node(driver, layer, _options(entry))


def _options(entry: Fields) -> NodeOptions:
    """QAPI BlockDeviceInfo's cache and detect_zeroes."""
    cache = entry.object("cache") if "cache" in entry else None
    return NodeOptions(
        no_flush=cache is not None and cache.boolean("no-flush"),
        detect_zeroes=entry.optional_text("detect_zeroes") == "on",
    )


def _compat(image: Fields) -> str | None:
    """QAPI ImageInfoSpecificQCow2's compat; "0.10" is qcow2 version 2, which libvirt's storage pools still make."""
    specific = image.object("format-specific") if "format-specific" in image else None
    if specific is None or "data" not in specific:
        return None
    return specific.object("data").optional_text("compat")


def _bitmap(entry: Fields) -> Bitmap:
    return Bitmap(
        name=entry.optional_text("name") or "",  # a running backup shows an unnamed one
        recording=entry.boolean("recording"),
        busy=entry.boolean("busy"),
        persistent=entry.boolean("persistent"),
        inconsistent="inconsistent" in entry and entry.boolean("inconsistent"),
        granularity_bytes=entry.integer("granularity"),
        dirty_bytes=entry.integer("count"),
    )
