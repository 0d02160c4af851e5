"""Write the content of a backing chain into one image, however long the chain is.

qemu-img asks one layer after the other for every extent, which costs more than the copy once there are many layers:
fifty take 1.6 times as long as one, a hundred 3 times, two hundred 16 times (measured). Also, QEMU resolves the backing
file names in the headers by joining them, so with a repository's names it finds no more than about 125 layers. Here
every layer is named explicitly, never by a header, and only the oldest layers of a long chain go through qemu-img. A
storage daemon writes the newer ones over the result, with one job per layer that copies what the layer itself
contains. Data that several layers contain is written several times.

The daemon opens the layers at its start, because commands take time: QEMU reads them byte by byte. Commit jobs over 10,
25 and 50 layers at once, for which QEMU also asks layer after layer, took no less time (measured).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vbackup.errors import NoSpaceError, QemuText, QmpError, StorageError
from vbackup.images import device
from vbackup.images.tuning import TABLES
from vbackup.model import ImageFormat
from vbackup.qemu import jobs, qemu_img
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.qemu_img import Output
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Reporter, Silent
from vbackup.repository.history import Link
from vbackup.stop import Stop

log = logging.getLogger(__name__)

#: Number of oldest layers that go through qemu-img.
CONVERT_LAYERS = 25
#: Number of layers that one storage daemon opens. With the tables of 200 layers it has 200 MiB of memory, with those of
#: 100 120; a second daemon costs a tenth of a second. Smaller caches cost twice its processor time: each table is read
#: twice, first for what the layer contains, then for the data (measured).
DAEMON_LAYERS = 100
#: l2-cache-size. The job reads the tables of a layer in order; by default QEMU caches up to 32 MiB per layer.
CACHE_BYTES = 1024 * 1024
_OUTPUT = "output"


@dataclass(frozen=True)
class Layer:
    """An image of a backing chain; its header has been checked."""

    path: Path
    virtual_size_bytes: int
    address: NbdAddress | None = None  #: of a server that has the image, of which the file is only a part


def layers_of(
    chain: Sequence[tuple[Link, Path]], served: Mapping[Path, NbdAddress] = MappingProxyType({})
) -> list[Layer]:
    """Return the layers of a disk, the oldest first, from its chain with the path of each image, the newest first.

    ``served``: where the images are of which the files are only a part (``Repository.served``).
    """
    return [Layer(path, link.image.virtual_size_bytes, served.get(path)) for link, path in reversed(chain)]


def flatten(
    layers: Sequence[Layer],
    output: Path,
    image_format: ImageFormat,
    *,
    kind: Output = Output.NEW,
    salvage: bool = False,
    speed_bytes_s: int | None = None,
    reporter: Reporter,
    stop: Stop,
    progress: Callable[[float], None],
) -> None:
    """Write the content of a backing chain into one image, without syncing it to storage. A new one has mode 0600.

    ``layers`` has the oldest first; none is smaller than an older one. ``salvage``: what cannot be read of them becomes
    zeros, for a caller that checks the output; what a newer layer covers does no harm then. What a block device has
    behind the end of the disk stays. ``progress`` is called with the percentage. Raises NoSpaceError, StorageError,
    also if only a part of a layer is here, UnsuitableError if a long chain needs a storage daemon that is not
    installed, InterruptedBySignalError.
    """
    for layer in layers:
        if layer.address is not None:  # the rest of the file would be read as zeros
            raise StorageError(
                f"Cannot write {output}: of {layer.path}, only a part was fetched. Fetch it whole first."
            )
    share = 100 / len(layers)
    oldest, newer = layers[:CONVERT_LAYERS], layers[CONVERT_LAYERS:]

    def convert(some: Sequence[Layer]) -> None:
        qemu_img.convert(
            [layer.path for layer in some],
            output,
            image_format,
            kind=kind,
            salvage=salvage,
            speed_bytes_s=speed_bytes_s,
            stop=stop,
            progress=lambda percent: progress(percent / 100 * share * len(some)),
        )

    convert(oldest)
    try:
        _write_newer(
            newer,
            output,
            image_format,
            kind=kind,
            below=oldest[-1],
            speed_bytes_s=speed_bytes_s,
            reporter=reporter,
            stop=stop,
            progress=lambda count: progress((len(oldest) + count) * share),
        )
    except NoSpaceError:
        raise
    except StorageError as err:
        if not salvage:
            raise
        # A job copies all that a layer contains, and ends at the first cluster that cannot be read, needed or not.
        # qemu-img reads only what the output needs, and goes on.
        log.debug("layer after layer: %s", err)
        if kind is Output.NEW:
            output.unlink()
        convert(layers)


def _write_newer(
    newer: Sequence[Layer],
    output: Path,
    image_format: ImageFormat,
    *,
    kind: Output,
    below: Layer,
    speed_bytes_s: int | None,
    reporter: Reporter,
    stop: Stop,
    progress: Callable[[int], None],
) -> None:
    """Write layers over the output, which has the content of ``below``. ``progress`` is called with their number."""
    done = 0
    while newer:
        batch, newer = newer[:DAEMON_LAYERS], newer[DAEMON_LAYERS:]
        # The caller syncs the output.
        output_options = {"discard": "unmap", "detect-zeroes": "unmap", "cache": {"no-flush": True}}
        tables = TABLES if image_format is ImageFormat.QCOW2 else {}
        image = _device(output, below) if kind is Output.DEVICE else _image(output, image_format)
        nodes = [{**image, "node-name": _OUTPUT, **output_options, **tables}]
        for number, layer in enumerate(batch):
            options = {"node-name": _name(number), "read-only": True, "backing": None, "l2-cache-size": CACHE_BYTES}
            nodes.append({**_image(layer.path, ImageFormat.QCOW2), **options})
        with StorageDaemon(reporter, nodes=nodes) as daemon:
            for number, layer in enumerate(batch):
                if layer.virtual_size_bytes != below.virtual_size_bytes:  # the disk has grown since
                    if kind is Output.DEVICE:
                        nodes[0] = {**nodes[0], **_device(output, layer)}
                        _change(daemon, "blockdev-del", {"node-name": _OUTPUT}, output=output)
                        device.zero(output, below.virtual_size_bytes, layer.virtual_size_bytes, check=stop.check)
                        _change(daemon, "blockdev-add", nodes[0], output=output)
                    else:
                        resize = {"node-name": _OUTPUT, "size": layer.virtual_size_bytes}
                        _change(daemon, "block_resize", resize, output=output)
                _write_over(daemon, _name(number), layer=layer, output=output, speed_bytes_s=speed_bytes_s, stop=stop)
                below, done = layer, done + 1
                progress(done)
            # Reopening flushes the image and reports an error, which closing it does not.
            _change(daemon, "blockdev-reopen", {"options": nodes[:1]}, output=output)


def _write_over(
    daemon: StorageDaemon, name: str, *, layer: Layer, output: Path, speed_bytes_s: int | None, stop: Stop
) -> None:
    """Copy what the layer itself contains, zeros included, over the output (blockdev-backup, sync=top)."""
    options = {"job-id": name, "device": name, "target": _OUTPUT, "sync": "top", "auto-dismiss": False}
    daemon.execute("blockdev-backup", options if speed_bytes_s is None else {**options, "speed": speed_bytes_s})
    # Wait for events: a query takes longer than copying a few extents.
    while (event := daemon.next_event(jobs.TICK_S)) is not None:
        if (event.data.get("id"), event.data.get("status")) == (name, "concluded"):
            break
    result = jobs.follow(
        daemon,
        [name],
        together=False,
        reporter=Silent(),
        stop=stop,
        stall_s=jobs.stall_limit_s(speed_bytes_s),
    )[name]
    if result.error is not None:
        raise _error(f"Cannot copy {layer.path} to {output}", result.error, output=output)
    daemon.execute("job-dismiss", {"id": name})


def _change(daemon: StorageDaemon, command: str, arguments: dict[str, Any], *, output: Path) -> None:
    try:
        daemon.execute(command, arguments)
    except QmpError as err:
        raise _error(f"Cannot write {output}", err.description, output=output) from err


def _error(what: str, reason: QemuText, *, output: Path) -> StorageError:
    if reason.is_no_space:
        return NoSpaceError(f"Cannot write {output}: no space left. Free some space and run the same command again.")
    return StorageError(f"{what}: {reason.rstrip('.')}.")


def _device(path: Path, layer: Layer) -> dict[str, Any]:
    """Return the node of a block device of which only as much is used as the layer is large."""
    file = {"driver": "host_device", "filename": os.fspath(path.absolute())}
    return {"driver": "raw", "size": layer.virtual_size_bytes, "file": file}


def _name(number: int) -> str:
    return f"l{number}"


def _image(path: Path, image_format: ImageFormat) -> dict[str, Any]:
    return {"driver": image_format.value, "file": {"driver": "file", "filename": os.fspath(path.absolute())}}
