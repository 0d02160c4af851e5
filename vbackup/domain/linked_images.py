"""Images on another host, opened there: by a storage daemon at the other end of the link (vbackup.remote.link).

They are qcow2 images without a backing file, as those of a standby are. The daemon there ends with the link, however
that ends, and stores the images' bitmaps then; so does the end of the block here.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from vbackup.domain import chain_states
from vbackup.domain.freeze import Freeze
from vbackup.domain.host import DomainHandle
from vbackup.errors import BusyError, ChainError, DiskError, QmpError, RemoteError
from vbackup.model import BlockDriver, Consistency, Disk, DiskNode, Domain, FreezeMark, Layer, Quiesce, SecretRef
from vbackup.process import OpenFiles
from vbackup.qemu import qcow2
from vbackup.qemu.backing_chain import Image
from vbackup.qemu.monitor import Monitor, block_graph
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.remote.daemon import Hypervisor
from vbackup.remote.link import Link
from vbackup.report import Reporter

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class LinkedDaemon:
    """A storage daemon on another host, with an NBD server."""

    daemon: StorageDaemon
    link: Link
    nbd: Path  #: the socket of its NBD server, on this host

    def open(self, disk: Disk) -> None:
        """Open the image of a disk for writing. Raises DiskError, BusyError."""
        path = disk.path
        if path is None or len(disk.images) != 1 or disk.format != BlockDriver.QCOW2:
            raise DiskError(disk.dev, "it is not in one qcow2 image.")
        self._refuse_unfit(disk, path)
        image = Image(path, BlockDriver.QCOW2, is_block_device=False, identity=(0, 0))
        try:
            self.daemon.open(disk.alias, [image], secret_value=_no_secret)
        except QmpError as err:
            if err.description.is_of_lock:
                raise BusyError(f"The image {path} on {self.link.host} is open in another process.") from err
            raise DiskError(disk.dev, f"QEMU cannot open {path}: {err.description}", cause=err.description) from err

    def _refuse_unfit(self, disk: Disk, path: str) -> None:
        """Raise DiskError if there is no such image, or it depends on another one."""
        header = header_of(self.link, disk.dev, path)
        if header.backing_file is not None or header.has_data_file or header.encrypted:
            raise DiskError(disk.dev, f"{path} depends on another image, or is encrypted.")


def header_of(link: Link, dev: str, path: str) -> qcow2.Header:
    """Return the header of a disk's image on the other host. Raises DiskError if there is no such image."""
    pieces = link.read_file(path)
    try:
        return qcow2.header_in(next(pieces, b""), Path(path))
    except (ChainError, RemoteError) as err:
        raise DiskError(dev, str(err), cause=str(err).rstrip(".")) from err
    finally:
        pieces.close()  # type: ignore[attr-defined]


def _no_secret(secret: SecretRef) -> bytes:
    raise AssertionError(f"an image without encryption has no secret {secret}")


@contextmanager
def daemon_there(link: Link, reporter: Reporter) -> Iterator[LinkedDaemon]:
    """Run a storage daemon on the other host during the block, which ends with the link at the latest.

    Raises UnsuitableError if it is not installed there, and what the link raises.
    """
    with StorageDaemon(reporter, elsewhere=Hypervisor(link)) as daemon:
        path = f"{link.directory()}/nbd-{next(_NUMBERS)}"
        daemon.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": path}}})
        with link.connected(path) as socket:
            yield LinkedDaemon(daemon, link, socket)


class LinkedSource:
    """The disks of a domain that is off, on another host (vbackup.domain.source.Source)."""

    def __init__(self, handle: DomainHandle | None, domain: Domain, there: LinkedDaemon) -> None:
        """``handle``: None for a domain that libvirt does not have yet."""
        self._handle = handle
        self.domain = domain
        self._there, self._daemon = there, there.daemon

    @property
    def handle(self) -> DomainHandle:
        """The domain in libvirt."""
        assert self._handle is not None
        return self._handle

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
        """Open each disk when it is first asked for."""
        for disk in disks:
            if disk.alias not in self._daemon.chains:
                self._there.open(disk)
        graph = block_graph(self._daemon, chains=self._daemon.chains)
        return [dataclasses.replace(graph.disk_node(disk), lasting=False) for disk in disks]

    def open_files(self) -> OpenFiles | None:
        """Return None: they are on another host."""
        return None

    def look_at(self, nodes: Sequence[DiskNode]) -> list[DiskNode]:
        """Note the names of the files; there is nothing below the images that could be compared."""
        return [dataclasses.replace(one, looked_at=chain_states.of_other_host(one, mark=None)) for one in nodes]

    def mark_devices(self, disks: Sequence[Disk]) -> None:
        """Do nothing: there are no devices."""

    def writable(self, layer: Layer) -> AbstractContextManager[None]:
        """Change nothing: each image is open for writing."""
        return nullcontext()

    def store(self, layer: Layer) -> None:
        """Store what QEMU has in memory of an image. Raises QmpError."""
        self._daemon.store(layer.node_name)

    def close_disk(self, disk: Disk) -> None:
        """Close the image of a disk if it is open."""
        if disk.alias in self._daemon.chains:
            self._daemon.close(disk.alias)

    def reason_not_to_write(self, layer: Layer) -> str | None:
        """Return None: QEMU's locks keep others out."""
        return None

    def locked_out(self) -> BusyError:
        """Say what little is known."""
        return BusyError("Another process has an image open; run the same command again.")

    def unchanged(self) -> AbstractContextManager[None]:
        """Look at nothing."""
        return nullcontext()

    def prepare_freeze(self, quiesce: Quiesce, *, limit_s: int) -> None:
        """Do nothing: there is no guest to freeze."""

    @property
    def freeze_mark(self) -> FreezeMark:
        """Nothing is frozen."""
        return FreezeMark.NONE

    @contextmanager
    def frozen(self, quiesce: Quiesce, reporter: Reporter, *, link: Link | None = None) -> Iterator[Freeze]:
        """Freeze nothing: no guest runs."""
        yield Freeze(Consistency.OFFLINE)

    def thaw(self, reporter: Reporter, *, mark: FreezeMark) -> None:
        """Do nothing: there is no guest."""

    def is_guest_stopped(self) -> bool:
        """Return False: there is no guest."""
        return False

    def resume(self, reporter: Reporter, *, guest_was_stopped: bool) -> None:
        """Do nothing: there is no guest."""
