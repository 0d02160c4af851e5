"""Serve target images by NBD, for a QEMU on another host that pushes the data of a backup here.

A storage daemon on this host has the images open and exports each on a unix socket, in a directory that only this user
may enter. What brings QEMU's connection to that socket is a Connector, by SSH. The images, their tables and their place
in the page cache are then the same as if QEMU wrote them itself: block lists, write-back and commit need to know
nothing of it.

NBD has no compressed writes, so that the daemon compresses (QEMU's filter ``compress``). The filter refuses an image
whose size is no multiple of its clusters: such an image is made larger, a ``raw`` node of the disk's size is exported,
and the image is made smaller at the end.

The daemon ends with this process. What was copied until then is not complete: a recovery undoes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vbackup.errors import MalformedError, QmpError, StorageDaemonGoneError, StorageError, UnsuitableError
from vbackup.fields import objects
from vbackup.files import storage_errors
from vbackup.images import targets, tuning
from vbackup.images.targets import Target
from vbackup.model import CLUSTER_BYTES
from vbackup.qemu.block_graph import BlockNodes
from vbackup.qemu.monitor import Monitor, block_nodes
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Reporter
from vbackup.undo import Undo

#: How long QEMU waits for the server while it opens a node. It stands still meanwhile, and the guest with it, so the
#: server's greeting has arrived before QEMU gets the socket; this limits the rest of the negotiation.
OPEN_TIMEOUT_S = 5
#: How long the daemon may take to end an export whose client has gone.
REMOVAL_S, TICK_S = 30.0, 0.01
#: The longest path of a directory for the socket: sun_path of sockaddr_un(7) has 108 bytes.
_MAX_DIRECTORY_BYTES = 80


class Connector(Protocol):
    """Brings a QEMU to the server's socket."""

    def address(self, monitor: Monitor, name: str) -> dict[str, Any]:
        """Return the address (QAPI SocketAddress) by which the QEMU behind ``monitor`` connects, once.

        ``name`` is that of a descriptor, if it gets one. Raises StorageError, LinkLostError, QmpError.
        """


