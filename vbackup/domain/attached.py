"""A QEMU that the user named: a domain's, one behind a QMP socket, or a storage daemon with image files.

``vbackup transaction`` and ``vbackup bitmap`` work on it. vbackup.domain.source opens a domain that is off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbackup.domain import offline, source
from vbackup.domain.access import Access
from vbackup.domain.host import Host
from vbackup.domain.source import Source
from vbackup.errors import CorruptImageError
from vbackup.model import BlockDriver, Disk, DiskNode, ImageFormat
from vbackup.qemu.activity import refuse_inactive
from vbackup.qemu.block_graph import LAYERS_NOT_LISTED
from vbackup.qemu.monitor import Monitor, block_graph, block_nodes
from vbackup.report import Reporter


@dataclass(frozen=True)
class AttachedQemu:
    """An open monitor, and what is known of the QEMU behind it."""

    name: str  #: for messages: the domain's name, the socket's path, ...
    monitor: Monitor
    find_disks: Callable[[], Mapping[str, DiskNode]]
    uuid: str | None = None  #: of the domain
    uri: str | None = None  #: of its libvirt, as the user gave it; None: the default one, or none
    domain: str | None = None  #: the domain's name while libvirt tracks its block graph, else None
    libvirt_checkpoints: frozenset[str] = frozenset()
    is_local: bool = True  #: QEMU has the same files as vbackup
    ends_with_us: bool = False  #: a storage daemon of this command, whose jobs do not outlive it

    def disks(self) -> Mapping[str, DiskNode]:
        """Return the disks by name, with their layers and bitmaps as they are now."""
        return self.find_disks()

    def bitmaps(self) -> Mapping[str, frozenset[str]]:
        """Return the names of the bitmaps of each node."""
        nodes = block_nodes(self.monitor)
        return {name: frozenset(nodes.bitmaps(name)) for name in nodes.node_names()}

    def libvirt_nodes(self) -> Mapping[str, str]:
        """Return the nodes that libvirt tracks, each with its disk's dev ("" for others); empty without libvirt."""
        if self.domain is None:
            return {}
        graph = block_graph(self.monitor)
        nodes = {name: "" for name in graph.node_names() if name.startswith("libvirt-")}
        nodes.update((name, "") for chain in graph.chains.values() for name in chain)
        nodes.update((layer.node_name, dev) for dev, disk in self.disks().items() for layer in disk.layers)
        return nodes


@contextmanager
def of_domain(host: Host, name: str, *, reporter: Reporter, access: Access | None = None) -> Iterator[AttachedQemu]:
    """Open the domain's QEMU, or a storage daemon with its disks if it is off.

    Raises what vbackup.domain.source.open_source raises.
    """
    handle = host.domain(name)
    with source.open_source(handle, reporter=reporter, access=access) as opened:
        warned: set[str] = set()

        def warn(message: str) -> None:
            if message not in warned:
                warned.add(message)
                reporter.warning(message)

        def disks() -> dict[str, DiskNode]:
            return {node.disk.dev: node for node in _healthy(opened, warn)}

        is_running = opened.is_running
        if not is_running:
            disks()  # opens them, so that their nodes can be named
        yield AttachedQemu(
            handle.name,
            opened.monitor,
            disks,
            uuid=handle.uuid,
            uri=host.uri,
            domain=handle.name if is_running else None,
            libvirt_checkpoints=handle.checkpoints(),
            is_local=host.is_local,
            ends_with_us=not is_running,
        )


def _healthy(opened: Source, warn: Callable[[str], None]) -> Iterator[DiskNode]:
    """Yield the domain's disks, except those whose images were found corrupt; ``warn`` gets a sentence about each."""
    try:
        nodes = opened.disk_nodes(opened.domain.disks)
    except CorruptImageError:
        nodes = []
        for disk in opened.domain.disks:
            try:
                nodes += opened.disk_nodes([disk])
            except CorruptImageError as err:
                warn(str(err))
    for node in nodes:
        if not node.lists_bitmaps:
            warn(f"Disk {node.disk.dev}: {LAYERS_NOT_LISTED}.")
        yield node


@contextmanager
def of_socket(path: str) -> Iterator[AttachedQemu]:
    """Open a QEMU without libvirt; its disks have the names of their devices.

    Raises ConnectionLostError, InactiveError.
    """
    from vbackup.qemu.qmp_socket import Socket

    with Socket(path) as monitor:
        refuse_inactive(monitor, f"The QEMU at {path}", resume="the QMP command cont")

        def disks() -> dict[str, DiskNode]:
            graph = block_graph(monitor)
            return {alias: graph.disk_node(_device(alias)) for alias in graph.chains}

        yield AttachedQemu(path, monitor, disks)


@contextmanager
def of_images(
    images: Sequence[tuple[str, Path, ImageFormat]], *, reporter: Reporter, access: Access | None = None
) -> Iterator[AttachedQemu]:
    """Open image files in a storage daemon, each with the name that it has as a disk.

    Raises what vbackup.domain.offline.open_images raises.
    """
    described = [(dev, str(path), BlockDriver(image_format.value)) for dev, path, image_format in images]
    with offline.open_images(described, reporter=reporter, access=access) as opened:

        def disks() -> dict[str, DiskNode]:
            return {node.disk.dev: node for node in opened.disk_nodes()}

        yield AttachedQemu("the storage daemon", opened.monitor, disks, ends_with_us=True)


def _device(alias: str) -> Disk:
    return Disk(dev=alias, alias=alias, path=None, format=BlockDriver.RAW)
