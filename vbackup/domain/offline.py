"""Disks without a QEMU: of a domain that is off, or image files. A storage daemon opens them.

vbackup.domain.source imports this for a domain that is off: a backup of a running one does without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from vbackup.domain import chain_states, domain_xml
from vbackup.domain.freeze import Freeze
from vbackup.domain.host import DomainHandle
from vbackup.errors import BusyError, DiskError, QmpError, UnsuitableError
from vbackup.files import why_denied
from vbackup.hooks.marks import offline_mark
from vbackup.model import (
    BlockDriver,
    Consistency,
    Disk,
    DiskNode,
    Domain,
    ImageLocation,
    Layer,
    Quiesce,
    SecretRef,
    SourceType,
)
from vbackup.qemu import backing_chain
from vbackup.qemu.monitor import Monitor, block_graph
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Reporter


@contextmanager
def open_off(handle: DomainHandle, *, reporter: Reporter) -> Iterator[OffSource]:
    """Open a domain that is off. Raises UnsuitableError if the storage daemon is not installed."""
    # The mark is for the hook script. A start that comes before it is noticed by disk_nodes.
    with offline_mark(handle.uuid):
        domain = domain_xml.parse(handle.live_xml())
        with StorageDaemon(reporter) as daemon:
            yield OffSource(handle, domain, daemon)


class OffSource:
    """The disks of a domain that is off: a storage daemon opens the images as the domain's QEMU would.

    Its locks keep the domain from starting; if the domain was started first, QEMU's locks keep the daemon out. A raw
    image is locked only by its job, because the daemon writes nothing to it.
    """

    def __init__(self, handle: DomainHandle, domain: Domain, daemon: StorageDaemon) -> None:
        self.handle = handle
        self.domain = domain
        self._daemon = daemon

    @property
    def monitor(self) -> Monitor:
        """The storage daemon."""
        return self._daemon

    @property
    def is_running(self) -> bool:
        """Always False."""
        return False

    def has_ended(self) -> bool:
        """Return False: it was not running."""
        return False

    def close_detached(self, nodes: Mapping[str, str]) -> list[str]:
        """Return nothing: libvirt detaches no disk from the daemon."""
        return []

    def disk_nodes(self, disks: Sequence[Disk]) -> list[DiskNode]:
        """Open each disk when it is first asked for, so a disk that is not wanted cannot fail."""
        host = self.handle.host
        new = [disk for disk in disks if disk.alias not in self._daemon.chains]
        for disk in new:
            images = backing_chain.images_of(disk, volume_path=host.volume_path)
            with _refusals(disk, f"Domain {self.handle.name} has been started, or another program has"):
                self._daemon.open(disk.alias, images, secret_value=host.secret_value)
        if new and self.handle.is_active():  # where files cannot be locked, or are not yet
            raise BusyError(f"Domain {self.handle.name} has been started; run the same command again.")
        return _nodes(self._daemon, disks)

    def look_at(self, nodes: Sequence[DiskNode]) -> list[DiskNode]:
        """Look at the files that the daemon has open."""
        files = None
        if any(chain_states.needs_open_files(one) for one in nodes):
            files = chain_states.open_files(self._daemon.pid)
        return [
            dataclasses.replace(one, looked_at=chain_states.of_this_host(one, mark=None, open_files=files))
            for one in nodes
        ]

    def mark_devices(self, disks: Sequence[Disk]) -> None:
        """Do nothing: there are no devices."""

    def writable(self, layer: Layer) -> AbstractContextManager[None]:
        """Reopen a layer below for writing; the active one is writable anyway."""
        return self._daemon.writable(layer.node_name) if layer.read_only else nullcontext()

    def prepare_freeze(self, quiesce: Quiesce, *, limit_s: int) -> None:
        """Do nothing: there is no guest to freeze."""

    @contextmanager
    def frozen(self, quiesce: Quiesce, reporter: Reporter, *, limit_s: int) -> Iterator[Freeze]:
        """Freeze nothing: no guest runs, which satisfies every ``quiesce``."""
        saved = self.handle.has_managed_save()
        if saved:
            reporter.warning(
                "The domain's memory is saved (managed save) and not in the backup: data that the guest had not written"
                " to its disks is missing, as after a power cut."
            )
        yield Freeze(Consistency.CRASH if saved else Consistency.OFFLINE)

    def thaw(self, reporter: Reporter) -> None:
        """Do nothing: there is no guest."""

    def is_guest_stopped(self) -> bool:
        """Return False: there is no guest."""
        return False

    def resume(self, reporter: Reporter, *, guest_was_stopped: bool) -> None:
        """Do nothing: there is no guest."""


class ImageSet:
    """Image files that belong to no domain, opened in a storage daemon."""

    def __init__(self, disks: Sequence[Disk], daemon: StorageDaemon) -> None:
        self.disks = tuple(disks)
        self._daemon = daemon

    @property
    def monitor(self) -> Monitor:
        """The storage daemon that has them open."""
        return self._daemon

    def disk_nodes(self, disks: Sequence[Disk] | None = None) -> list[DiskNode]:
        """Return the layers and bitmaps of the disks (default: all) as they are now."""
        return _nodes(self._daemon, self.disks if disks is None else disks)


@contextmanager
def open_images(images: Sequence[tuple[str, str, BlockDriver]], *, reporter: Reporter) -> Iterator[ImageSet]:
    """Open image files as disks, each given as (dev, path, format), with the backing files that their headers name.

    Raises DiskError for an image that cannot be opened, BusyError if another program has it open, UnsuitableError if
    the storage daemon is not installed.
    """
    disks = [
        Disk(dev, dev, path, image_format, images=(ImageLocation(SourceType.FILE, image_format, path),))
        for dev, path, image_format in images
    ]
    with StorageDaemon(reporter) as daemon:
        for disk in disks:
            with _refusals(disk, "Another program, perhaps a running domain, has"):
                daemon.open(disk.alias, backing_chain.images_of(disk, volume_path=_no_volume), secret_value=_no_secret)
        yield ImageSet(disks, daemon)


def _nodes(daemon: StorageDaemon, disks: Sequence[Disk]) -> list[DiskNode]:
    graph = block_graph(daemon, chains=daemon.chains)
    return [dataclasses.replace(graph.disk_node(disk), lasting=False) for disk in disks]


@contextmanager
def _refusals(disk: Disk, somebody_has: str) -> Iterator[None]:
    """Translate what QEMU and libvirt say about opening a disk."""
    path = disk.path or f"of disk {disk.dev}"
    try:
        yield
    except QmpError as err:
        if err.description.is_of_lock:
            raise BusyError(f"{somebody_has} its image {path} open; run the same command again.") from err
        if err.description.is_denied and disk.path is not None:
            raise DiskError(
                disk.dev,
                f"its image {path} cannot be opened: {err.description.rstrip('.')}. {why_denied(Path(disk.path))} Or"
                f" leave the disk out with --exclude-disk {disk.dev}.",
            ) from err
        raise DiskError(
            disk.dev,
            f"its image {path} cannot be opened: {err.description}. Leave it out with --exclude-disk {disk.dev}, or"
            " fix it.",
        ) from err
    except DiskError:
        raise  # it names the disk already
    except UnsuitableError as err:
        raise DiskError(disk.dev, str(err)) from err


def _no_volume(pool: str, volume: str) -> str:
    raise AssertionError(f"a file is no volume: {volume} of {pool}")


def _no_secret(secret: SecretRef) -> bytes:
    raise AssertionError(f"no image was given a secret: {secret}")
