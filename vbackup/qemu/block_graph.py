"""Find the node, layers and bitmaps of each disk in QEMU's block graph.

query-block maps a device (qdev) to its root node. query-blockstats gives the order of the nodes below it, on every
QEMU since 4.0 (query-named-block-nodes has ``children`` only since QEMU 11). query-named-block-nodes has drivers,
sizes and bitmaps, also below filters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbackup.errors import CorruptImageError, DiskError, MalformedError, NotLoadedError, QmpError
from vbackup.fields import Fields, objects
from vbackup.model import QEMUS_OWN, Bitmap, BlockDriver, Disk, DiskNode, Layer, NodeOptions
from vbackup.qemu.partial_graph import Partial

#: Drivers that pass everything on to the node below; a disk's data and bitmaps are never in them.
FILTERS = frozenset(
    BlockDriver(name) for name in
    ("copy-on-read", "throttle", "copy-before-write", "preallocate", "compress", "blkdebug", "blklogwrites",
     "blkreplay", "snapshot-access", "mirror_top", "commit_top", "backup-top")
)  # fmt: skip

#: The compat value of qcow2 version 2. "Cannot store dirty bitmaps in qcow2 v2 files" (block/qcow2-bitmap.c).
QCOW2_V2 = "0.10"

#: Completes "Disk X: ..." where ``DiskNode.lists_bitmaps`` is False.
LAYERS_NOT_LISTED = "QEMU does not list the bitmaps of its lower layers, because the image of another disk is corrupt"

#: A longer backing chain counts as a reply without an end (QEMU itself cannot open more than about 500 images).
MAX_LAYERS = 1000


@dataclass(frozen=True)
class _Node:
    layer: Layer
    options: NodeOptions
    active: bool  #: False while another QEMU may have the image (see vbackup.qemu.activity)
    unloaded: frozenset[str]  #: bitmaps that the image stores and QEMU does not list


class BlockNodes:
    """QEMU's block nodes, from the reply to query-named-block-nodes (QAPI BlockDeviceInfo).

    Raises MalformedError if the reply does not match QAPI.
    """

    def __init__(self, query_named_block_nodes: Any, *, partial: Partial | None = None) -> None:
        """``partial`` takes the place of the reply if QEMU refused it."""
        self._partial = partial
        self._nodes = dict(_nodes(query_named_block_nodes if partial is None else partial.entries()))

    def node_names(self) -> frozenset[str]:
        """Return the names of all nodes."""
        return frozenset(self._nodes) | (self._partial.names if self._partial else frozenset())

    @property
    def refusal(self) -> QmpError | None:
        """Why QEMU did not describe all nodes; None if it did."""
        return self._partial.refusal if self._partial else None

    def is_described(self, node_name: str) -> bool:
        """Return False if nothing but the node's name is known: it can have bitmaps that ``bitmaps`` does not have."""
        return self._partial is None or node_name in self._nodes

    def filename(self, node_name: str) -> str:
        """Return the file name that the node was opened with. Raises MalformedError if there is no such node."""
        node = self._nodes.get(node_name)
        if node is None and self._partial is not None:
            raise MalformedError(f"QEMU cannot describe node {node_name}: {self._partial.refusal.description}")
        if node is None:
            raise MalformedError(f"QEMU no longer lists node {node_name}; did another program close it?")
        return innermost(node.layer.filename)

    def options(self, node_name: str) -> NodeOptions:
        """Return those options of the node that vbackup may set; QEMU's defaults if there is no such node."""
        node = self._nodes.get(node_name)
        return node.options if node else QEMUS_OWN

    def nodes(self) -> Mapping[str, Layer]:
        """Return all nodes by name, including filters and nodes that belong to no disk."""
        return {name: node.layer for name, node in self._nodes.items()}

    def bitmaps(self, node_name: str) -> Mapping[str, Bitmap]:
        """Return the node's bitmaps by name; empty if there is no such node."""
        node = self._nodes.get(node_name)
        return node.layer.bitmaps if node else {}

    def is_read_only(self, node_name: str) -> bool:
        """Return True if the node is open read-only, as layers below the active one are; False without such a node."""
        node = self._nodes.get(node_name)
        return node is not None and node.layer.read_only


