"""Open the images of disks in a storage daemon: for writing where they may be written, else only for reading.

A backup writes nothing into an image but its bitmaps. Where that is not possible, or nobody can know that it is safe,
the disk is still read, and its backup is a full without a bitmap. vbackup.domain.access knows what is safe,
vbackup.domain.offline which disks are asked for.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

from vbackup.domain.access import Access
from vbackup.domain.image_host import ImageHost, ImagesHere
from vbackup.domain.own_writes import OwnWrites
from vbackup.errors import BusyError, DiskError, QmpError, UnsuitableError
from vbackup.model import BlockDriver, Disk, DiskNode, SecretRef
from vbackup.qemu.backing_chain import Image
from vbackup.qemu.monitor import block_graph
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Reporter

#: How long to try for an image that somebody else is only reading: a look at it with qemu-img ends soon, and a full in
#: place of an incremental costs more. Between two attempts there is a pause.
READER_S, PAUSE_S = 0.5, 0.1


class OpenImages:
    """Opens the chains of disks in a storage daemon, the active images for writing where that is allowed."""

    def __init__(
        self,
        daemon: StorageDaemon,
        access: Access,
        *,
        owner: str,
        volume_path: Callable[[str, str], str],
        secret_value: Callable[[SecretRef], bytes],
        reporter: Reporter,
        writes: OwnWrites,
        host: ImageHost | None = None,
    ) -> None:
        """``owner``: name of the domain; ``host``: where daemon and images are, if not here."""
        self.daemon = daemon
        self.writes = writes
        self.host = host or ImagesHere()
        self._access = access
        self._owner = owner
        self._volume_path = volume_path
        self._secret_value = secret_value
        self._reporter = reporter
        self._images: dict[str, Image] = {}  #: by node name
        self._tops: dict[str, Image] = {}  #: the active images, by the disk's alias
        self._reasons: dict[str, str] = {}  #: why an active image is only read, by the disk's alias

    def open(self, disks: Sequence[Disk]) -> bool:
        """Open the disks that are not open yet; return False if there is none.

        Raises DiskError, BusyError, and what ``Access.check`` raises while it waits for another backup.
        """
        new = [disk for disk in disks if disk.alias not in self.daemon.chains]
        chains = {}
        for disk in new:
            with _refusals(disk, self.host):
                chains[disk.alias] = self.host.images_of(disk, self._volume_path)
        self._tops.update((alias, images[0]) for alias, images in chains.items())
        for disk in new:
            reason = self._reason_to_read_only(chains[disk.alias][0])
            if reason is not None:
                self._reasons[disk.alias] = reason
        self._claim(chains)
        for disk in new:
            with _refusals(disk, self.host):
                self._open(disk, chains[disk.alias])
        return bool(new)

    def close(self, disk: Disk) -> None:
        """Close the images of a disk that is open."""
        for name in self.daemon.chains[disk.alias]:
            self._images.pop(name, None)
        self.daemon.close(disk.alias)

    def nodes(self, disks: Sequence[Disk]) -> list[DiskNode]:
        """Return the disks' layers and bitmaps as they are now."""
        graph = block_graph(self.daemon, chains=self.daemon.chains)
        nodes = []
        for disk in disks:
            node = dataclasses.replace(graph.disk_node(disk), lasting=False)
            # What cannot store bitmaps anyway is not said to lack one for another reason.
            counts = node.top.stores_bitmaps or self._access.writes_data
            reason = self._reasons.get(disk.alias) if counts else None
            nodes.append(dataclasses.replace(node, read_only_reason=reason))
        return nodes

    def reason_not_to_write(self, node_name: str) -> str | None:
        """Return why an open image is only read, or may not be written if it is a layer below; None if it may be."""
        for alias, names in self.daemon.chains.items():
            if names[0] == node_name:
                return self._reasons.get(alias)
        image = self._images.get(node_name)
        return self._reason_to_read_only(image) if image is not None else None

    def busy(self, images: Sequence[Image] = ()) -> BusyError:
        """Return the error that says who else has one of the images, or of all that are open here, open."""
        for image in images or self._images.values():
            users = self.host.users_of(image.path, but=self.daemon.pid)
            if users:
                return BusyError(
                    f"The image {image.path} is open in {users[0]}, which keeps others out; run the same command again"
                    " when it is not."
                )
        which = f"the image {images[0].path}" if images else "the image of one of the disks"
        return BusyError(f"Another process, perhaps on another host, has {which} open; run the same command again.")

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Raise BusyError at the end of the block if a file that is only read was written to meanwhile.

        QEMU's locks prevent that, where they reach. A block device or a FUSE mount does not show it. An external data
        file is only read, also that of an image that gets bitmaps.
        """
        before = self.stamps()
        yield
        for path, stamp in before.items():
            if self.host.stamp(path) != stamp:
                raise BusyError(
                    f"The image {path} was changed while it was read: another host has it open. Nothing was kept of"
                    " this backup; back up the domain where it runs."
                )

    def stamps(self) -> Mapping[str, tuple[int, int]]:
        """Return modification time in ns and size in bytes of the open files that are only read, where they count."""
        written = {names[0] for alias, names in self.daemon.chains.items() if self._may_write(alias)}
        files = [image.path for name, image in self._images.items() if name not in written]
        files += [image.data_file for image in self._images.values() if image.data_file is not None]
        return {path: stamp for path in files if (stamp := self.host.stamp(path)) is not None}

    def _claim(self, chains: Mapping[str, Sequence[Image]]) -> None:
        """Wait until no other backup of this command has one of the images open in a way that excludes this one."""
        wanted = {image.identity: False for image in chain.from_iterable(chains.values())}
        wanted.update((images[0].identity, True) for alias, images in chains.items() if self._may_write(alias))
        if wanted:
            self._access.images_in_use.claim(
                self._owner,
                wanted,
                waits_for=lambda other: self._reporter.step(
                    f"Waiting for the backup of domain {other}, which uses an image of this domain too."
                ),
                check=self._access.check,
            )

    def _may_write(self, alias: str) -> bool:
        if alias in self._reasons or self._access.only_reads:
            return False
        # Bitmaps are all that vbackup itself writes, and only qcow2 has them.
        return self._access.writes_data or self._tops[alias].format == BlockDriver.QCOW2

    def _open(self, disk: Disk, images: Sequence[Image]) -> None:
        if not self._may_write(disk.alias) or not self._open_for_writing(disk, images):
            try:
                self.daemon.open(disk.alias, images, secret_value=self._secret_value, read_only=True)
            except QmpError as err:
                if err.description.is_of_lock:
                    raise self.busy(images) from err
                raise
        self._images.update(zip(self.daemon.chains[disk.alias], images))

    def _open_for_writing(self, disk: Disk, images: Sequence[Image]) -> bool:
        """Return False, and note why, if the active image can at most be read."""
        pause, left_s = threading.Event(), READER_S
        while True:
            if self.host.is_here:
                self.writes.expect(images[0].path)
            try:
                self.daemon.open(disk.alias, images, secret_value=self._secret_value)
            except QmpError as err:
                why = self._why_not_written(images[0], err)
                if why is None:
                    raise
                if err.description.is_of_lock and left_s > 0:
                    left_s -= PAUSE_S
                    pause.wait(PAUSE_S)
                    continue
                self._reasons[disk.alias] = f"its image {images[0].path} {why}, so it is only read"
                return False
            return True

    def _why_not_written(self, image: Image, err: QmpError) -> str | None:
        """Return what QEMU's refusal to open the image for writing means, None if it would not open it for reading."""
        if err.description.is_of_lock:
            users = self.host.users_of(image.path)
            return f"is open in {users[0] if users else 'another process'}"
        if err.description.is_unwritable:
            return f"cannot be written ({err.description.rpartition(': ')[2].rstrip('.')})"
        return None

    def _reason_to_read_only(self, image: Image) -> str | None:
        """Return why the image should not be written: another host, or another member of the group, may have it open.

        The text is a clause that begins with "its image".
        """
        others = self._access.images_in_use.others(self._owner, image)
        if others:
            return f"its image {image.path} is also used by domain {others[0]} of the same group, so it is only read"
        why = None if self._access.exclusive else self.host.doubt(image)
        if why is None:
            return None
        return (
            f"its image {image.path} {why}, so it is only read; if this host alone uses it, --exclusive lets vbackup"
            " write bitmaps to it"
        )


@contextmanager
def _refusals(disk: Disk, host: ImageHost) -> Iterator[None]:
    """Translate what QEMU and libvirt say about opening a disk."""
    path = disk.path or f"of disk {disk.dev}"
    try:
        yield
    except QmpError as err:
        cause = f"its image {path} cannot be opened: {err.description.rstrip('.')}"
        if err.description.is_denied and disk.path is not None:
            raise DiskError(
                disk.dev,
                f"{cause}. {host.why_denied(disk.path)} Or leave the disk out with --exclude-disk {disk.dev}.",
                cause=cause,
            ) from err
        raise DiskError(
            disk.dev,
            f"{cause}. Leave it out with --exclude-disk {disk.dev}, or fix it.",
            cause=cause,
        ) from err
    except DiskError:
        raise  # it names the disk already
    except UnsuitableError as err:
        raise DiskError(disk.dev, str(err)) from err