def rounded_up(size_bytes: int) -> int:
    """Return the size of an image that is compressed into: a multiple of its clusters."""
    return -(-size_bytes // CLUSTER_BYTES) * CLUSTER_BYTES


@dataclass(frozen=True)
class Listening:
    """A port at which clients speak TLS."""

    host: str
    port: int
    creds: Mapping[str, Any]  #: the object with the server's certificate or key


class TargetServer:
    """A storage daemon with target images and an NBD server. A context manager; the thread that enters must leave it.

    Entering raises what StorageDaemon raises.
    """

    def __init__(self, reporter: Reporter, listening: Listening | None = None) -> None:
        """``listening``: where clients connect by TLS; None: a unix socket."""
        self._reporter = reporter
        self._daemon = StorageDaemon(reporter)
        self._listening = listening
        self._sizes: dict[str, int] = {}  #: of the disks, by the node of their image
        self._above: dict[str, list[str]] = {}  #: nodes above an image, the topmost first

    def __enter__(self) -> TargetServer:
        with storage_errors("make a directory for the server of the images"):
            self._directory = _private_directory()
        try:
            self._daemon.__enter__()
            try:
                if self._listening is None:
                    address = {"type": "unix", "data": {"path": os.fspath(self.socket)}}
                    self.monitor.execute("nbd-server-start", {"addr": address, "max-connections": 0})
            except BaseException:
                self._daemon.__exit__(None, None, None)
                raise
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._daemon.__exit__(*exc)  # type: ignore[arg-type]
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def socket(self) -> Path:
        """The socket that the server listens on; only this user may connect."""
        return self._directory / "nbd"

    @property
    def monitor(self) -> Monitor:
        """The monitor of the daemon."""
        return self._daemon

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        return self._daemon.pid

    def refuse_ended(self) -> None:
        """Raise StorageDaemonGoneError if the daemon has ended by itself."""
        try:
            self._daemon.execute("query-version")
        except StorageDaemonGoneError as err:
            raise self._daemon.gone(
                remedy="It writes the images of a backup from another host. Nothing was kept of this backup; run the"
                " same command again."
            ) from err

    def listen(self, connections: int) -> None:
        """Listen by TLS, if that is asked for, for so many connections at once: others have to wait in vain.

        Raises UnsuitableError if the daemon cannot use its certificate or key, or cannot listen there.
        """
        place = self._listening
        if place is None:
            return
        address = {"type": "inet", "data": {"host": place.host, "port": str(place.port)}}
        options = {"addr": address, "tls-creds": place.creds["id"], "max-connections": connections}
        try:
            self.monitor.execute("object-add", dict(place.creds))
            self.monitor.execute("nbd-server-start", options)
        except QmpError as err:
            raise UnsuitableError(
                f"Nothing can be received by TLS at {place.host}:{place.port} with what is in {place.creds['dir']}:"
                f" {err.description.rstrip('.')}."
            ) from err

    def export(self, target: Target, size_bytes: int, *, compress: bool) -> None:
        """Open an image and export it, under the name of its node, as a disk of that size.

        If it has to ``compress``, the image has the size that ``rounded_up`` returns. Raises StorageError, QmpError.
        """
        name = target.node_name
        with Undo(self._reporter) as undo:
            targets.open_in_qemu(self.monitor, [target], undo=undo, options=tuning.node_options(is_local=True))
            undo.release()  # it ends with the daemon
        self._sizes[name] = size_bytes
        above = self._above.setdefault(name, [])
        if compress:
            above.insert(0, f"{name}.zip")
            self.monitor.execute("blockdev-add", {"driver": "compress", "node-name": above[0], "file": name})
            if rounded_up(size_bytes) != size_bytes:
                above.insert(0, f"{name}.cut")
                cut = {"driver": "raw", "node-name": above[0], "file": above[1], "size": size_bytes}
                self.monitor.execute("blockdev-add", cut)
        export = {"type": "nbd", "id": name, "name": name, "node-name": above[0] if above else name, "writable": True}
        self.monitor.execute("block-export-add", export)

    def flush(self) -> None:
        """End the exports, and make the images complete, in the page cache: as large as their disks, with all tables.

        Raises NoSpaceError, StorageError, StorageDaemonGoneError.
        """
        self._end_exports()
        for name, above in self._above.items():
            for node in above:
                self.monitor.execute("blockdev-del", {"node-name": node})
            above.clear()
            if rounded_up(self._sizes[name]) != self._sizes[name]:
                self._resize(name)
        targets.flush_in_qemu(self.monitor, list(self._sizes), options=tuning.node_options(is_local=True))

    def close(self) -> None:
        """Close the images."""
        targets.close_in_qemu(self.monitor, list(self._sizes))
        self._sizes.clear()
        self._above.clear()

    def _resize(self, name: str) -> None:
        try:
            self.monitor.execute("block_resize", {"node-name": name, "size": self._sizes[name]})
        except QmpError as err:
            raise StorageError(
                f"An image could not be made as small as its disk: {err.description.rstrip('.')}. Nothing was kept of"
                " this backup; run the same command again."
            ) from err

    def _end_exports(self) -> None:
        for export in self._exports():
            with contextlib.suppress(QmpError):  # it has just gone
                self.monitor.execute("block-export-del", {"id": export, "mode": "hard"})
        deadline, pause = time.monotonic() + REMOVAL_S, threading.Event()
        while self._exports():
            if time.monotonic() >= deadline:
                raise StorageError(
                    f"The storage daemon did not end its exports within {REMOVAL_S:.0f} s. Nothing was kept of this"
                    " backup; look for hanging storage below the repository, and run the same command again."
                )
            pause.wait(TICK_S)

    def _exports(self) -> list[str]:
        reply = self.monitor.execute("query-block-exports")
        return [entry.text("id") for entry in objects(reply, "query-block-exports", MalformedError)]


@dataclass(frozen=True)
class ServedTargets:
    """Target images that a QEMU, which may be on another host, writes through a server on this one."""

    server: TargetServer
    connector: Connector
    members: Mapping[str, Any] = field(default_factory=dict)  #: what nodes of QEMU have in addition, for TLS

    def open_in_qemu(
        self,
        monitor: Monitor,
        images: Iterable[Target],
        sizes_bytes: Sequence[int],
        *,
        compress: bool,
        undo: Undo,
    ) -> None:
        """Export the images, in order, and open each as a node; ``undo`` gets a step that closes the nodes.

        ``sizes_bytes`` are those of the disks. Raises StorageError, LinkLostError, QmpError.
        """
        names: list[str] = []
        undo.push("close the target images in QEMU", lambda: close_in_qemu(monitor, names))
        self.server.listen(len(sizes_bytes))
        for target, size_bytes in zip(images, sizes_bytes):
            names.append(target.node_name)
            self.server.export(target, size_bytes, compress=compress)
            address = self.connector.address(monitor, target.node_name)
            try:
                monitor.execute("blockdev-add", {**_node(target.node_name, address), **self.members})
            except QmpError as err:
                raise StorageError(
                    f"QEMU cannot use the image {target.path} on this host: {err.description.rstrip('.')}."
                ) from err

    def flush(self, monitor: Monitor, names: Sequence[str]) -> BlockNodes:
        """Close the nodes in QEMU and make the images complete; returns QEMU's nodes as they were.

        Raises what TargetServer.flush raises.
        """
        nodes = block_nodes(monitor)
        # They are open, and have taken their descriptors. Each command is a round trip to the other host.
        for name in nodes.node_names().intersection(names):
            monitor.execute("blockdev-del", {"node-name": name})
        self.server.flush()
        return nodes


def close_in_qemu(monitor: Monitor, names: Sequence[str]) -> None:
    """Close the nodes of these names that are open, and descriptors that no node has taken. Raises QmpError."""
    targets.close_in_qemu(monitor, names)
    for name in names:
        with contextlib.suppress(QmpError):  # there is none, or this QEMU is a storage daemon
            monitor.execute("closefd", {"fdname": name})


def _node(name: str, address: Mapping[str, Any]) -> targets.BlockdevOptions:
    """Return the node that writes to an export. It detects zeros, so that they need not be sent."""
    return {
        "driver": "nbd",
        "node-name": name,
        "server": address,
        "export": name,
        "open-timeout": OPEN_TIMEOUT_S,
        "detect-zeroes": "on",
    }


def _private_directory() -> Path:
    base = tempfile.gettempdir()
    short = base if len(os.fsencode(base)) <= _MAX_DIRECTORY_BYTES else "/tmp"  # noqa: S108 - mkdtemp's is 0700
    return Path(tempfile.mkdtemp(prefix="vbackup-nbd-", dir=short))
