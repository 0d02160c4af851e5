"""Images on another host, opened there: by a storage daemon at the other end of the link (vbackup.remote.link).

They are qcow2 images without a backing file, as those of a standby are. The daemon there ends with the link, however
that ends, and stores the images' bitmaps then; so does the end of the block here.
"""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from vbackup.domain import chain_states
from vbackup.domain.freeze import Freeze
from vbackup.domain.host import DomainHandle
from vbackup.errors import (
    BusyError,
    ChainError,
    ConnectionLostError,
    DiskError,
    FdsNotNeededError,
    QmpError,
    RemoteError,
    StorageDaemonGoneError,
)
from vbackup.model import BlockDriver, Consistency, Disk, DiskNode, Domain, FreezeMark, Layer, Quiesce
from vbackup.process import OpenFiles
from vbackup.qemu import backing_chain, qcow2
from vbackup.qemu.backing_chain import Image
from vbackup.qemu.monitor import Event, Monitor, block_graph
from vbackup.qemu.qmp_socket import Socket
from vbackup.qemu.storage_daemon import PROGRAM
from vbackup.remote.link import Link
from vbackup.report import Reporter

#: How long the daemon there may take to listen, and to store the bitmaps and end.
START_S, END_S = 30.0, 60.0
_TICK_S = 0.05
_NUMBERS = itertools.count(1)


