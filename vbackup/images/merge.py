"""Commit images into the one below them, with a storage daemon: block-commit, each block once, as the newest has it.

The image that is written (the base) is a new one, or a published one in place: then every write is what the image above
shows there anyway, and QEMU's order of writes and flushes keeps the base readable however this ends.

The job wants an image above those that it commits, as if a guest were running: an empty one. Blocks of zeros are
written as such, so they use no space and hide what is below. To a block that has data already, QEMU writes nothing
compressed ("Compression can't overwrite anything", qcow2_alloc_compressed_cluster_offset): it is discarded before,
where the images above, which hold all these blocks, hide that.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup.errors import BusyError, NoSpaceError, QemuText, QmpError, StorageError
from vbackup.files import storage_errors
from vbackup.images.tuning import TABLES
from vbackup.model import ImageOptions
from vbackup.process import refuse_lost_ends
from vbackup.qemu import jobs, qemu_img
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Phase, Reporter
from vbackup.stop import Stop

#: Number of images that are committed with one job: QEMU asks each of them for every extent.
BATCH = 25
#: l2-cache-size of an image that is only read, in order.
CACHE_BYTES = 1024 * 1024
_BASE, _WRITTEN, _TOP, _JOB = "base", "written", "top", "merge"
#: Commands that qemu-io gets at a time.
_DISCARDS = 1000


@dataclass(frozen=True)
class Commit:
    """What is committed into what."""

    dev: str
    base: Path
    above: tuple[Path, ...]  #: oldest first
    sizes_bytes: tuple[int, ...]  #: of the disk in each of them
    is_compressed: bool  #: write compressed clusters
    is_published: bool  #: the base is in use: QEMU keeps the order of writes on storage
    scratch: Path  #: an empty image is made there


def refuse_used(path: Path) -> None:
    """Raise BusyError if another process has the image open, StorageError if it cannot be opened for writing."""
    _qemu_io(path, ["length"])


def discard(path: Path, extents: Iterable[tuple[int, int]], *, stop: Stop) -> None:
    """Discard these parts of an image, given by start and length in bytes, without looking at its backing file.

    Raises StorageError, BusyError, InterruptedBySignalError.
    """
    commands = (f"discard {start} {length}" for start, length in extents)
    while some := list(itertools.islice(commands, _DISCARDS)):
        stop.check()
        _qemu_io(path, some)


def commit(wanted: Commit, *, speed_bytes_s: int | None, reporter: Reporter, stop: Stop) -> None:
    """Commit the images; a new base is not synced to storage.

    Raises NoSpaceError, StorageError, BusyError if another process has the base open, UnsuitableError if there is no
    storage daemon, InterruptedBySignalError. The images above are not changed.
    """
    size_bytes = wanted.sizes_bytes[-1]
    with storage_errors(f"write {wanted.scratch}"):
        wanted.scratch.unlink(missing_ok=True)
        os.close(os.open(wanted.scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        done = 0
        for batch in _batches(wanted):
            sizes = wanted.sizes_bytes[done : done + len(batch)]
            qemu_img.create(wanted.scratch, size_bytes, backing_rpath=None, options=ImageOptions())
            share = (done / len(wanted.above), len(batch) / len(wanted.above))
            done += len(batch)

            def progress(part: float, share: tuple[float, float] = share) -> None:
                now_bytes = int(size_bytes * (share[0] + share[1] * part))
                reporter.progress(wanted.dev, Phase.WRITE, now_bytes, size_bytes)

            with StorageDaemon(reporter, nodes=_nodes(wanted)) as daemon:
                _commit(daemon, wanted, batch, sizes, progress=progress, speed_bytes_s=speed_bytes_s, stop=stop)
    finally:
        with storage_errors(f"remove {wanted.scratch}"):
            wanted.scratch.unlink(missing_ok=True)


def _batches(wanted: Commit) -> list[tuple[Path, ...]]:
    """Return the images that are committed with one job each.

    All of a batch have one size: QEMU takes what is beyond the end of a smaller one for allocated zeros, and would
    write them, with the end of the block in which the smaller one ends.
    """
    batches: list[tuple[Path, ...]] = []
    previous = -1
    for path, size_bytes in zip(wanted.above, wanted.sizes_bytes):
        if size_bytes == previous and len(batches[-1]) < BATCH:
            batches[-1] = (*batches[-1], path)
        else:
            batches.append((path,))
        previous = size_bytes
    return batches


def _nodes(wanted: Commit) -> list[dict[str, Any]]:
    """Return the nodes that the daemon opens at its start: the base, and what compresses."""
    # Whoever made a new image syncs it.
    cache = {} if wanted.is_published else {"cache": {"no-flush": True}}
    options = {"discard": "unmap", "detect-zeroes": "unmap", "backing": None, **cache, **TABLES}
    nodes = [{**_image(wanted.base, _BASE), **options}]
    if wanted.is_compressed:
        nodes.append({"driver": "compress", "node-name": _WRITTEN, "file": _BASE})
    return nodes


def _commit(
    daemon: StorageDaemon,
    wanted: Commit,
    batch: Sequence[Path],
    sizes: Sequence[int],
    *,
    progress: Callable[[float], None],
    speed_bytes_s: int | None,
    stop: Stop,
) -> None:
    below = _WRITTEN if wanted.is_compressed else _BASE
    target = below
    try:
        # It does nothing if the disk has not grown.
        daemon.execute("block_resize", {"node-name": target, "size": sizes[-1]})
        for number, path in enumerate(batch):
            name = f"above{number}"
            options = {"read-only": True, "backing": below, "l2-cache-size": CACHE_BYTES}
            # A published image does not change. The job would want it for itself, and a reader may have it open.
            daemon.execute("blockdev-add", {**_image(path, name, locking="off"), **options})
            below = name
        daemon.execute("blockdev-add", {**_image(wanted.scratch, _TOP), "backing": below})
        limit = {} if speed_bytes_s is None else {"speed": speed_bytes_s}
        daemon.execute(
            "block-commit",
            {"job-id": _JOB, "device": _TOP, "top-node": below, "base-node": target, "auto-dismiss": False, **limit},
        )
        _follow(daemon, wanted, progress=progress, speed_bytes_s=speed_bytes_s, stop=stop)
        # Reopening flushes the image and reports an error, which closing it does not.
        daemon.execute("blockdev-reopen", {"options": _nodes(wanted)[:1]})
    except QmpError as err:
        raise _error(wanted.base, err.description) from err


def _follow(
    daemon: StorageDaemon,
    wanted: Commit,
    *,
    progress: Callable[[float], None],
    speed_bytes_s: int | None,
    stop: Stop,
) -> None:
    class _Progress:
        def step(self, message: str) -> None:
            """Ignore the step."""

        def warning(self, message: str) -> None:
            """Ignore the warning."""

        def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
            progress(done_bytes / total_bytes if total_bytes else 1.0)

    while (event := daemon.next_event(jobs.TICK_S)) is not None:
        stop.check()
        if (event.data.get("id"), event.data.get("status")) == (_JOB, "concluded"):
            break
    stall_s = jobs.stall_limit_s(speed_bytes_s)
    job = jobs.follow(daemon, [_JOB], together=False, reporter=_Progress(), stop=stop, stall_s=stall_s)[_JOB]
    if job.error is not None:
        raise _error(wanted.base, job.error)
    daemon.execute("job-dismiss", {"id": _JOB})


def _qemu_io(path: Path, commands: Sequence[str]) -> None:
    file = {"driver": "file", "filename": os.fspath(path.absolute()), "discard": "unmap"}
    name = json.dumps({"driver": "qcow2", "discard": "unmap", "backing": None, "file": file})
    argv = ["qemu-io", f"json:{name}"]
    for command in commands:
        argv += ["-c", command]
    refuse_lost_ends()
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, check=False, cwd="/")
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise _error(path, QemuText(lines[0].removeprefix("qemu-io: ") if lines else "qemu-io failed"))


def _error(path: Path, reason: QemuText) -> StorageError | BusyError:
    if reason.is_no_space:
        return NoSpaceError(f"Cannot write {path}: no space left. Free some space and run the same command again.")
    if reason.is_of_lock:
        return BusyError(f"The image {path} is open in another process; run the same command again when it is closed.")
    return StorageError(f"Cannot write {path}: {reason.rstrip('.')}.")


def _image(path: Path, name: str, *, locking: str = "auto") -> dict[str, Any]:
    file = {"driver": "file", "filename": os.fspath(path.absolute()), "locking": locking}
    return {"driver": "qcow2", "node-name": name, "file": file}
