"""Write the content that a disk had at a backup as one image on another host, through the link to it.

A storage daemon there, which ends with the link, exports a new image; the link forwards its socket to this host. Here
the point is opened as it is to look into it, and qemu-img copies one export to the other: what reads as zeros is not
sent. Then what the image there shows is read again, and compared with the block lists.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from vbackup.errors import LinkLostError, RemoteError, StorageError
from vbackup.images import written
from vbackup.model import ImageFormat
from vbackup.qemu import qemu_img
from vbackup.qemu.monitor import Monitor
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_layer import NbdLayer
from vbackup.qemu.qmp_socket import Socket
from vbackup.qemu.storage_daemon import END_S, PROGRAM
from vbackup.remote.link import Link
from vbackup.report import Phase, Reporter
from vbackup.repository import verify
from vbackup.repository.block_list import BLOCK_BYTES, BlockList
from vbackup.repository.history import Link as ChainLink
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: How long a storage daemon there may take until it listens.
START_S = 30.0
#: How long is waited between two looks at its socket.
_TICK_S = 0.05
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
        with served(self.link, image) as one:
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
            one.monitor.execute("block-export-del", {"id": _EXPORT, "mode": "hard"})
            finish(one)
        self.link.run(["sync", image.path], timeout_s=END_S)
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
def served(link: Link, image: ImageThere) -> Iterator[Served]:
    """Make the image there, and yield it, open, while the block runs.

    At the end the daemon there closes it. Raises RemoteError, StorageError if that fails.
    """
    link.write_file(image.path, [])  # with the mode that it is to have
    argv = ["qemu-img", "create", "-q", "-f", image.image_format.value, image.path, str(image.size_bytes)]
    link.run(argv)
    directory = link.directory()
    sockets = [f"{directory}/{image.dev}.{kind}" for kind in ("nbd", "qmp")]
    node = _node(image)
    pid = link.start(_daemon(node, image.dev, *sockets))
    try:
        for socket in sockets:
            _wait(link, pid, socket)
        address = NbdAddress(image.dev, path=link.connect(sockets[0]))
        with Socket(os.fspath(link.connect(sockets[1])), name=f"{PROGRAM} on {link.host}") as monitor:
            yield Served(address, monitor, node)
    except BaseException:
        _kill(link, pid)
        raise
    link.signal(pid, signal.SIGTERM)  # it closes the image
    ended = link.ended(pid, within_s=END_S)
    if ended is None or ended.status != 0:
        said = "it did not end" if ended is None else _last(ended.stderr, ended.status)
        raise StorageError(f"{PROGRAM} on {link.host} could not close {image.path}: {said}.")


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


def _daemon(node: Mapping[str, Any], dev: str, nbd: str, qmp: str) -> list[str]:
    server = {"addr": {"type": "unix", "path": nbd}, "max-connections": 0}
    export = {"type": "nbd", "id": _EXPORT, "node-name": node["node-name"], "name": dev, "writable": True}
    return [
        *(PROGRAM, "--blockdev", json.dumps(node)),
        *("--nbd-server", json.dumps(server)),
        *("--export", json.dumps(export)),
        *("--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "--monitor", "chardev=qmp"),
    ]


def _wait(link: Link, pid: int, socket: str) -> None:
    """Wait until the daemon listens."""
    deadline = time.monotonic() + START_S
    while True:
        ended = link.ended(pid, within_s=_TICK_S)
        if ended is not None:
            raise RemoteError(link.host, f"start {PROGRAM}", _last(ended.stderr, ended.status))
        if _is_there(link, socket):
            return
        if time.monotonic() > deadline:
            raise RemoteError(link.host, f"start {PROGRAM}", f"it does not listen after {START_S:.0f} s")


def _is_there(link: Link, path: str) -> bool:
    try:
        link.stat(path)
    except RemoteError:
        return False
    return True


def _kill(link: Link, pid: int) -> None:
    with suppress(LinkLostError, RemoteError):  # the helper ends it with the link
        link.signal(pid, signal.SIGKILL)


def _last(words: str, status: int) -> str:
    lines = words.strip().splitlines()
    return lines[-1].removeprefix(f"{PROGRAM}: ").rstrip(".") if lines else f"it ended with status {status}"
