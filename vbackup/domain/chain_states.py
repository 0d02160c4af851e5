"""Look at the files of a disk's backing chain: what a later backup can compare (vbackup.layers).

QEMU keeps a file open that was replaced under its name. So the name counts only if QEMU has that very file open.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from pathlib import Path

from vbackup.domain import own_writes
from vbackup.domain.file_contents import is_too_new
from vbackup.errors import MalformedError, QmpError
from vbackup.fields import objects
from vbackup.layers import TOO_NEW, ChainState, FileState, LayerState
from vbackup.model import DiskNode, Layer
from vbackup.process import OpenFiles, Process
from vbackup.qemu.block_graph import innermost
from vbackup.qemu.monitor import Monitor

log = logging.getLogger(__name__)


def of_other_host(node: DiskNode, *, mark: str | None) -> ChainState:
    """Return the names of a chain whose files this host cannot look at."""
    return ChainState(tuple(_unproven(layer) for layer in node.layers), device_mark=mark)


def of_this_host(node: DiskNode, *, mark: str | None, open_files: OpenFiles | None) -> ChainState:
    """Return the state of the files of a chain.

    ``open_files`` are those of the process that has the chain open. If they are not known, nothing is proven but the
    active image.
    """
    layers = []
    for depth, layer in enumerate(node.layers):
        path = _shown(layer.filename)
        if open_files is None and depth:
            layers.append(_unproven(layer))
            continue
        file = _state(path, open_files, may_be_new=depth == 0)
        layers.append(LayerState(layer.node_name, file, _data_file(layer, path, open_files)))
    return ChainState(tuple(layers), device_mark=mark, boot_id=Process.this().boot_id)


def needs_open_files(node: DiskNode) -> bool:
    """Return True if the disk has files that no bitmap covers."""
    return len(node.layers) > 1 or any(layer.data_file is not None for layer in node.layers)


def pid_of(monitor: Monitor, uuid: str) -> int | None:
    """Return the process id of a domain's QEMU on this host, None if it cannot be found out.

    A virtual CPU's thread leads to it (query-cpus-fast); the command line must name the domain.
    """
    try:
        threads = [
            cpu.integer("thread-id") for cpu in objects(monitor.execute("query-cpus-fast"), "cpus", MalformedError)
        ]
        thread = Path("/proc") / str(threads[0])
        words = (thread / "cmdline").read_bytes().split(b"\0")
        lines = (thread / "status").read_text(encoding="ascii", errors="replace").splitlines()
    except (QmpError, OSError, IndexError) as err:
        log.debug("no process of QEMU: %s", err)
        return None
    if uuid.encode() not in words:
        return None  # QEMU is in another namespace of processes
    return next((int(line.split()[1]) for line in lines if line.startswith("Tgid:")), None)


def _unproven(layer: Layer) -> LayerState:
    data_file = FileState(_without_secret(layer.data_file)) if layer.data_file is not None else None
    return LayerState(layer.node_name, FileState(_shown(layer.filename)), data_file)


def _data_file(layer: Layer, image: str, open_files: OpenFiles | None) -> FileState | None:
    """Return the state of the external data file.

    libvirt before 10.10 leaves it to QEMU to open it, which takes a relative name from its own directory, and libvirt
    starts it in "/". The storage daemon and later libvirts take it from the directory of the image.
    """
    name = layer.data_file
    if name is None:
        return None
    if open_files is not None and not re.match(r"[^/]*:", name):
        for path in (Path(image).parent / name, Path("/") / name):
            state = _state(os.fspath(path), open_files, may_be_new=False)
            if state.is_proven:
                return state
    return FileState(_without_secret(name))


def _state(path: str, open_files: OpenFiles | None, *, may_be_new: bool) -> FileState:
    """Return the state of a regular file, and of anything else only the name.

    That a block device was not written cannot be proven. The kernel counts writes to it, but not those to what it
    consists of: a logical volume that is merged with its snapshot is counted on others, and so are writes of a host
    that has the same storage.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as err:
        log.debug("%s: %s", path, err)
        return FileState(path)
    is_open = open_files is None or (status.st_dev, status.st_ino) in open_files
    is_new = not may_be_new and is_too_new(status.st_mtime_ns)
    if not stat.S_ISREG(status.st_mode) or not is_open or is_new or status.st_mtime_ns < 0:
        return FileState(path)
    return FileState(
        path,
        status.st_dev,
        status.st_ino,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=TOO_NEW if is_too_new(status.st_ctime_ns) else status.st_ctime_ns,
        earlier=own_writes.earlier(Path(path), (status.st_size, status.st_mtime_ns)),
    )


def _shown(filename: str) -> str:
    """Return the path or URL of QEMU's file name, without what could be secret in it."""
    inner = innermost(filename)
    return _without_secret(inner or filename)


def _without_secret(name: str) -> str:
    """Return a file name of QEMU without what could be secret in it; a digest in its place tells two of them apart.

    Secret can be the user and password of a URL, its query, and the options of an RBD image (qemu_rbd_parse_filename).
    """
    if name.startswith("/"):
        return name
    if name.startswith("json:"):
        return f"image {_digest(name)}"
    shown, end = re.sub(r"//[^/@]*@", "//", name), r"rbd:[^:]*:" if name.startswith("rbd:") else r"[^/]*:[^?]*\?"
    start = re.match(end, shown)
    return shown if start is None else f"{start[0]}{_digest(shown)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
