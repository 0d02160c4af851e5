"""Write the content that a disk had at a backup as one image on another host, through the link to it.

A storage daemon there, which ends with the link, exports a new image; the link forwards its socket to this host. Here
the point is opened as it is to look into it, and qemu-img copies one export to the other: what reads as zeros is not
sent. Then what the image there shows is read again, and compared with the block lists.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vbackup.images import written
from vbackup.images.flatten import layers_of
from vbackup.images.opened_point import OpenedPoint
from vbackup.images.restoring import Restoring
from vbackup.model import ImageFormat
from vbackup.qemu import exports, qemu_img
from vbackup.qemu.monitor import Monitor
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_layer import NbdLayer
from vbackup.qemu.storage_daemon import END_S, StorageDaemon
from vbackup.remote.daemon import Hypervisor
from vbackup.remote.link import Link
from vbackup.report import Phase, Reporter
from vbackup.repository import verify
from vbackup.repository.block_list import BLOCK_BYTES, BlockList
from vbackup.repository.history import Link as ChainLink
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

_EXPORT = "disk"


@dataclass(frozen=True)
class ImageThere:
    """A new image on another host."""

    dev: str
    path: str  #: there
    image_format: ImageFormat
    size_bytes: int


@dataclass(frozen=True)
class Writing:
    """How the disks of one restore are written there."""

    link: Link
    repository: Repository
    reporter: Reporter
    stop: Stop
    speed_bytes_s: int | None = None  #: of each disk

    def write_all(
        self,
        images: Sequence[ImageThere],
        chains: Mapping[str, Sequence[ChainLink]],
        *,
        finish: Callable[[ImageThere, Served], None],
    ) -> None:
        """Make the images of several disks, one after the other; ``chains`` by dev, the newest image first.

        Raises what ``write`` raises.
        """
        paths = {
            one.dev: [(link, verify.image_path(self.repository, link)) for link in chains[one.dev]] for one in images
        }
        with (
            tempfile.TemporaryDirectory(prefix="vbackup-") as directory,
            OpenedPoint(
                {dev: layers_of(chain, self.repository.served) for dev, chain in paths.items()}, reporter=self.reporter
            ) as opened,
        ):
            here = Path(directory)
            opened.listen(here / "nbd")
            restoring = Restoring(self.repository, self.reporter, self.stop, here)
            for one in images:
                export = opened.export_nbd(one.dev)
                with restoring.lists(chains[one.dev]) as lists:
                    source = NbdAddress(one.dev, path=here / "nbd").uri
                    self.write(chains[one.dev], one, source, lists, finish=partial(finish, one))
                opened.remove_export(export)

    def write(
        self,
        chain: Sequence[ChainLink],
        image: ImageThere,
        source: str,
        lists: Sequence[BlockList],
        *,
        finish: Callable[[Served], None],
    ) -> None:
        """Make the image, copy the disk to it from ``source``, an NBD URI, put it on storage there, and check it.

        ``chain`` has the newest image first, and ``lists`` their block lists, if they have any. ``finish`` is called
        when it is written and nobody writes to it any more. Raises StorageError, NoSpaceError,
        DamagedError, OutputDiffersError, RemoteError, LinkLostError, InterruptedBySignalError; what is there then is
        useless.
        """
        place = f"{self.link.host}:{image.path}"
        with served(self.link, image, reporter=self.reporter) as one:
            qemu_img.copy_export(
                source,
                one.address.uri,
                speed_bytes_s=self.speed_bytes_s,
                what=f"copy disk {image.dev} to {place}",
                stop=self.stop,
                progress=lambda percent: self.reporter.progress(
                    image.dev, Phase.WRITE, int(image.size_bytes * percent / 100), image.size_bytes
                ),
            )
            if lists:
                self._check(chain, image, one.address, place, lists)
            exports.end(one.monitor, _EXPORT)
            finish(one)
        self.reporter.step(f"Disk {image.dev}: restored{' and checked' * bool(lists)} on {self.link.host}.")

    def _check(
        self,
        chain: Sequence[ChainLink],
        image: ImageThere,
        address: NbdAddress,
        place: str,
        lists: Sequence[BlockList],
    ) -> None:
        data_bytes = sum(link.image.blocks.data_blocks for link in chain if link.image.blocks) * BLOCK_BYTES
        size_bytes = max(1, min(data_bytes, image.size_bytes))
        paths = [(link, verify.image_path(self.repository, link)) for link in chain]
        with NbdLayer(address) as layer:
            written.check_layer(
                layer,
                place,
                paths,
                lists,
                check=self.stop.check,
                progress=lambda done_bytes: self.reporter.progress(
                    image.dev, Phase.CHECK, min(done_bytes, size_bytes), size_bytes
                ),
            )
        self.reporter.progress(image.dev, Phase.CHECK, size_bytes, size_bytes)


@dataclass(frozen=True)
class Served:
    """An image that a storage daemon there has open."""

    address: NbdAddress  #: where it can be read and written from this host
    monitor: Monitor
    node: Mapping[str, Any]  #: what it was opened with (QAPI BlockdevOptions)


@contextmanager
def served(link: Link, image: ImageThere, *, reporter: Reporter) -> Iterator[Served]:
    """Make the image there, and yield it, open, while the block runs; what was written is on storage at its end.

    Raises RemoteError, UnsuitableError if there is no storage daemon, StorageDaemonGoneError, QmpError, LinkLostError.
    """
    link.write_file(image.path, [])  # with the mode that it is to have
    link.run(["qemu-img", "create", "-q", "-f", image.image_format.value, image.path, str(image.size_bytes)])
    node = _node(image)
    with StorageDaemon(reporter, nodes=[node], elsewhere=Hypervisor(link)) as daemon:
        socket = f"{link.directory()}/{image.dev}.nbd"
        daemon.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": socket}}})
        export = {"type": "nbd", "id": _EXPORT, "node-name": node["node-name"], "name": image.dev, "writable": True}
        daemon.execute("block-export-add", export)
        with link.connected(socket) as path:
            yield Served(NbdAddress(image.dev, path=path), daemon, node)
        # Reopening flushes the image and reports an error, which closing does not.
        daemon.execute("blockdev-reopen", {"options": [{**node, "read-only": True}]})
    link.run(["sync", image.path], timeout_s=END_S)


def _node(image: ImageThere) -> dict[str, Any]:
    backing = {"backing": None} if image.image_format is ImageFormat.QCOW2 else {}
    return {
        "driver": image.image_format.value,
        "node-name": "disk",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": {"driver": "file", "filename": image.path},
        **backing,
    }
