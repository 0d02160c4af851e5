"""Write what a chain of images holds into one image, however long the chain is.

qemu-img asks the layers one after the other for every extent, which costs more than the copy once there are many:
fifty layers take 1.6 times as long as one, a hundred 3 times, two hundred 16 times (measured). And QEMU joins the
names in the headers to find what they name, so that with those of a repository it finds no more than some 125. Here
each layer is named to it, never by a header, and only the oldest of a long chain go through qemu-img. A storage
daemon writes the newer ones over that, each with one job that copies what the layer itself has, though what several
of them have is written as often.

The daemon opens them as it starts, for commands take time: QEMU reads them byte by byte. Tried instead: commit jobs
over 10, 25 and 50 layers at once, for which it asks layer after layer again, took no less time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup.errors import NoSpaceError, QemuText, QmpError, StorageError
from vbackup.images.tuning import TABLES
from vbackup.model import ImageFormat
from vbackup.qemu import jobs, qemu_img
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Reporter, Silent
from vbackup.stop import Stop

#: How many layers go through qemu-img at once.
CONVERT_LAYERS = 25
#: How many a storage daemon has open: it may have 1024 descriptors.
DAEMON_LAYERS = 200
#: Each table of a layer is asked for once, from its beginning to its end. QEMU would keep up to 32 MiB of each layer.
CACHE_BYTES = 1024 * 1024
_OUTPUT = "output"


@dataclass(frozen=True)
class Layer:
    """An image of a chain; its header has been checked."""

    path: Path
    virtual_size_bytes: int


def flatten(
    layers: Sequence[Layer],
    output: Path,
    image_format: ImageFormat,
    *,
    reporter: Reporter,
    stop: Stop,
    progress: Callable[[float], None],
) -> None:
    """Write what the layers hold, the oldest first, into a new image with mode 0600; to the page cache, not further.

    None is smaller than those before it.
    ``progress`` is told the percentage. Raises StorageError or NoSpaceError, UnsuitableError where a long chain needs a
    storage daemon that is not installed, InterruptedBySignalError.
    """
    oldest, newer = layers[:CONVERT_LAYERS], layers[CONVERT_LAYERS:]
    share = 100 / len(layers)
    paths = [layer.path for layer in oldest]
    qemu_img.convert(
        paths, output, image_format, stop=stop, progress=lambda percent: progress(percent / 100 * share * len(oldest))
    )
    done = oldest
    while newer:
        some, newer = newer[:DAEMON_LAYERS], newer[DAEMON_LAYERS:]
        # Putting it on the disk is the caller's business.
        how = {"discard": "unmap", "detect-zeroes": "unmap", "cache": {"no-flush": True}}
        tables = TABLES if image_format is ImageFormat.QCOW2 else {}
        nodes = [{**_image(output, image_format), "node-name": _OUTPUT, **how, **tables}]
        for number, layer in enumerate(some):
            options = {"node-name": _name(number), "read-only": True, "backing": None, "l2-cache-size": CACHE_BYTES}
            nodes.append({**_image(layer.path, ImageFormat.QCOW2), **options})
        with StorageDaemon(reporter, nodes=nodes) as daemon:
            for number, layer in enumerate(some):
                if layer.virtual_size_bytes != done[-1].virtual_size_bytes:  # the disk has grown since
                    resize = {"node-name": _OUTPUT, "size": layer.virtual_size_bytes}
                    _change(daemon, "block_resize", resize, output)
                _write_over(daemon, _name(number), layer, output, stop)
                done = [*done, layer]
                progress(len(done) * share)
            # Opened anew it is flushed; when it is merely closed, QEMU does not tell if that fails.
            _change(daemon, "blockdev-reopen", {"options": nodes[:1]}, output)


def _write_over(daemon: StorageDaemon, name: str, layer: Layer, output: Path, stop: Stop) -> None:
    """Copy what the layer itself has, zeros included, to where it belongs."""
    daemon.execute(
        "blockdev-backup",
        {"job-id": name, "device": name, "target": _OUTPUT, "sync": "top", "auto-dismiss": False},
    )
    # Each question takes longer than copying a few extents does.
    while (event := daemon.next_event(jobs.TICK_S)) is not None:
        if (event.data.get("id"), event.data.get("status")) == (name, "concluded"):
            break
    ended = jobs.follow(daemon, [name], together=False, reporter=Silent(), stop=stop)[name]
    if ended.error is not None:
        raise _error(f"Cannot copy {layer.path} to {output}", ended.error, output)
    daemon.execute("job-dismiss", {"id": name})


def _change(daemon: StorageDaemon, command: str, arguments: dict[str, Any], output: Path) -> None:
    try:
        daemon.execute(command, arguments)
    except QmpError as err:
        raise _error(f"Cannot write {output}", err.description, output) from err


def _error(what: str, reason: QemuText, output: Path) -> StorageError:
    if reason.is_no_space:
        return NoSpaceError(f"Cannot write {output}: no space left there. Make room and run the same command again.")
    return StorageError(f"{what}: {reason.rstrip('.')}.")


def _name(number: int) -> str:
    return f"l{number}"


def _image(path: Path, image_format: ImageFormat) -> dict[str, Any]:
    return {"driver": image_format.value, "file": {"driver": "file", "filename": os.fspath(path.absolute())}}
