"""Open target images in QEMU, flush them and close them.

QEMU gets each image as a file descriptor, so that a QEMU without privileges can write into root's own repository. It
opens the image by its path if the connection cannot carry descriptors, or if it is a storage daemon, which is a child
process of vbackup and has its rights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vbackup.errors import (
    FdsNotNeededError,
    FdsNotPassedError,
    MalformedError,
    NoSpaceError,
    QemuText,
    QmpError,
    StorageError,
)
from vbackup.fields import Fields, objects
from vbackup.files import storage_errors
from vbackup.images.tuning import TABLES
from vbackup.model import QEMUS_OWN, NodeOptions, SecurityLabel
from vbackup.names import Naming
from vbackup.qemu.block_graph import BlockNodes
from vbackup.qemu.monitor import Monitor, block_nodes
from vbackup.undo import Undo

#: QAPI BlockdevOptions, as blockdev-add and blockdev-reopen take them.
BlockdevOptions = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """An image that QEMU writes, and the name of its node."""

    path: Path
    node_name: str


class _Way(Enum):
    """How QEMU opens an image."""

    DESCRIPTOR = "descriptor"
    PATH = "path"  #: with the rights of the user that QEMU runs as
    OUR_CHILD = "our child"  #: by the path, with the rights of vbackup


def open_in_qemu(
    monitor: Monitor,
    targets: Iterable[Target],
    *,
    undo: Undo,
    options: NodeOptions = QEMUS_OWN,
    security_labels: Sequence[SecurityLabel] = (),
) -> None:
    """Open each qcow2 image as a node, in order. ``undo`` gets a step that closes the nodes.

    The node has no backing file in QEMU, whatever the image's header says: it only stores what a job writes.
    ``options`` come from vbackup.images.tuning. Raises StorageError if QEMU cannot open an image; the message uses
    ``security_labels``, which confine QEMU, to explain why.
    """
    node_names: list[str] = []
    undo.push("close the target images in QEMU", lambda: close_in_qemu(monitor, node_names))
    for target in targets:
        node_names.append(target.node_name)
        way = _Way.DESCRIPTOR
        try:
            try:
                filename = _pass_image(monitor, target)
            except FdsNotPassedError as err:
                filename = os.fspath(target.path)
                way = _Way.OUR_CHILD if isinstance(err, FdsNotNeededError) else _Way.PATH
            monitor.execute("blockdev-add", node(target.node_name, filename, options=options))
        except QmpError as err:
            message = _refusal(target.path, err.description, labels=security_labels, way=way)
            raise StorageError(message) from err


def node(node_name: str, filename: str, *, options: NodeOptions = QEMUS_OWN) -> BlockdevOptions:
    """Return the node that opens a qcow2 image without its backing file."""
    file = {"driver": "file", "filename": filename}
    return {"driver": "qcow2", "node-name": node_name, "file": file, "backing": None, **TABLES, **options.members()}


def flush_in_qemu(monitor: Monitor, node_names: Sequence[str], *, options: NodeOptions = QEMUS_OWN) -> BlockNodes:
    """Make QEMU write the tables that it still caches for the images, and report errors. All nodes must be open.

    The qcow2 driver caches tables until the image is closed, which is after the job has concluded without an error, and
    blockdev-del does not report that it could not write them. blockdev-reopen with the options that the node already
    has changes nothing, but QEMU flushes the node first and reports errors. The data is then in the page cache, from
    where the caller brings it to storage (vbackup.images.writeback), unless the node's options leave that to QEMU.
    QEMU does not describe the nodes while the image of some disk is corrupt: they get ``options`` then, and the names
    of the descriptors that were passed for them. Returns QEMU's nodes, which this function queries anyway. Raises
    NoSpaceError or StorageError.
    """
    nodes = block_nodes(monitor)
    filenames = {} if nodes.refusal is None else _filenames_by_node(monitor)
    reopened = [
        node(name, filenames[name], options=options)
        if name in filenames
        else node(name, nodes.filename(name), options=nodes.options(name))
        for name in node_names
    ]
    try:
        monitor.execute("blockdev-reopen", {"options": reopened})
    except QmpError as err:
        if err.description.is_no_space:
            raise NoSpaceError(
                "No space left in the repository for the last parts of the images. Nothing was kept of this backup;"
                " free some space and run the same command again."
            ) from err
        raise StorageError(
            f"QEMU could not write the last parts of the images to the repository: {err.description}. Nothing was kept"
            " of this backup; fix the repository's storage and run the same command again."
        ) from err
    return nodes


def close_in_qemu(monitor: Monitor, node_names: Sequence[str]) -> list[str]:
    """Close those of the nodes that are open, and remove the descriptors they were opened with.

    ``node_names`` must have a node before those that it uses: QEMU refuses to close a node that is in use. Returns the
    nodes that were open. Raises QmpError if QEMU refuses to close a node, after closing the others.
    """
    open_nodes = block_nodes(monitor).node_names()
    nodes = [name for name in node_names if name in open_nodes]
    refusal = None
    for name in nodes:
        try:
            monitor.execute("blockdev-del", {"node-name": name})
        except QmpError as err:
            refusal = refusal or err
    _remove_fds(monitor, lambda label: label.partition(" ")[0] in node_names)
    if refusal is not None:
        raise refusal
    return nodes


def close_all_in_qemu(monitor: Monitor, naming: Naming, *, known: BlockNodes | None = None) -> list[str]:
    """Close all nodes of this repository, remove their descriptors, and return the names of the nodes.

    ``known``: QEMU's nodes, if the caller has just queried them. Which node uses which is in no reply: a node that QEMU
    refuses to close because it is in use is tried again after the others. Raises QmpError if a node remains in use.
    """
    # Sorted for the same commands at every run only: any order closes them all.
    there = block_nodes(monitor) if known is None else known
    nodes = sorted(name for name in there.node_names() if name.startswith(naming.prefix))
    refused: dict[str, QmpError] = {}
    left = nodes
    while left:
        refused = {}
        for name in left:
            try:
                monitor.execute("blockdev-del", {"node-name": name})
            except QmpError as err:
                refused[name] = err
        if len(refused) == len(left):
            break
        left = list(refused)
    _remove_fds(monitor, lambda label: label.startswith(naming.prefix))
    for refusal in refused.values():
        raise refusal
    return nodes


def open_elsewhere(monitor: Monitor, naming: Naming, directory: Path) -> str | None:
    """Return a node by which QEMU has an image of a copy of this repository open, None if there is none.

    The copy has the same id, and so the same names in QEMU. ``directory`` is this repository's: the label of a
    descriptor has the identity of the directory of its repository, and an image that was opened by its path shows it
    there. What an older version opened counts as this repository's.
    """
    place, passed = _place(directory), set()
    for labels in _fd_labels(monitor).values():
        for node_name, _, given in (label.partition(" ") for label in labels):
            if node_name.startswith(naming.prefix) and given not in ("", place):
                return node_name
            passed.add(node_name)
    nodes = block_nodes(monitor)
    for name in sorted(nodes.node_names() - passed):
        if naming.is_target_node(name):
            path = Path(nodes.filename(name))
            if path.is_absolute() and path.parts[:3] != ("/", "dev", "fdset") and not _is_below(path, directory):
                return name
    return None


def _place(directory: Path) -> str:
    """Return what distinguishes a directory from its copies as long as QEMU has a file in it open."""
    with storage_errors(f"read {directory}"):
        status = directory.stat()
    return f"{status.st_dev}:{status.st_ino}"


def _is_below(image: Path, directory: Path) -> bool:
    """Return True if that is the directory of the image's repository."""
    repository = _repository_of(image)
    try:
        return repository == directory or repository.samefile(directory)
    except OSError:
        return False