class LinkedDaemon:
    """A storage daemon on another host, and its monitor (vbackup.qemu.monitor.Monitor). A context manager.

    Entering raises RemoteError if it is not installed there, StorageDaemonGoneError if it ends at once, and what the
    link raises.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._numbers = itertools.count(1)
        self._nodes: dict[str, list[dict[str, Any]]] = {}  #: of each disk's alias, the storage first
        self.nbd = Path()  #: the socket of its NBD server, on this host

    def __enter__(self) -> LinkedDaemon:
        number, directory = next(_NUMBERS), self._link.directory()
        monitor, nbd = f"{directory}/qmp-{number}", f"{directory}/nbd-{number}"
        chardev = f"socket,id=qmp,path={monitor},server=on,wait=off"
        self._pid = self._link.start([PROGRAM, "--chardev", chardev, "--monitor", "chardev=qmp"])
        with ExitStack() as stack:
            stack.callback(self._end)
            self._wait_for(monitor)
            place = f"{PROGRAM} on {self._link.host}"
            self._socket = stack.enter_context(Socket(str(self._link.connect(monitor)), name=place))
            self.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": nbd}}})
            self.nbd = self._link.connect(nbd)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def _wait_for(self, path: str) -> None:
        for _ in range(int(START_S / _TICK_S)):
            ended = self._link.ended(self._pid, within_s=_TICK_S)
            if ended is not None:
                raise StorageDaemonGoneError(f"exited with status {ended.status}", ended.stderr.strip())
            try:
                self._link.stat(path)
            except RemoteError:
                continue
            return
        raise StorageDaemonGoneError("did not answer", "")

    def _end(self) -> None:
        """Let it store the bitmaps and end: SIGTERM does that."""
        if self._link.is_lost:
            return  # the helper ends it
        self._link.signal(self._pid, signal.SIGTERM)
        if self._link.ended(self._pid, within_s=END_S) is None:
            self._link.signal(self._pid, signal.SIGKILL)

    @property
    def chains(self) -> Mapping[str, Sequence[str]]:
        """Node names of the opened images by the disks' aliases."""
        return {alias: (nodes[-1]["node-name"],) for alias, nodes in self._nodes.items()}

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """Execute a QMP command. Raises LinkLostError, StorageDaemonGoneError."""
        if fd is not None:
            raise FdsNotNeededError(f"{PROGRAM} accepts no file descriptors.")
        try:
            return self._socket.execute(command, arguments)
        except ConnectionLostError as err:
            self._link.refuse_lost()
            raise StorageDaemonGoneError("did not answer", str(err)) from err

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next job event of the daemon."""
        return self._socket.next_event(timeout_s)

    def open(self, disk: Disk) -> None:
        """Open the image of a disk for writing. Raises DiskError, BusyError."""
        path = disk.path
        if path is None or len(disk.images) != 1 or disk.format != BlockDriver.QCOW2:
            raise DiskError(disk.dev, "it is not in one qcow2 image.")
        self._refuse_unfit(disk, path)
        image = Image(path, BlockDriver.QCOW2, is_block_device=False, identity=(0, 0))
        nodes = backing_chain.blockdevs([image], numbers=self._numbers, secret_ids={})
        nodes[-1]["discard"] = "unmap"
        opened: list[str] = []
        try:
            for node in nodes:
                self.execute("blockdev-add", node)
                opened.append(node["node-name"])
        except QmpError as err:
            for name in reversed(opened):
                self.execute("blockdev-del", {"node-name": name})
            if err.description.is_of_lock:
                raise BusyError(f"The image {path} on {self._link.host} is open in another process.") from err
            raise DiskError(disk.dev, f"QEMU cannot open {path}: {err.description}", cause=err.description) from err
        self._nodes[disk.alias] = nodes

    def _refuse_unfit(self, disk: Disk, path: str) -> None:
        """Raise DiskError if there is no such image, or it depends on another one."""
        pieces = self._link.read_file(path)
        try:
            header = qcow2.header_in(next(pieces, b""), Path(path))
        except (ChainError, RemoteError) as err:
            raise DiskError(disk.dev, str(err), cause=str(err).rstrip(".")) from err
        finally:
            pieces.close()  # type: ignore[attr-defined]
        if header.backing_file is not None or header.has_data_file or header.encrypted:
            raise DiskError(disk.dev, f"{path} depends on another image, or is encrypted.")

    def close(self, alias: str) -> None:
        """Close the image of a disk if it is open."""
        for node in reversed(self._nodes.pop(alias, [])):
            self.execute("blockdev-del", {"node-name": node["node-name"]})

    def store(self, node_name: str) -> None:
        """Make QEMU store what it has in memory of an image: tables, and bitmaps. Raises QmpError."""
        nodes = next(nodes for nodes in self._nodes.values() if nodes[-1]["node-name"] == node_name)
        for options in ([{**node, "read-only": True} for node in nodes], nodes):
            self.execute("blockdev-reopen", {"options": options})


class LinkedSource:
    """The disks of a domain that is off, on another host (vbackup.domain.source.Source)."""

    def __init__(self, handle: DomainHandle | None, domain: Domain, daemon: LinkedDaemon) -> None:
        """``handle``: None for a domain that libvirt does not have yet."""
        self._handle = handle
        self.domain = domain
        self.daemon = daemon

    @property
    def handle(self) -> DomainHandle:
        """The domain in libvirt."""
        assert self._handle is not None
        return self._handle

    @property
    def monitor(self) -> Monitor:
        """The storage daemon."""
        return self.daemon

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
            if disk.alias not in self.daemon.chains:
                self.daemon.open(disk)
        graph = block_graph(self.daemon, chains=self.daemon.chains)
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
        self.daemon.store(layer.node_name)

    def close_disk(self, disk: Disk) -> None:
        """Close the image of a disk if it is open."""
        self.daemon.close(disk.alias)

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
    def frozen(self, quiesce: Quiesce, reporter: Reporter) -> Iterator[Freeze]:
        """Freeze nothing: no guest runs."""
        yield Freeze(Consistency.OFFLINE)

    def thaw(self, reporter: Reporter, *, mark: FreezeMark) -> None:
        """Do nothing: there is no guest."""

    def is_guest_stopped(self) -> bool:
        """Return False: there is no guest."""
        return False

    def resume(self, reporter: Reporter, *, guest_was_stopped: bool) -> None:
        """Do nothing: there is no guest."""