class BlockGraph(BlockNodes):
    """QEMU's block nodes and the disks they belong to, from the replies to all three queries.

    Raises MalformedError if a reply does not match QAPI.
    """

    def __init__(
        self,
        query_block: Any,
        query_blockstats: Any,
        query_named_block_nodes: Any,
        *,
        partial: Partial | None = None,
        chains: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """``chains`` adds nodes without a device that the caller opened: disk alias to node names, the top first."""
        super().__init__(query_named_block_nodes, partial=partial)
        own_chains = {alias: tuple(nodes) for alias, nodes in (chains or {}).items()}
        #: Node names from the root down, filters included, by device alias.
        self.chains: Mapping[str, tuple[str, ...]] = {**chains_of(query_blockstats), **own_chains}
        self._roots = {**dict(_roots(query_block)), **{alias: nodes[0] for alias, nodes in own_chains.items()}}

    def disk_node(self, disk: Disk) -> DiskNode:
        """Return the disk's layers in QEMU, found by the disk's alias and checked against its XML.

        Raises DiskError if QEMU has no such device, no medium in it, or another image open, CorruptImageError if QEMU
        found its image corrupt and closed it, NotLoadedError if QEMU does not list all bitmaps that a layer stores.
        """
        root = self._roots.get(disk.alias)
        if self._partial is not None:
            self._nodes.update(self._below(disk, root, self._partial))
        if root is None:
            known = ", ".join(sorted(self._roots)) or "none"
            raise DiskError(
                disk.dev,
                f"QEMU has no disk device with the alias {disk.alias} (it has: {known}). Was the disk just detached?",
            )
        layers = []
        for node_name in self.chains.get(disk.alias, (root,)):
            node = self._nodes.get(node_name)
            if node is None:
                raise DiskError(disk.dev, f"QEMU uses node {node_name} for it but does not list the node; try again.")
            if node.unloaded or not node.active:
                raise NotLoadedError(disk.dev, innermost(node.layer.filename), node.unloaded)
            if node.layer.driver not in FILTERS:
                layers.append(node.layer)
        if not layers:
            raise DiskError(disk.dev, f"QEMU shows only filter nodes from {root} down; is a block job just starting?")
        _check_against_xml(disk, layers[0])
        return DiskNode(disk, tuple(layers))

    def _below(self, disk: Disk, root: str | None, partial: Partial) -> Iterator[tuple[str, _Node]]:
        """Yield the disk's layers below the active one, which only the root's BlockDeviceInfo describes.

        Raises CorruptImageError if QEMU has closed the image, DiskError if the disk cannot be examined otherwise.
        """
        chain = self.chains.get(disk.alias, ())
        if chain and (partial.refusal.description.ejected_node in chain or (root is None and partial.query_block)):
            raise CorruptImageError(disk.dev, disk.path)
        top = self._nodes.get(root or "")
        images = list(_backing_images(partial.query_block, root))
        if top is None or top.layer.driver in FILTERS or len(images) != len(chain) - 1:
            raise DiskError(
                disk.dev,
                f"QEMU cannot describe its nodes at the moment ({partial.refusal.description.rstrip('.')}). If the"
                " image of another disk is corrupt, shut the domain off and repair it; otherwise, try again.",
            )
        for node_name, image in zip(chain[1:], images):
            driver = BlockDriver(image.text("format"))
            layer = Layer(
                node_name=node_name,
                driver=driver,
                read_only=True,
                virtual_size_bytes=image.integer("virtual-size"),
                filename=image.text("filename"),
                lists_bitmaps=False,  # also a raw layer has some, while QEMU lives
                stores_bitmaps=_stores_bitmaps(driver, image),
            )
            yield node_name, _Node(layer, QEMUS_OWN, active=True, unloaded=frozenset())


def _backing_images(query_block: Any, root: str | None) -> Iterator[Fields]:
    """Yield the QAPI ImageInfo of the layers below the root node of a disk."""
    for entry in objects(query_block, "query-block", MalformedError):
        if "inserted" not in entry or entry.object("inserted").text("node-name") != root:
            continue
        image = entry.object("inserted").object("image")
        while "backing-image" in image:
            image = image.object("backing-image")
            yield image


def _check_against_xml(disk: Disk, top: Layer) -> None:
    """Raise DiskError if QEMU has another image or format open than libvirt's XML says."""
    path = _plain_path(top.filename)
    if disk.path is not None and path is not None and path != disk.path:
        raise DiskError(
            disk.dev,
            f"libvirt says that its image is {disk.path}, but QEMU has {path} open; was it changed without libvirt?",
        )
    if disk.format == BlockDriver.QCOW2 and top.driver != BlockDriver.QCOW2:
        raise DiskError(disk.dev, f"libvirt says that its format is qcow2, but QEMU opened it as {top.driver}.")


def _plain_path(filename: str) -> str | None:
    """Return the path in QEMU's file name, or None if it is a descriptor or not a local file."""
    filename = innermost(filename)
    return filename if filename.startswith("/") and not filename.startswith("/dev/fdset/") else None


def innermost(filename: str) -> str:
    """Return the file name of the protocol node; QEMU shows a node with options as ``json:`` and these options."""
    if not filename.startswith("json:"):
        return filename
    try:
        options = json.loads(filename[len("json:") :])
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"QEMU reported a json: file name that is not valid JSON ({err}).") from err
    while isinstance(options, dict) and isinstance(options.get("file"), dict):
        options = options["file"]
    inner = options.get("filename", "") if isinstance(options, dict) else ""
    return inner if isinstance(inner, str) else ""


