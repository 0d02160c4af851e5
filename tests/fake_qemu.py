"""QEMU in memory: everything vbackup asks of a QEMU, answered as QEMU 7.2 answers it.

It implements vbackup.qemu.monitor.Monitor and passes the same contract tests as the real monitors
(tests/contract). There are no threads and nothing sleeps: jobs advance by one step whenever somebody
asks for them (query-jobs) or waits (next_event). No guest data is copied; image files are opened and
their headers read, so that what QEMU would refuse is refused here.

What a test can make go wrong: ``fault``, ``refuse``, ``lose_connection``, ``kill``, ``fail_job``,
``stall_job``, ``fail_flush``, ``loses_events``, ``passes_fds``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests import qapi
from vbackup.errors import ConnectionLostError, DomainGoneError, FdsNotPassedError, QmpError, VbackupError
from vbackup.qemu.monitor import Event

MIB = 1024 * 1024
QCOW2_MAGIC = b"QFI\xfb"
DEFAULT_GRANULARITY = 65536
MAX_NODE_NAME = 31
MAX_BITMAP_NAME = 1023
#: What a backup job copies at a time, of targets with clusters up to that.
JOB_CLUSTER = 65536
MAX_WORKERS = 2**31 - 1
#: More commands than any test sends without clearing ``sent``, unless it hangs.
ENDLESS = 3000
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # id_wellformed() in QEMU's util/id.c

#: Arguments of the commands: those that must be there, those that may be.
COMMANDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(required.split()), frozenset(optional.split()))
    for name, required, optional in (
        ("query-block", "", ""),
        ("query-blockstats", "", "query-nodes"),
        ("query-named-block-nodes", "", "flat"),
        ("query-jobs", "", ""),
        ("query-fdsets", "", ""),
        ("query-version", "", ""),
        ("query-commands", "", ""),
        ("query-qmp-schema", "", ""),
        ("query-iothreads", "", ""),
        ("qom-get", "path property", ""),
        ("add-fd", "", "fdset-id opaque"),
        ("remove-fd", "fdset-id", "fd"),
        (
            "blockdev-add",
            "driver",
            (
                "node-name file backing read-only cache discard detect-zeroes auto-read-only l2-cache-entry-size"
                " image inject-error size offset read-zeroes children vote-threshold read-pattern"
            ),
        ),
        ("blockdev-backup", "device target sync", "job-id auto-finalize auto-dismiss"),
        ("blockdev-del", "node-name", ""),
        ("blockdev-reopen", "options", ""),
        ("block-dirty-bitmap-add", "node name", "granularity persistent disabled"),
        ("block-dirty-bitmap-remove", "node name", ""),
        ("transaction", "actions", "properties"),
        ("query-block-jobs", "", ""),
        ("block-job-set-speed", "device speed", ""),
        ("job-cancel", "id", ""),
        ("job-finalize", "id", ""),
        ("job-dismiss", "id", ""),
        ("block-latency-histogram-set", "id", "boundaries-flush"),
        ("query-cpus-fast", "", ""),
    )
}

#: Of QAPI BlockDeviceStats, what is asked for.
GUEST_IO = ("rd_operations", "wr_operations", "rd_total_time_ns", "wr_total_time_ns")

#: JobVerbTable in QEMU's job.c: the states in which a job takes a command.
VERBS = {
    "cancel": ("created", "running", "paused", "ready", "standby", "waiting", "pending"),
    "finalize": ("pending",),
    "dismiss": ("concluded",),
    "set-speed": ("created", "running", "paused", "ready", "standby"),
}


@dataclass(frozen=True)
class FakeDisk:
    """A disk of the guest: its device and a chain of layers, the active one first."""

    alias: str = "virtio-disk0"
    size_bytes: int = 16 * MIB
    format: str = "qcow2"
    path: str = "/images/vda.qcow2"
    backing_paths: tuple[str, ...] = ()  #: of the layers below
    filters: tuple[str, ...] = ()  #: drivers of the filter nodes above, the topmost first
    compat: str = "1.1"  #: of qcow2; "0.10" (version 2) stores no bitmaps
    in_peripheral: bool = True  #: virtio; False: the alias itself is the qdev (SATA, IDE)

    @property
    def qdev(self) -> str:
        return f"/machine/peripheral/{self.alias}/virtio-backend" if self.in_peripheral else self.alias


@dataclass
class FakeBitmap:
    """A dirty bitmap; ``dirty`` has the numbers of the granules."""

    name: str
    granularity: int = DEFAULT_GRANULARITY
    persistent: bool = False
    recording: bool = True
    inconsistent: bool = False
    going: bool = False  #: a transaction removes it, and has not succeeded yet
    dirty: set[int] = field(default_factory=set)

    def mark(self, offset: int, length: int) -> None:
        self.dirty.update(range(offset // self.granularity, (offset + length - 1) // self.granularity + 1))

    def merge(self, other: FakeBitmap) -> None:
        for granule in other.dirty:
            self.mark(granule * other.granularity, other.granularity)


@dataclass
class _Node:
    name: str
    driver: str
    filename: str
    size_bytes: int
    read_only: bool = False
    below: str | None = None  #: the node a filter stands on
    window: tuple[str, int] | None = None  #: raw with an offset: the node that it is a part of, and where
    compat: str = "1.1"
    backing: str | None = None
    storage: str | None = None  #: the protocol node of a format node
    identity: tuple[int, int] | None = None  #: device and inode of a real file
    fdset: int | None = None
    no_flush: bool = False
    detect_zeroes: str = "off"
    l2_cache_entry_bytes: int | None = None  #: which no query tells
    bitmaps: dict[str, FakeBitmap] = field(default_factory=dict)


@dataclass
class _Job:
    id: str
    source: str
    target: str
    bitmap: str | None
    total_bytes: int
    speed: int
    auto_finalize: bool
    auto_dismiss: bool
    copies: bool = True  #: False: only what is about to be written over (sync none)
    status: str = "created"
    filter: str = ""
    done_bytes: int = 0
    error: str | None = None


@dataclass(frozen=True)
class _Plight:
    """What will happen to a job."""

    after_bytes: int
    error: str | None  #: None: it hangs
    cancellable: bool
    operation: str | None = "write"  #: that fails


@dataclass
class _Fault:
    error: VbackupError
    command: str | None
    countdown: int
    carried_out: bool


@dataclass(frozen=True)
class Sent:
    """A command that was sent."""

    command: str
    arguments: Mapping[str, Any]


#: How to undo an action, and how to commit it.
_Prepared = tuple[Callable[[], None], Callable[[], None]]


class FakeQemu:
    """A running QEMU with the given disks, and a monitor to it. ``close`` lets go of descriptors."""

    def __init__(self, disks: Sequence[FakeDisk] = (), *, name: str = "fake") -> None:
        self.name = name
        self.alive = True
        self.loses_events = False
        self.passes_fds = True
        self.sent: list[Sent] = []
        self.links: dict[tuple[str, str], str] = {}  #: between devices and objects (QOM), by path and property
        self.guest_io: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(GUEST_IO, 0))
        self._nodes: dict[str, _Node] = {}
        self._devices: list[tuple[FakeDisk, str]] = []  #: with the name of the root node
        self._jobs: dict[str, _Job] = {}
        self._histograms: dict[str, list[int]] = {}  #: boundaries by qdev
        self._plights: dict[str, _Plight] = {}
        self._flush_errors: dict[str, str] = {}
        self._fdsets: dict[int, dict[int, str | None]] = {}
        self._events: deque[Event] = deque()
        self._faults: list[_Fault] = []
        self._numbers = iter(range(1, 1_000_000))
        self._layers = iter(range(1, 1_000_000))
        for disk in disks:
            self.attach(disk)

    # what a test arranges

    def attach(self, disk: FakeDisk) -> str:
        """Plug a disk in; returns the node that the guest's writes reach (below the filters)."""
        above: str | None = None
        names = [f"libvirt-{next(self._layers)}" for _ in (disk.path, *disk.backing_paths)]
        for name, path in zip(reversed(names), reversed((disk.path, *disk.backing_paths))):
            storage, top = f"{name}-storage", f"{name}-format"
            self._nodes[storage] = _Node(storage, "file", path, disk.size_bytes)
            self._nodes[top] = _Node(
                top,
                disk.format,
                path,
                disk.size_bytes,
                read_only=path != disk.path,
                compat=disk.compat,
                backing=above,
                storage=storage,
            )
            above = top
        assert above is not None
        node_name = root = above
        for driver in reversed(disk.filters):
            filter_name = f"{node_name}-{driver}"
            self._nodes[filter_name] = _Node(filter_name, driver, disk.path, disk.size_bytes, below=root)
            root = filter_name
        self._devices.append((disk, root))
        return node_name

    def detach(self, alias: str) -> None:
        """Unplug a disk and close its nodes."""
        for device in [one for one in self._devices if one[0].alias == alias]:
            self._devices.remove(device)
            self._histograms.pop(device[0].qdev, None)
            for name in list(self._chain(device[1])):
                node = self._nodes.pop(name)
                self._nodes.pop(node.storage or "", None)

    def top(self, alias: str) -> str:
        """The node of that disk that takes the guest's writes."""
        root = next(root for disk, root in self._devices if disk.alias == alias)
        return next(name for name in self._chain(root) if self._nodes[name].below is None)

    def snapshot(self, alias: str, path: str) -> str:
        """As virsh snapshot-create-as --disk-only: an overlay, in which libvirt repeats the recording bitmaps."""
        below = self.top(alias)
        name = f"libvirt-{next(self._layers)}"
        storage, overlay = f"{name}-storage", f"{name}-format"
        node = self._nodes[below]
        self._nodes[storage] = _Node(storage, "file", path, node.size_bytes)
        self._replace_above(below, overlay)
        self._nodes[overlay] = _Node(overlay, "qcow2", path, node.size_bytes, backing=below, storage=storage)
        for bitmap in node.bitmaps.values():
            if bitmap.recording:
                self._nodes[overlay].bitmaps[bitmap.name] = FakeBitmap(
                    bitmap.name, bitmap.granularity, persistent=bitmap.persistent
                )
                bitmap.recording = False
        node.read_only = True
        return overlay

    def write(self, node_name: str, offset: int, length: int) -> None:
        """The guest writes: recording bitmaps take note."""
        for bitmap in self._nodes[node_name].bitmaps.values():
            if bitmap.recording:
                bitmap.mark(offset, length)

    def resize(self, node_name: str, size_bytes: int) -> None:
        """As blockresize does: bitmaps are cut with the disk, up to the granule that it ends in."""
        node = self._nodes[node_name]
        node.size_bytes = size_bytes
        for bitmap in node.bitmaps.values():
            bitmap.dirty = {one for one in bitmap.dirty if one * bitmap.granularity < size_bytes}

    def bitmaps(self, node_name: str) -> dict[str, FakeBitmap]:
        """The bitmaps of a node, to look at and to damage."""
        return self._nodes[node_name].bitmaps

    def fault(
        self, error: VbackupError, *, command: str | None = None, nth: int = 1, carried_out: bool = False
    ) -> None:
        """Raise ``error`` at the ``nth`` call from now (of that command); ``carried_out``: only the reply is lost."""
        self._faults.append(_Fault(error, command, nth, carried_out))

    def refuse(self, command: str, description: str, *, nth: int = 1) -> None:
        """Answer with an error."""
        self.fault(QmpError(command, "GenericError", description), command=command, nth=nth)

    def lose_connection(self, *, command: str | None = None, nth: int = 1, carried_out: bool = False) -> None:
        """Break the connection at that call; the next one works again."""
        error = ConnectionLostError("The connection to libvirt broke. Is libvirtd running?")
        self.fault(error, command=command, nth=nth, carried_out=carried_out)

    def kill(self, *, command: str | None = None, nth: int | None = None) -> None:
        """End QEMU, now or at the ``nth`` call (of that command)."""
        if command is None and nth is None:
            self.alive = False
        else:
            self.fault(DomainGoneError(self.name), command=command, nth=nth or 1)

    def heal(self) -> None:
        """Forget the faults that have not struck, and run again after ``kill``."""
        self._faults.clear()
        self.alive = True

    def fail_job(self, target: str, error: str, *, after_bytes: int = 0, operation: str | None = "write") -> None:
        """The job that writes to that node ends with an error once it has copied so much: of a read, write, or none."""
        self._plights[target] = _Plight(after_bytes, error, cancellable=True, operation=operation)

    def stall_job(self, target: str, *, after_bytes: int = 0, cancellable: bool = True) -> None:
        """The job that writes to that node hangs once it has copied so much; its requests may never come back."""
        self._plights[target] = _Plight(after_bytes, None, cancellable)

    def fail_flush(self, node_name: str, error: str) -> None:
        """What the node's driver still holds does not reach the disk; QEMU tells only who reopens it."""
        self._flush_errors[node_name] = error

    def recover(self, target: str) -> None:
        """Let the job of that node go on."""
        self._plights.pop(target, None)

    def state(self) -> dict[str, Any]:
        """All that a backup must leave as it was."""
        return {
            "nodes": sorted(self._nodes),
            "bitmaps": {name: sorted(node.bitmaps) for name, node in self._nodes.items() if node.bitmaps},
            "jobs": sorted(self._jobs),
            "fdsets": sorted(self._fdsets),
        }

    def close(self) -> None:
        """Close the descriptors that were passed."""
        for fdset in self._fdsets.values():
            for fd in fdset:
                os.close(fd)
        self._fdsets.clear()

    # vbackup.qemu.monitor.Monitor

    def __enter__(self) -> FakeQemu:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """See Monitor."""
        # What is sent goes through JSON, so whatever is not JSON shows here.
        given: dict[str, Any] = json.loads(json.dumps(dict(arguments or {})))
        self.sent.append(Sent(command, given))
        assert len(self.sent) < ENDLESS, "is somebody waiting for what never comes?"
        fault = self._due(command)
        if fault is not None and not fault.carried_out:
            raise self._struck(fault)
        if not self.alive:
            raise DomainGoneError(self.name)
        if fd is not None and not self.passes_fds:
            raise FdsNotPassedError("The way to QEMU cannot carry file descriptors.")
        try:
            reply = self._answer(command, given, fd)
        except _RefusedError as err:
            raise QmpError(command, err.error_class, str(err)) from None
        if fault is not None:
            raise self._struck(fault)
        return json.loads(json.dumps(reply))

    def next_event(self, timeout_s: float) -> Event | None:
        """See Monitor."""
        assert timeout_s >= 0
        if not self._events and self.alive and timeout_s > 0:
            self._advance()
        return self._events.popleft() if self._events else None

    # commands

    def _due(self, command: str) -> _Fault | None:
        due = None
        for fault in list(self._faults):
            if fault.command in (None, command):
                fault.countdown -= 1
                if fault.countdown == 0:
                    self._faults.remove(fault)
                    due = due or fault
        return due

    def _struck(self, fault: _Fault) -> VbackupError:
        if isinstance(fault.error, DomainGoneError):
            self.alive = False
        if isinstance(fault.error, ConnectionLostError):
            self._events.clear()
        return fault.error

    def _answer(self, command: str, given: dict[str, Any], fd: int | None) -> Any:
        if command not in COMMANDS:
            raise _RefusedError(f"The command {command} has not been found", "CommandNotFound")
        _check_arguments(given, *COMMANDS[command])
        handler: Callable[[dict[str, Any]], Any] = getattr(self, "_" + command.replace("-", "_"))
        if command == "add-fd":
            return self._take_fd(given, fd)
        reply = handler(given)
        return {} if reply is None else reply

    def _query_version(self, _given: dict[str, Any]) -> Any:
        return {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "fake"}

    def _query_commands(self, _given: dict[str, Any]) -> Any:
        return [{"name": name} for name in COMMANDS]

    def _query_qmp_schema(self, _given: dict[str, Any]) -> Any:
        return qapi.schema()

    def _query_iothreads(self, _given: dict[str, Any]) -> Any:
        return [
            {"id": link.rpartition("/")[2]} for (_, name), link in self.links.items() if name == "iothread" and link
        ]

    def _qom_get(self, given: dict[str, Any]) -> Any:
        try:
            return self.links[given["path"], given["property"]]
        except KeyError:
            raise _RefusedError(f"Property '{given['property']}' not found") from None

    def _query_block(self, _given: dict[str, Any]) -> Any:
        return [
            {
                "device": "",
                "qdev": disk.qdev,
                "type": "unknown",
                "removable": False,
                "locked": False,
                "io-status": "ok",
                "inserted": self._node_info(self._nodes[root]),
            }
            for disk, root in self._devices
        ]

    def _query_blockstats(self, _given: dict[str, Any]) -> Any:
        return [
            {"device": "", "qdev": disk.qdev, **self._stats(root), "stats": self._device_stats(disk)}
            for disk, root in self._devices
        ]

    def _device_stats(self, disk: FakeDisk) -> dict[str, Any]:
        stats: dict[str, Any] = dict(self.guest_io[disk.alias])
        boundaries = self._histograms.get(disk.qdev)
        if boundaries is not None:
            stats["flush_latency_histogram"] = {"boundaries": boundaries, "bins": [0] * (len(boundaries) + 1)}
        return stats

    def _stats(self, name: str) -> dict[str, Any]:
        node = self._nodes[name]
        stats: dict[str, Any] = {"node-name": name, "stats": {}}
        if node.storage is not None:
            stats["parent"] = {"node-name": node.storage, "stats": {}}
        below = node.below or node.backing
        if below is not None:
            stats["backing"] = self._stats(below)
        return stats

    def _query_named_block_nodes(self, _given: dict[str, Any]) -> Any:
        return [self._node_info(node) for node in reversed(list(self._nodes.values()))]

    def _node_info(self, node: _Node) -> dict[str, Any]:
        info: dict[str, Any] = {
            "node-name": node.name,
            "drv": node.driver,
            "ro": node.read_only,
            "file": node.filename,
            "backing_file_depth": len(list(self._chain(node.name))) - 1,
            "encrypted": False,
            "cache": {"writeback": True, "direct": False, "no-flush": node.no_flush},
            "detect_zeroes": node.detect_zeroes,
            "image": {
                "filename": node.filename,
                "format": node.driver,
                "virtual-size": node.size_bytes,
                "dirty-flag": False,
                **_format_specific(node),
            },
        }
        users = [job for job in self._jobs.values() if job.source == node.name and job.status != "concluded"]
        shown = [self._bitmap_info(node, bitmap) for bitmap in node.bitmaps.values()]
        # A running backup shows a further bitmap, which has no name.
        shown += [
            {"recording": False, "persistent": False, "busy": False, "granularity": DEFAULT_GRANULARITY, "count": 0}
            for _ in users
        ]
        if shown:
            info["dirty-bitmaps"] = shown
        return info

    def _bitmap_info(self, node: _Node, bitmap: FakeBitmap) -> dict[str, Any]:
        info = {
            "name": bitmap.name,
            "recording": bitmap.recording,
            "persistent": bitmap.persistent,
            "busy": self._is_busy(node.name, bitmap.name),
            "granularity": bitmap.granularity,
            "count": self._dirty_bytes(bitmap),
        }
        return {**info, "inconsistent": True} if bitmap.inconsistent else info

    @staticmethod
    def _dirty_bytes(bitmap: FakeBitmap) -> int:
        return len(bitmap.dirty) * bitmap.granularity

    def _is_busy(self, node_name: str, bitmap: str) -> bool:
        return self._nodes[node_name].bitmaps[bitmap].going or any(
            job.source == node_name and job.bitmap == bitmap and job.status != "concluded"
            for job in self._jobs.values()
        )

    # descriptors

    def _add_fd(self, _given: dict[str, Any]) -> Any:
        raise AssertionError("see _take_fd")

    def _take_fd(self, given: dict[str, Any], fd: int | None) -> Any:
        if fd is None:
            raise _RefusedError("No file descriptor supplied via SCM_RIGHTS")
        number = given.get("fdset-id")
        if number is None:
            number = next(one for one in range(len(self._fdsets) + 1) if one not in self._fdsets)
        taken = os.dup(fd)
        self._fdsets.setdefault(number, {})[taken] = given.get("opaque")
        return {"fdset-id": number, "fd": taken}

    def _query_fdsets(self, _given: dict[str, Any]) -> Any:
        return [
            {
                "fdset-id": number,
                "fds": [{"fd": fd, **({"opaque": opaque} if opaque is not None else {})} for fd, opaque in fds.items()],
            }
            for number, fds in self._fdsets.items()
        ]

    def _remove_fd(self, given: dict[str, Any]) -> None:
        number = given["fdset-id"]
        if number not in self._fdsets:
            raise _RefusedError(f"File descriptor named 'fdset-id:{number}' not found")
        for fd in self._fdsets[number]:
            os.close(fd)
        self._fdsets[number].clear()
        self._drop_empty_fdsets()

    def _drop_empty_fdsets(self) -> None:
        used = {node.fdset for node in self._nodes.values()}
        for number in [one for one, fds in self._fdsets.items() if not fds and one not in used]:
            del self._fdsets[number]

    # nodes

    def _blockdev_add(self, given: dict[str, Any]) -> None:
        name = given.get("node-name", "")
        self._check_node_name(name)
        driver, file = given["driver"], given.get("file")
        if driver == "quorum":  # of a fleecing area: the image, and a node that keeps nothing
            given = {"node-name": name, **given["children"][0]}
            driver, file = given["driver"], given["file"]
        if driver in ("snapshot-access", "blkdebug"):
            self._nodes[name] = self._view(given)
            return
        if driver == "null-co":
            self._nodes[name] = _Node(name, driver, "null-co://", given["size"])
            return
        if isinstance(file, str):
            self._add_window(name, file, given)
            return
        assert file is not None
        assert driver in ("qcow2", "raw"), f"the fake has no driver {driver}"
        assert file["driver"] == "file", f"the fake has no protocol {file['driver']}"
        filename: str = file["filename"]
        read_only = bool(given.get("read-only"))
        storage = file.get("node-name") or f"#block{next(self._numbers):03d}"
        node = self._open(name, driver, filename, read_only=read_only)
        if "backing" not in given and driver == "qcow2":
            assert _backing_offset(self._header(filename)) == 0, "the fake opens no backing files"
        node.storage = storage
        node.no_flush = given.get("cache", {}).get("no-flush", False)
        node.detect_zeroes = given.get("detect-zeroes", "off")
        node.l2_cache_entry_bytes = given.get("l2-cache-entry-size")
        self._nodes[storage] = _Node(storage, "file", filename, node.size_bytes, read_only=read_only)
        self._nodes[name] = node

    def _view(self, given: dict[str, Any]) -> _Node:
        """What a job puts aside, and below it the disk: a node on the job's filter."""
        view = given["image"] if given["driver"] == "blkdebug" else given
        assert view["driver"] == "snapshot-access", "the fake injects errors only above a view"
        below = self._find_node(view["file"])
        return _Node(given["node-name"], given["driver"], below.filename, below.size_bytes, below=below.name)

    def _add_window(self, name: str, file: str, given: dict[str, Any]) -> None:
        assert given["driver"] == "raw", "the fake has no other driver on a node"
        below = self._find_node(file)
        if given["offset"] + given["size"] > below.size_bytes:
            raise _RefusedError("The sum of offset and size has to be smaller or equal to the actual size of the file")
        self._nodes[name] = _Node(
            name, "raw", below.filename, given["size"], identity=None, window=(file, given["offset"])
        )

    def _blockdev_backup(self, given: dict[str, Any]) -> None:
        _, commit = self._prepare_blockdev_backup(given)
        commit()

    def _blockdev_reopen(self, given: dict[str, Any]) -> None:
        for options in given["options"]:
            _check_arguments(options, *COMMANDS["blockdev-add"])
            node = self._nodes.get(options["node-name"])
            if node is None:
                raise _RefusedError(f"Failed to find node with node-name='{options['node-name']}'")
            if "file" not in options:
                raise _RefusedError("Parameter 'options[0].file' is missing")
            file = options["file"]
            same = node.storage if isinstance(file, str) else node.filename
            assert (file if isinstance(file, str) else file["filename"]) == same, "the fake changes no file"
            changed = (
                options.get("cache", {}).get("no-flush", False),
                options.get("detect-zeroes", "off"),
                options.get("l2-cache-entry-size"),
            )
            now = (node.no_flush, node.detect_zeroes, node.l2_cache_entry_bytes)
            assert changed == now, "an option that is not given is reset"
            if node.name in self._flush_errors:
                raise _RefusedError(f"Error flushing drive: {self._flush_errors[node.name]}")

    def _open(self, name: str, driver: str, filename: str, *, read_only: bool) -> _Node:
        header = self._header(filename, write=not read_only)
        if driver == "qcow2" and not header.startswith(QCOW2_MAGIC):
            raise _RefusedError("Image is not in qcow2 format")
        status = os.fstat(self._fd_of(filename)) if filename.startswith("/dev/fdset/") else os.stat(filename)  # noqa: PTH116
        identity = (status.st_dev, status.st_ino)
        if not read_only and any(node.identity == identity for node in self._nodes.values()):
            raise _RefusedError('Failed to get "write" lock')
        size_bytes: int = struct.unpack(">Q", header[24:32])[0] if driver == "qcow2" else status.st_size
        fdset = int(filename.rsplit("/", 1)[1]) if filename.startswith("/dev/fdset/") else None
        compat = "0.10" if driver == "qcow2" and header[4:8] == b"\0\0\0\2" else "1.1"
        return _Node(
            name, driver, filename, size_bytes, read_only=read_only, compat=compat, identity=identity, fdset=fdset
        )

    def _header(self, filename: str, *, write: bool = False) -> bytes:
        if filename.startswith("/dev/fdset/"):
            fd = self._fd_of(filename)
            if write and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
                raise _RefusedError(f"Could not dup FD for {filename} flags 2: Permission denied")
            return os.pread(fd, 104, 0)
        try:
            fd = os.open(filename, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as err:
            raise _RefusedError(f"Could not open '{filename}': {err.strerror}") from err
        try:
            return os.pread(fd, 104, 0)
        finally:
            os.close(fd)

    def _fd_of(self, filename: str) -> int:
        fds = self._fdsets.get(int(filename.rsplit("/", 1)[1]), {})
        if not fds:
            raise _RefusedError(f"Could not dup FD for {filename} flags 2: No such file or directory")
        return next(iter(fds))

    def _blockdev_del(self, given: dict[str, Any]) -> None:
        name = given["node-name"]
        node = self._nodes.get(name)
        if node is None:
            raise _RefusedError(f"Failed to find node with node-name='{name}'")
        self._refuse_busy(name)
        if any(one.window is not None and one.window[0] == name for one in self._nodes.values()):
            raise _RefusedError(f"Node {name} is in use")
        if any(name in self._chain(root) for _, root in self._devices):
            raise _RefusedError(f"Node {name} is in use")
        del self._nodes[name]
        self._nodes.pop(node.storage or "", None)
        self._drop_empty_fdsets()

    def _refuse_busy(self, name: str) -> None:
        for job in self._jobs.values():
            if job.status == "concluded":
                continue
            if name == job.target:
                raise _RefusedError(f"Node '{name}' is busy: block device is in use by block job: backup")
            if name == job.source:
                raise _RefusedError(f"Block device {name} is in use")

    def _chain(self, root: str) -> Iterator[str]:
        name: str | None = root
        while name is not None:
            yield name
            name = self._nodes[name].below or self._nodes[name].backing

    def _find_node(self, name: str) -> _Node:
        if name not in self._nodes:
            raise _RefusedError(f"Cannot find device='{name}' nor node-name='{name}'")
        return self._nodes[name]

    # bitmaps

    def _find_bitmap(self, node_name: str, name: str) -> FakeBitmap:
        node = self._nodes.get(node_name)
        if node is None:
            raise _RefusedError(f"Node '{node_name}' not found")
        if name not in node.bitmaps:
            raise _RefusedError(f"Dirty bitmap '{name}' not found")
        return node.bitmaps[name]

    def _usable_bitmap(self, node_name: str, name: str) -> FakeBitmap:
        bitmap = self._find_bitmap(node_name, name)
        self._refuse_busy_bitmap(node_name, name)
        if bitmap.inconsistent:
            raise _RefusedError(f"Bitmap '{name}' is inconsistent and cannot be used")
        return bitmap

    def _refuse_busy_bitmap(self, node_name: str, name: str) -> None:
        if self._is_busy(node_name, name):
            raise _RefusedError(f"Bitmap '{name}' is currently in use by another operation and cannot be used")

    def _block_dirty_bitmap_add(self, given: dict[str, Any]) -> None:
        self._prepare_block_dirty_bitmap_add(given)

    def _block_dirty_bitmap_remove(self, given: dict[str, Any]) -> None:
        self._find_bitmap(given["node"], given["name"])
        self._refuse_busy_bitmap(given["node"], given["name"])
        del self._nodes[given["node"]].bitmaps[given["name"]]

    # transactions: each action prepares, and returns how to undo and how to commit it

    def _transaction(self, given: dict[str, Any]) -> None:
        try:
            qapi.visit_command("transaction", given)
        except qapi.MisfitError as err:
            raise _RefusedError(str(err)) from None
        grouped = given.get("properties", {}).get("completion-mode") == "grouped"
        prepared: list[_Prepared] = []
        try:
            for action in given["actions"]:
                kind = action["type"]
                if grouped and kind not in ("abort", "blockdev-backup"):
                    raise _RefusedError(
                        f"Action '{kind}' does not support Transaction property completion-mode = grouped"
                    )
                prepare: Callable[[dict[str, Any]], _Prepared] | None
                prepare = getattr(self, "_prepare_" + kind.replace("-", "_"), None)
                assert prepare is not None, f"the fake has no action {kind}"
                prepared.append(prepare(action["data"]))
        except _RefusedError:
            for undo, _ in reversed(prepared):
                undo()
            raise
        for _, commit in prepared:
            commit()

    def _prepare_abort(self, _data: dict[str, Any]) -> _Prepared:
        raise _RefusedError("Transaction aborted using Abort action")

    def _prepare_block_dirty_bitmap_add(self, data: dict[str, Any]) -> _Prepared:
        node, name = self._find_node(data["node"]), data["name"]
        granularity = data.get("granularity", DEFAULT_GRANULARITY)
        if not name:
            raise _RefusedError("Bitmap name cannot be empty")
        if granularity < 512 or granularity & (granularity - 1):
            raise _RefusedError("Granularity must be power of 2 and at least 512")
        if len(name.encode()) > MAX_BITMAP_NAME:
            raise _RefusedError(f"Bitmap name too long: {name}")
        if name in node.bitmaps:
            raise _RefusedError(f"Bitmap already exists: {name}")
        persistent = data.get("persistent", False)
        if persistent and node.driver != "qcow2":
            raise _RefusedError(f"Can't store persistent bitmaps to {node.name}: Operation not supported")
        if persistent and node.compat == "0.10":
            raise _RefusedError("Cannot store dirty bitmaps in qcow2 v2 files")
        node.bitmaps[name] = FakeBitmap(name, granularity, persistent, recording=not data.get("disabled", False))
        return lambda: node.bitmaps.__delitem__(name), _nothing

    def _prepare_block_dirty_bitmap_clear(self, data: dict[str, Any]) -> _Prepared:
        bitmap = self._usable_bitmap(data["node"], data["name"])
        before, bitmap.dirty = bitmap.dirty, set()
        return lambda: setattr(bitmap, "dirty", before), _nothing

    def _prepare_block_dirty_bitmap_enable(self, data: dict[str, Any]) -> _Prepared:
        return self._set_recording(data, recording=True)

    def _prepare_block_dirty_bitmap_disable(self, data: dict[str, Any]) -> _Prepared:
        return self._set_recording(data, recording=False)

    def _set_recording(self, data: dict[str, Any], *, recording: bool) -> _Prepared:
        bitmap = self._usable_bitmap(data["node"], data["name"])
        before, bitmap.recording = bitmap.recording, recording
        return lambda: setattr(bitmap, "recording", before), _nothing

    def _prepare_block_dirty_bitmap_remove(self, data: dict[str, Any]) -> _Prepared:
        """Until all actions have succeeded the bitmap keeps its name and is busy."""
        node, name = data["node"], data["name"]
        bitmap = self._find_bitmap(node, name)
        self._refuse_busy_bitmap(node, name)
        bitmap.going = True
        return lambda: setattr(bitmap, "going", False), lambda: self._nodes[node].bitmaps.__delitem__(name)

    def _prepare_block_dirty_bitmap_merge(self, data: dict[str, Any]) -> _Prepared:
        target = self._usable_bitmap(data["node"], data["target"])
        sources = [
            self._usable_bitmap(data["node"], source)
            if isinstance(source, str)
            else self._usable_bitmap(source["node"], source["name"])
            for source in data["bitmaps"]
        ]
        to_bytes = self._nodes[data["node"]].size_bytes
        for source in data["bitmaps"]:
            from_bytes = to_bytes if isinstance(source, str) else self._nodes[source["node"]].size_bytes
            if from_bytes != to_bytes:
                raise _RefusedError(
                    f"Bitmaps are of different sizes (destination size is {to_bytes}, source size is {from_bytes}) and"
                    " can't be merged"
                )
        before = set(target.dirty)
        for source in sources:
            target.merge(source)
        return lambda: setattr(target, "dirty", before), _nothing

    def _prepare_blockdev_backup(self, data: dict[str, Any]) -> _Prepared:
        source, target = self._find_node(data["device"]), self._find_node(data["target"])
        bitmap = self._bitmap_of_backup(source, data)
        self._check_backup(source, target, data)
        # The nodes here have no named device, whose name would be the default.
        job_id = data.get("job-id", "")
        if not _IDENTIFIER.fullmatch(job_id):
            raise _RefusedError(f"Invalid job ID '{job_id}'")
        if job_id in self._jobs:
            raise _RefusedError(f"Job ID '{job_id}' already in use")
        if data.get("speed", 0) < 0:
            raise _RefusedError("Parameter 'speed' expects a non-negative value")
        job = _Job(
            id=job_id,
            source=source.name,
            target=target.name,
            bitmap=bitmap.name if bitmap else None,
            total_bytes=self._dirty_bytes(bitmap) if bitmap else source.size_bytes,
            speed=data.get("speed", 0),
            auto_finalize=data.get("auto-finalize", True),
            auto_dismiss=data.get("auto-dismiss", True),
            copies=data["sync"] != "none",
        )
        self._jobs[job_id] = job
        self._insert_filter(job, data.get("filter-node-name"))
        self._tell(job, "created")

        def undo() -> None:
            self._remove_filter(job)
            for status in ("aborting", "concluded", "null"):
                self._tell(job, status)
            del self._jobs[job_id]

        def start() -> None:
            # QEMU drains the node when it puts its filter in: the job is paused for a moment.
            for status in ("running", "paused", "running"):
                self._tell(job, status)

        return undo, start

    def _bitmap_of_backup(self, source: _Node, data: dict[str, Any]) -> FakeBitmap | None:
        """As do_backup_common() in QEMU's blockdev.c."""
        name, sync, mode = data.get("bitmap"), data["sync"], data.get("bitmap-mode")
        if name is None and sync in ("bitmap", "incremental"):
            raise _RefusedError(f"must provide a valid bitmap name for '{sync}' sync mode")
        if sync == "incremental":
            if mode not in (None, "on-success"):
                raise _RefusedError("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'")
            sync, mode = "bitmap", "on-success"
        if name is None:
            if mode is not None:
                raise _RefusedError("Cannot specify bitmap sync mode without a bitmap")
            return None
        if name not in source.bitmaps:
            raise _RefusedError(f"Bitmap '{name}' could not be found")
        if mode is None:
            raise _RefusedError("Bitmap sync mode must be given when providing a bitmap")
        bitmap = self._usable_bitmap(source.name, name)
        if sync == "none":
            raise _RefusedError("sync mode 'none' does not produce meaningful bitmap outputs")
        if mode == "never" and sync != "bitmap":
            raise _RefusedError(
                f"Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '{sync}'"
            )
        return bitmap

    def _check_backup(self, source: _Node, target: _Node, data: dict[str, Any]) -> None:
        """As backup_job_create() in QEMU's block/backup.c, up to the job."""
        if source is target:
            raise _RefusedError("Source and target cannot be the same")
        running = [job for job in self._jobs.values() if job.status != "concluded"]
        for node in (source, target):
            if any(job.target == node.name for job in running):
                raise _RefusedError(f"Node '{node.name}' is busy: block device is in use by block job: backup")
        _check_performance(data.get("x-perf", {}))
        if source.size_bytes != target.size_bytes:
            raise _RefusedError("Source and target image have different sizes")
        if 0 < data.get("x-perf", {}).get("max-chunk", 0) < JOB_CLUSTER:
            chunk = data["x-perf"]["max-chunk"]
            raise _RefusedError(f"Required max-chunk ({chunk}) is less than backup cluster size ({JOB_CLUSTER})")
        if "filter-node-name" in data:
            try:
                self._check_node_name(data["filter-node-name"])
            except _RefusedError as err:
                raise _RefusedError(f"Could not create node: {err}") from None
        if any(job.source == target.name for job in running):
            raise _RefusedError(f"Could not create node: Permission conflict on node '{target.name}'")

    def _check_node_name(self, name: str) -> None:
        if not _IDENTIFIER.fullmatch(name):
            raise _RefusedError(f"Invalid node-name: '{name}'")
        if name in self._nodes:
            raise _RefusedError(f"Duplicate nodes with node-name='{name}'")
        if len(name.encode()) > MAX_NODE_NAME:
            raise _RefusedError("Node name too long")

    # jobs

    def _query_jobs(self, _given: dict[str, Any]) -> Any:
        self._advance()
        return [
            {
                "id": job.id,
                "type": "backup",
                "status": job.status,
                "current-progress": job.done_bytes,
                "total-progress": job.total_bytes,
                **({"error": job.error} if job.error is not None else {}),
            }
            for job in reversed(list(self._jobs.values()))
        ]

    def _job(self, given: dict[str, Any], verb: str) -> _Job:
        job = self._jobs.get(given["id"])
        if job is None:
            raise _RefusedError("Job not found")
        if job.status not in VERBS[verb]:
            raise _RefusedError(f"Job '{job.id}' in state '{job.status}' cannot accept command verb '{verb}'")
        return job

    def _block_latency_histogram_set(self, given: dict[str, Any]) -> None:
        if given["id"] not in {disk.qdev for disk, _ in self._devices}:
            raise _RefusedError(f"Device '{given['id']}' not found", "DeviceNotFound")
        self._histograms[given["id"]] = given["boundaries-flush"]

    def _query_cpus_fast(self, _given: dict[str, Any]) -> Any:
        return []

    def _query_block_jobs(self, _given: dict[str, Any]) -> Any:
        return [
            {"device": job.id, "type": "backup", "speed": job.speed, "status": job.status}
            for job in self._jobs.values()
            if job.status != "concluded"
        ]

    def _block_job_set_speed(self, given: dict[str, Any]) -> None:
        if given["device"] not in self._jobs:
            raise _RefusedError(f"Block job '{given['device']}' not found", "DeviceNotActive")
        job = self._job({"id": given["device"]}, "set-speed")
        if given["speed"] < 0:
            raise _RefusedError("Parameter 'speed' expects a non-negative value")
        job.speed = given["speed"]

    def _job_cancel(self, given: dict[str, Any]) -> None:
        job = self._job(given, "cancel")
        job.error = "Operation canceled"
        self._tell(job, "aborting")
        if not job.done_bytes < job.total_bytes:
            self._conclude(job)  # nothing is in flight

    def _job_finalize(self, given: dict[str, Any]) -> None:
        self._conclude(self._job(given, "finalize"))

    def _job_dismiss(self, given: dict[str, Any]) -> None:
        job = self._job(given, "dismiss")
        self._tell(job, "null")
        del self._jobs[job.id]

    def _insert_filter(self, job: _Job, name: str | None) -> None:
        """The node through which the guest writes while the job runs: it copies what is written over."""
        source = self._nodes[job.source]
        job.filter = name or f"#block{next(self._numbers):03d}"
        self._replace_above(source.name, job.filter)
        self._nodes[job.filter] = _Node(
            job.filter, "copy-before-write", source.filename, source.size_bytes, below=source.name
        )

    def _remove_filter(self, job: _Job) -> None:
        node = self._nodes.pop(job.filter)
        assert node.below is not None
        self._replace_above(job.filter, node.below)

    def _replace_above(self, old: str, new: str) -> None:
        """Have whatever stands on ``old`` stand on ``new``."""
        self._devices = [(disk, new if root == old else root) for disk, root in self._devices]
        for node in self._nodes.values():
            if node.below == old:
                node.below = new

    def _conclude(self, job: _Job) -> None:
        self._remove_filter(job)
        self._tell(job, "concluded")
        if job.auto_dismiss:
            self._tell(job, "null")
            del self._jobs[job.id]

    def _advance(self) -> None:
        """One step of every job."""
        for job in list(self._jobs.values()):
            plight = self._plights.get(job.target)
            if job.status == "aborting":
                if plight is None or plight.cancellable:
                    self._conclude(job)
            elif job.status == "running" and job.copies:
                self._copy(job, plight)

    def _copy(self, job: _Job, plight: _Plight | None) -> None:
        if plight is not None and job.done_bytes >= plight.after_bytes:
            if plight.error is not None:
                job.error = plight.error
                if plight.operation is not None:
                    data = {"device": job.id, "operation": plight.operation, "action": "report"}
                    self._put(Event("BLOCK_JOB_ERROR", data))
                self._tell(job, "aborting")
                self._conclude(job)
            return
        if job.done_bytes < job.total_bytes:
            step = job.speed or max(1, job.total_bytes // 2)
            limit = plight.after_bytes if plight is not None else job.total_bytes
            job.done_bytes = min(job.done_bytes + step, limit, job.total_bytes)
            return
        node, offset = self._nodes[job.target].window or ("", 0)
        if node:
            self.write(node, offset, job.total_bytes)
        self._tell(job, "waiting")
        self._tell(job, "pending")
        if job.auto_finalize:
            self._conclude(job)

    def _tell(self, job: _Job, status: str) -> None:
        job.status = status
        self._put(Event("JOB_STATUS_CHANGE", {"id": job.id, "status": status}))

    def _put(self, event: Event) -> None:
        if not self.loses_events:
            self._events.append(event)


class _RefusedError(Exception):
    """QEMU's error reply."""

    def __init__(self, description: str, error_class: str = "GenericError") -> None:
        super().__init__(description)
        self.error_class = error_class


def _check_arguments(given: Mapping[str, Any], required: frozenset[str], optional: frozenset[str]) -> None:
    for name in sorted(required):
        if name not in given:
            raise _RefusedError(f"Parameter '{name}' is missing")
    for name in given:
        if name not in required | optional:
            raise _RefusedError(f"Parameter '{name}' is unexpected")


def _format_specific(node: _Node) -> dict[str, Any]:
    if node.driver != "qcow2":
        return {}
    return {"format-specific": {"type": "qcow2", "data": {"compat": node.compat, "corrupt": False}}}


def _check_performance(perf: Mapping[str, Any]) -> None:
    if not 1 <= perf.get("max-workers", 1) <= MAX_WORKERS:
        raise _RefusedError(f"max-workers must be between 1 and {MAX_WORKERS}")
    if perf.get("max-chunk", 0) < 0:
        raise _RefusedError("max-chunk must be zero (which means no limit) or positive")


def _nothing() -> None:
    pass


def qcow2_header(size_bytes: int, *, backing: bool = False) -> bytes:
    """As much of a qcow2 header as the fake reads."""
    return QCOW2_MAGIC + struct.pack(">IQIIQ", 3, 112 if backing else 0, 0, 16, size_bytes) + bytes(72)


def _backing_offset(header: bytes) -> int:
    offset: int = struct.unpack(">Q", header[8:16])[0]
    return offset
