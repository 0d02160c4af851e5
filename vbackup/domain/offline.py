"""Disks without a QEMU: of a domain that is off, or image files. A storage daemon opens them.

vbackup.domain.source imports this for a domain that is off: a backup of a running one does without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from vbackup import process
from vbackup.domain import chain_states, domain_xml, own_writes
from vbackup.domain.access import Access, Identity
from vbackup.domain.freeze import Freeze
from vbackup.domain.host import DomainHandle
from vbackup.domain.image_host import ImageHost, ImagesHere, ImagesThere
from vbackup.domain.opening import OpenImages
from vbackup.domain.own_writes import OwnWrites
from vbackup.errors import BusyError, UnsuitableError, VbackupError
from vbackup.hooks.marks import Work, hand_over, offline_mark
from vbackup.model import (
    BlockDriver,
    Consistency,
    Disk,
    DiskNode,
    Domain,
    FreezeMark,
    ImageLocation,
    Layer,
    Quiesce,
    SecretRef,
    SourceType,
)
from vbackup.process import OpenFiles
from vbackup.qemu import backing_chain
from vbackup.qemu.monitor import Monitor
from vbackup.qemu.storage_daemon import Elsewhere, StorageDaemon, Survival
from vbackup.remote.link import Link
from vbackup.report import Reporter


@contextmanager
def open_off(
    handle: DomainHandle,
    *,
    reporter: Reporter,
    access: Access,
    survival: Survival | None = None,
    elsewhere: Elsewhere | None = None,
) -> Iterator[OffSource]:
    """Open a domain that is off. Raises UnsuitableError if the storage daemon is not installed.

    ``survival``: the daemon survives this process, and the end of the block if ``OffSource.leave`` is called. Of a
    domain on another host the daemon runs there, under the eyes of the link's helper; ``elsewhere`` is one that is
    there already, whose domain is marked, and which survives too.
    """
    host: ImageHost = ImagesHere()
    mark: AbstractContextManager[None]
    if not handle.host.is_local:
        link = handle.host.link(check=access.check)
        host = ImagesThere(link)
        if elsewhere is not None:
            mark = nullcontext()
        else:
            from vbackup.remote.daemon import Hypervisor  # which no domain of this host needs

            elsewhere = Hypervisor(link)
            mark = link.marked(handle.uuid, (Work.RESTORE if access.writes_data else Work.BACKUP).value)
    else:
        mark = offline_mark(handle.uuid)
    # The mark is for the hook script. A start that comes before it is noticed by disk_nodes.
    with mark, access.images_in_use.claims(handle.name):
        domain = domain_xml.parse(handle.live_xml())
        with (
            own_writes.recorded(only_bitmaps=not access.writes_data) as writes,
            StorageDaemon(reporter, survival=survival, elsewhere=elsewhere) as daemon,
        ):
            images = OpenImages(
                daemon,
                access,
                owner=handle.name,
                volume_path=handle.host.volume_path,
                secret_value=handle.host.secret_value,
                reporter=reporter,
                writes=writes,
                host=host,
            )
            yield OffSource(handle, domain, images)


def identities(handle: DomainHandle) -> frozenset[Identity]:
    """Return all images of a domain that is off, as far as they can be found: opening the disk reports the others.

    Empty for a domain that is running or on another host. Raises ConnectionLostError, MonitorError.
    """
    found: set[Identity] = set()
    if handle.host.is_local and not handle.is_active():
        for disk in domain_xml.parse(handle.live_xml()).disks:
            with suppress(VbackupError):
                images = backing_chain.images_of(disk, volume_path=handle.host.volume_path)
                found.update(image.identity for image in images)
    return frozenset(found)


class OffSource:
    """The disks of a domain that is off: a storage daemon opens the images as the domain's QEMU would.

    Its locks keep the domain from starting; if the domain was started first, QEMU's locks keep the daemon out. A raw
    image is locked only by its job, because the daemon writes nothing to it.
    """

    def __init__(self, handle: DomainHandle, domain: Domain, images: OpenImages) -> None:
        self.handle = handle
        self.domain = domain
        self._images = images

    @property
    def monitor(self) -> Monitor:
        """The storage daemon."""
        return self._images.daemon

    @property
    def is_running(self) -> bool:
        """Always False."""
        return False

    @property
    def daemon_pid(self) -> int:
        """Process id of the storage daemon."""
        return self._images.daemon.pid

    def leave(self, session: str) -> None:
        """Let the storage daemon survive the block, for the pull session with this id.

        The hook script refuses to start the domain while it lives.
        """
        daemon = process.Process.of(self._images.daemon.pid) if self._images.host.is_here else None
        if daemon is not None:
            hand_over(self.handle.uuid, daemon, session=session)
        self._images.daemon.leave()

    def stamps(self) -> Mapping[str, tuple[int, int]]:
        """Return modification time in ns and size in bytes of the open files that are only read, where they count."""
        return self._images.stamps()

    def has_ended(self) -> bool:
        """Return False: it was not running."""
        return False

    def close_detached(self, nodes: Mapping[str, str]) -> list[str]:
        """Return nothing: libvirt detaches no disk from the daemon."""
        return []

    def disk_nodes(self, disks: Sequence[Disk]) -> list[DiskNode]:
        """Open each disk when it is first asked for, so a disk that is not wanted cannot fail."""
        try:
            opened = self._images.open(disks)
        except BusyError as err:
            raise self._started() or err from err
        if opened:  # where files cannot be locked, or are not yet
            started = self._started()
            if started is not None:
                raise started
        return self._images.nodes(disks)

    def _started(self) -> BusyError | None:
        if not self.handle.is_active():
            return None
        return BusyError(f"Domain {self.handle.name} has been started; run the same command again.")

    def locked_out(self) -> BusyError:
        """Say whether the domain has been started, or who else has one of its images open."""
        return self._started() or self._images.busy()

    def unchanged(self) -> AbstractContextManager[None]:
        """Look at the modification times, which show what another host wrote where locks do not reach."""
        return self._images.unchanged()

    def reason_not_to_write(self, layer: Layer) -> str | None:
        """Return why the layer is only read: what keeps bitmaps from being removed from it."""
        return self._images.reason_not_to_write(layer.node_name)

    def open_files(self) -> OpenFiles | None:
        """Look at the daemon in /proc, if it is on this host."""
        return process.open_files(self._images.daemon.pid) if self._images.host.is_here else None

    def look_at(self, nodes: Sequence[DiskNode]) -> list[DiskNode]:
        """Look at the files that the daemon has open, if it is on this host."""
        if not self._images.host.is_here:
            return [dataclasses.replace(one, looked_at=chain_states.of_other_host(one, mark=None)) for one in nodes]
        files = self.open_files() if any(chain_states.needs_open_files(one) for one in nodes) else None
        return [
            dataclasses.replace(one, looked_at=chain_states.of_this_host(one, mark=None, open_files=files))
            for one in nodes
        ]

    def mark_devices(self, disks: Sequence[Disk]) -> None:
        """Do nothing: there are no devices."""

    def writable(self, layer: Layer) -> AbstractContextManager[None]:
        """Reopen a layer below for writing; the active one is open for writing if it may be written."""
        reason = self.reason_not_to_write(layer)
        if reason is not None:
            raise UnsuitableError(f"{reason}.")
        if not layer.read_only:
            return nullcontext()
        if self._images.host.is_here:
            self._images.writes.expect(layer.filename, is_open=True)
        return self._images.daemon.writable(layer.node_name)

    def store(self, layer: Layer) -> None:
        """Store what QEMU has in memory of an active layer; unlike closing it, this reports errors: QmpError."""
        self._images.daemon.store(layer.node_name)

    def close_disk(self, disk: Disk) -> None:
        """Close the images of a disk if they are open; others may then replace them."""
        if disk.alias in self._images.daemon.chains:
            self._images.close(disk)

    def prepare_freeze(self, quiesce: Quiesce, *, limit_s: int) -> None:
        """Do nothing: there is no guest to freeze."""

    @property
    def freeze_mark(self) -> FreezeMark:
        """Nothing is frozen."""
        return FreezeMark.NONE

    @contextmanager
    def frozen(self, quiesce: Quiesce, reporter: Reporter, *, link: Link | None = None) -> Iterator[Freeze]:
        """Freeze nothing: no guest runs, which satisfies every ``quiesce``."""
        saved = self.handle.has_managed_save()
        if saved:
            reporter.warning(
                "The domain's memory is saved (managed save) and not in the backup: data that the guest had not written"
                " to its disks is missing, as after a power cut."
            )
        yield Freeze(Consistency.CRASH if saved else Consistency.OFFLINE)

    def thaw(self, reporter: Reporter, *, mark: FreezeMark) -> None:
        """Do nothing: there is no guest."""

    def is_guest_stopped(self) -> bool:
        """Return False: there is no guest."""
        return False

    def resume(self, reporter: Reporter, *, guest_was_stopped: bool) -> None:
        """Do nothing: there is no guest."""


class ImageSet:
    """Image files that belong to no domain, opened in a storage daemon."""

    def __init__(self, disks: Sequence[Disk], images: OpenImages) -> None:
        self.disks = tuple(disks)
        self._images = images

    @property
    def monitor(self) -> Monitor:
        """The storage daemon that has them open."""
        return self._images.daemon

    def disk_nodes(self, disks: Sequence[Disk] | None = None) -> list[DiskNode]:
        """Return the layers and bitmaps of the disks (default: all) as they are now."""
        return self._images.nodes(self.disks if disks is None else disks)


@contextmanager
def open_images(
    images: Sequence[tuple[str, str, BlockDriver]], *, reporter: Reporter, access: Access | None = None
) -> Iterator[ImageSet]:
    """Open image files as disks, each given as (dev, path, format), with the backing files that their headers name.

    Raises DiskError for an image that cannot be opened, BusyError if another program has it open, UnsuitableError if
    the storage daemon is not installed.
    """
    disks = [
        Disk(dev, dev, path, image_format, images=(ImageLocation(SourceType.FILE, image_format, path),))
        for dev, path, image_format in images
    ]
    with StorageDaemon(reporter) as daemon:
        opened = OpenImages(
            daemon,
            access or Access(),
            owner="",
            volume_path=_no_volume,
            secret_value=_no_secret,
            reporter=reporter,
            writes=OwnWrites(),  # the user's own transactions: not noted
        )
        opened.open(disks)
        yield ImageSet(disks, opened)


def _no_volume(pool: str, volume: str) -> str:
    raise AssertionError(f"a file is no volume: {volume} of {pool}")


def _no_secret(secret: SecretRef) -> bytes:
    raise AssertionError(f"no image was given a secret: {secret}")