def alias_of(qdev: str) -> str:
    """Return the alias: ``/machine/peripheral/ALIAS/virtio-backend``, or the alias itself (SCSI, SATA, IDE)."""
    marker = "/machine/peripheral/"
    return qdev[len(marker) :].split("/", 1)[0] if qdev.startswith(marker) else qdev


def _roots(reply: Any) -> Iterable[tuple[str, str]]:
    for entry in objects(reply, "query-block", MalformedError):
        qdev = entry.optional_text("qdev")
        if qdev and "inserted" in entry:
            yield alias_of(qdev), entry.object("inserted").text("node-name")


def chains_of(reply: Any) -> dict[str, tuple[str, ...]]:
    """Return the node names from the root down, filters included, by device alias.

    ``reply`` is that to query-blockstats (QAPI BlockStats). Raises MalformedError if it does not match QAPI.
    """
    chains = {}
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
                raise MalformedError(
                    f"query-blockstats shows a backing chain of more than {MAX_LAYERS} nodes for {qdev}."
                )
        chains[alias_of(qdev)] = tuple(chain)
    return chains


def _nodes(reply: Any) -> Iterable[tuple[str, _Node]]:
    for entry in objects(reply, "query-named-block-nodes", MalformedError):
        name = entry.text("node-name")
        image = entry.object("image")
        bitmaps = map(_bitmap, entry.objects("dirty-bitmaps") if "dirty-bitmaps" in entry else ())
        driver = BlockDriver(entry.text("drv"))
        layer = Layer(
            node_name=name,
            driver=driver,
            read_only=entry.boolean("ro"),
            virtual_size_bytes=image.integer("virtual-size"),
            filename=entry.text("file"),
            allocated_bytes=image.integer("actual-size") if "actual-size" in image else None,
            stores_bitmaps=_stores_bitmaps(driver, image),
            data_file=_of_qcow2(image, "data-file"),
            cluster_bytes=image.integer("cluster-size") if "cluster-size" in image else None,
            bitmaps={bitmap.name: bitmap for bitmap in bitmaps if bitmap.name},
        )
        active = "active" not in entry or entry.boolean("active")  # since QEMU 10.0
        yield name, _Node(layer, _options(entry), active, frozenset(_stored_bitmaps(image)) - layer.bitmaps.keys())


def _options(entry: Fields) -> NodeOptions:
    """Return the node's options, from ``cache`` and ``detect_zeroes`` of QAPI BlockDeviceInfo."""
    cache = entry.object("cache") if "cache" in entry else None
    return NodeOptions(
        no_flush=cache is not None and cache.boolean("no-flush"),
        detect_zeroes=entry.optional_text("detect_zeroes") == "on",
    )


def _stores_bitmaps(driver: BlockDriver, image: Fields) -> bool:
    return driver == BlockDriver.QCOW2 and _of_qcow2(image, "compat") != QCOW2_V2


def _of_qcow2(image: Fields, member: str) -> str | None:
    """Return a member of QAPI ImageInfoSpecificQCow2, such as ``compat`` and ``data-file``; None if it has none.

    libvirt's storage pools still create images whose ``compat`` is "0.10" (version 2).
    """
    specific = image.object("format-specific") if "format-specific" in image else None
    if specific is None or "data" not in specific:
        return None
    return specific.object("data").optional_text(member)


def _stored_bitmaps(image: Fields) -> Iterable[str]:
    """Return the names in ``bitmaps`` of QAPI ImageInfoSpecificQCow2: what the image's own directory lists."""
    specific = image.object("format-specific") if "format-specific" in image else None
    if specific is None or "data" not in specific:
        return ()
    data = specific.object("data")
    return [bitmap.text("name") for bitmap in data.objects("bitmaps")] if "bitmaps" in data else ()


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
