"""Open the disks of a backup in a storage daemon, each as one flat disk, and export them: by NBD, or as files by FUSE.

Everything that lets somebody look into a backup stands on this: mount, serve, single files, a live restore, the boot
test. Each layer is named explicitly and opened read-only, never by a header, so the chain can have any length and the
repository's files stay as they are in content, owner and mode. The caller has checked the headers
(vbackup.repository.verify) and holds the backups (vbackup.repository.chosen).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vbackup.errors import QmpError, StorageDaemonGoneError, UnsuitableError
from vbackup.images.flatten import Layer
from vbackup.model import ImageFormat
from vbackup.qemu.storage_daemon import Elsewhere, StorageDaemon, Survival
from vbackup.report import Reporter
from vbackup.repository import readers
from vbackup.stop import Stop

#: l2-cache-size of all layers of a disk together, and of each at least: 1 MiB covers 8 GiB of a layer.
CACHE_BYTES, LAYER_CACHE_BYTES = 128 * 1024 * 1024, 1024 * 1024

#: Descriptors of a layer, at most.
_FILES = 3

_NOT_OPENED = "No disk was shown; 'vbackup verify' reads the images and says what is wrong with them."
_NO_MORE = "Nothing can be read of the disks any more; run the same command again."


class OpenedPoint:
    """The disks of a backup while the block runs. A context manager; the thread that enters the block must leave it.

    ``disks`` has the layers of each disk (dev), the oldest first. The daemon ends with this process, however that ends
    (see StorageDaemon), and with it all exports; a file that FUSE showed has to be unmounted then.
    Entering raises UnsuitableError if no storage daemon is installed, StorageDaemonGoneError if a layer cannot be
    opened.
    """

    def __init__(
        self,
        disks: Mapping[str, Sequence[Layer]],
        *,
        reporter: Reporter,
        survival: Survival | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """``survival``: the daemon goes on if this process dies, and with it all exports.

        ``elsewhere``: the host that has the images, and on which the daemon runs, if that is not this one; ``wait`` is
        not for that.
        """
        self._disks = disks
        self._nodes = {dev: f"d{number}" for number, dev in enumerate(disks)}
        self._exports = 0
        self._directory = _working_directory(disks)
        nodes = [node for dev in disks for node in self._layers(dev)]
        directory = self._directory or Path("/")
        self.daemon = StorageDaemon(
            reporter, nodes=nodes, directory=directory, is_only_read=True, survival=survival, elsewhere=elsewhere
        )

    def __enter__(self) -> OpenedPoint:
        # Of a layer that this process serves, its file, a connection and the lock of its backup are open here. The
        # daemon, which has one of each layer, inherits the limit.
        readers.allow_files(_FILES * sum(len(layers) for layers in self._disks.values()))
        try:
            self.daemon.__enter__()
        except StorageDaemonGoneError as err:
            raise StorageDaemonGoneError(err.how, err.last_words, remedy=_NOT_OPENED) from err
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.daemon.__exit__(kind, error, traceback)

    def node(self, dev: str) -> str:
        """Return the node name of the flat, read-only disk; after ``write_to`` that of its overlay."""
        return self._nodes[dev]

    def size_bytes(self, dev: str) -> int:
        """Return the virtual size of the disk."""
        return self._disks[dev][-1].virtual_size_bytes

    def write_to(self, dev: str, overlay: Path) -> None:
        """Let writes of exports that are added from now on go to ``overlay``, an empty qcow2 image of the disk's size.

        What is in the overlay already stays; the header of the overlay names no backing file. Raises QmpError.
        """
        name = f"{self._nodes[dev]}-overlay"
        file = {"driver": "file", "filename": os.fspath(overlay.absolute())}
        below = {"driver": "qcow2", "node-name": name, "file": file, "backing": self._nodes[dev], "discard": "unmap"}
        self.daemon.execute("blockdev-add", below)
        self._nodes[dev] = name

    def answer_all_queries(self, dev: str) -> None:
        """Let no query of the allocation fail, in exports that are added from now on: what cannot be told is data.

        A read of it fails then. A quorum of one does that (quorum_co_block_status in QEMU's block/quorum.c). Raises
        QmpError if this daemon has none.
        """
        name = f"{self._nodes[dev]}-quorum"
        quorum = {"driver": "quorum", "node-name": name, "vote-threshold": 1, "children": [self._nodes[dev]]}
        self.daemon.execute("blockdev-add", {**quorum, "read-only": True})
        self._nodes[dev] = name

    def listen(self, path: Path, *, max_connections: int = 0) -> None:
        """Start the NBD server on a unix socket, whose directory decides who can connect. Raises QmpError.

        ``max_connections``: 0 for any number. The path is at most 107 bytes long (sockaddr_un of Linux).
        """
        address = {"type": "unix", "data": {"path": os.fspath(path.absolute())}}
        self.daemon.execute("nbd-server-start", {"addr": address, "max-connections": max_connections})

    def export_nbd(self, dev: str, *, name: str | None = None, is_writable: bool = False) -> str:
        """Export a disk on the NBD server, by default under its dev, and return the export's id. Raises QmpError."""
        options = {"type": "nbd", "name": name or dev, "writable": is_writable}
        return self._export(dev, options)

    def export_fuse(self, dev: str, file: Path) -> str:
        """Show a disk as the content of ``file``, an existing regular file, and return the export's id.

        Only this user and root can read it. Raises UnsuitableError if this system cannot do that.
        """
        options = {"type": "fuse", "mountpoint": os.fspath(file.absolute()), "growable": False, "allow-other": "off"}
        try:
            return self._export(dev, options)
        except QmpError as err:
            # The helper says on standard error what QEMU does not: "Failed to mount FUSE session to export".
            why = self.daemon.last_words() or err.description
            raise UnsuitableError(
                f"Cannot show disk {dev} as {file}: {why.rstrip('.')}. That needs /dev/fuse, a qemu-storage-daemon with"
                " FUSE and, unless vbackup runs as root, fusermount3 (on Debian: fuse3), which cannot work under"
                " systemd's NoNewPrivileges=."
            ) from err

    def remove_export(self, export: str) -> None:
        """Remove an export, also while somebody uses it, who gets errors then. Raises QmpError."""
        self.daemon.execute("block-export-del", {"id": export, "mode": "hard"})

    def wait(
        self,
        stop: Stop,
        *,
        watched: Sequence[tuple[int, int]] = (),
        is_over: Callable[[], bool] = lambda: False,
        timeout_s: float | None = None,
    ) -> None:
        """Return when a stop is requested, when ``is_over`` says so, or after ``timeout_s`` seconds.

        ``is_over`` is asked first, and whenever one of ``watched`` (descriptors with poll(2) events) has something.
        Raises StorageDaemonGoneError if the daemon ends before.
        """
        timeout_ms = None if timeout_s is None else max(0, timeout_s) * 1000
        ending = os.pidfd_open(self.daemon.pid)
        try:
            with stop.descriptor() as stopping:
                poll = select.poll()
                for fd, events in ((ending, select.POLLIN), (stopping, select.POLLIN), *watched):
                    poll.register(fd, events)
                while stop.signum is None and not is_over():
                    ready = poll.poll(timeout_ms)
                    if not ready:
                        return
                    if ending in (fd for fd, _ in ready):
                        raise self.daemon.gone(remedy=_NO_MORE)
        finally:
            os.close(ending)

    def _export(self, dev: str, options: Mapping[str, Any]) -> str:
        self._exports += 1
        export = f"export{self._exports}"
        self.daemon.execute("block-export-add", {"id": export, "node-name": self._nodes[dev], **options})
        return export

    def _layers(self, dev: str) -> list[dict[str, Any]]:
        return flat_nodes(self._nodes[dev], self._disks[dev], filename=self._filename)

    def _filename(self, layer: Layer) -> str:
        """Return the name of a layer as the header of the one above it has it, from the daemon's working directory.

        Both are those of the repository. Where they differ, QEMU puts the whole chain into the description of each
        layer, and opens 200 layers in 6 s instead of 0.3 s (bdrv_refresh_filename and bdrv_backing_overridden in
        QEMU's block.c).
        """
        path = layer.path.absolute()
        return os.fspath(path) if self._directory is None else f"../{path.parent.name}/{path.name}"


def _working_directory(disks: Mapping[str, Sequence[Layer]]) -> Path | None:
    """Return a directory of a backup, if those of all layers are in the same one, or None."""
    directories = [layer.path.absolute().parent for layers in disks.values() for layer in layers]
    return directories[-1] if len({directory.parent for directory in directories}) == 1 else None


def flat_nodes(
    name: str,
    layers: Sequence[Layer],
    *,
    filename: Callable[[Layer], str] = lambda layer: os.fspath(layer.path.absolute()),
) -> list[dict[str, Any]]:
    """Return the nodes (QAPI BlockdevOptions) that open a chain read-only as one flat disk, which is the node ``name``.

    ``layers`` has the oldest first. The others are ``name`` with a number. They are added in this order.
    """
    nodes: list[dict[str, Any]] = []
    below: str | None = None
    for number, layer in enumerate(layers):
        node_name = name if number == len(layers) - 1 else f"{name}-{number}"
        nodes.append(
            {
                "driver": ImageFormat.QCOW2.value,
                "node-name": node_name,
                "read-only": True,
                "backing": below,
                "l2-cache-size": max(CACHE_BYTES // len(layers), LAYER_CACHE_BYTES),
                "file": _file(layer, filename),
            }
        )
        below = node_name
    return nodes


def _file(layer: Layer, filename: Callable[[Layer], str]) -> dict[str, Any]:
    if layer.address is None:
        return {"driver": "file", "filename": filename(layer)}
    assert layer.address.path is not None
    server = {"type": "unix", "path": os.fspath(layer.address.path)}
    return {"driver": "nbd", "server": server, "export": layer.address.export}