def _repository_of(image: Path) -> Path:
    """Return the directory that the directory of the domain and of the backup are in."""
    return image.parent.parent.parent


def _fd_labels(monitor: Monitor) -> dict[int, list[str]]:
    """Return the labels of the descriptors in QEMU, by the id of their set."""
    try:
        reply = monitor.execute("query-fdsets")
    except QmpError as err:
        if err.error_class == "CommandNotFound":
            return {}  # a storage daemon, which accepts no descriptors
        raise
    return {
        entry.integer("fdset-id"): [fd.optional_text("opaque") or "" for fd in entry.objects("fds")]
        for entry in objects(reply, "query-fdsets", MalformedError)
    }


def _filenames_by_node(monitor: Monitor) -> dict[str, str]:
    """Return the file name of each descriptor by the name of the node that it was passed for."""
    return {
        label.partition(" ")[0]: f"/dev/fdset/{fdset_id}"
        for fdset_id, labels in _fd_labels(monitor).items()
        for label in labels
    }


def _remove_fds(monitor: Monitor, is_ours: Callable[[str], bool]) -> None:
    for fdset_id, labels in _fd_labels(monitor).items():
        if any(is_ours(label) for label in labels):
            monitor.execute("remove-fd", {"fdset-id": fdset_id})


def _pass_image(monitor: Monitor, target: Target) -> str:
    with storage_errors(f"open {target.path}"):
        fd = os.open(target.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return pass_fd(monitor, fd, target.node_name, place=_place(_repository_of(target.path)))
    finally:
        os.close(fd)


def pass_fd(monitor: Monitor, fd: int, node_name: str, *, place: str = "") -> str:
    """Pass the descriptor for a node to QEMU, and return the file name by which QEMU opens it.

    ``place`` is added to its label (see ``open_elsewhere``). ``close_in_qemu`` removes it from QEMU with the node.
    Raises FdsNotPassedError if the connection to QEMU cannot carry descriptors, or QmpError.
    """
    reply: Any = monitor.execute("add-fd", {"opaque": f"{node_name} {place}".rstrip()}, fd=fd)
    return f"/dev/fdset/{Fields(reply, 'add-fd', MalformedError).integer('fdset-id')}"


def denied(path: Path, labels: Sequence[SecurityLabel], *, by_descriptor: bool) -> str:
    """Return why QEMU may not open a file or a directory, and the remedy; ``labels`` are what confines QEMU."""
    from vbackup.images import denied, denied_facts  # only this message needs them

    return denied.explain(denied_facts.gather(path, labels, by_descriptor=by_descriptor))


def _refusal(path: Path, description: QemuText, *, labels: Sequence[SecurityLabel], way: _Way) -> str:
    if way is _Way.OUR_CHILD:
        hint = (
            " It has the rights of vbackup itself, so file modes and owners are not the cause; check the kernel log for"
            " what confines it (AppArmor, SELinux), and check the mount options of the repository."
            if description.is_denied
            else ""
        )
        return f"The storage daemon cannot open the image {path}: {description.rstrip('.')}.{hint}"
    if description.is_denied:
        return denied(path, labels, by_descriptor=way is _Way.DESCRIPTOR)
    if way is _Way.PATH and description.is_not_found:
        return (
            f"QEMU cannot find {path}: over a connection to another host, the repository must be on storage that both"
            " hosts have at the same path. Mount it there, or run vbackup on the host itself."
        )
    return f"QEMU cannot open the image {path}: {description.rstrip('.')}."
