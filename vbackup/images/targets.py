"""Hand target images to QEMU.

The image goes along as a file descriptor, so that a QEMU without privileges writes into root's own
repository; where the way to QEMU carries no descriptors, or it is a storage daemon (our own child,
with our own rights), it is opened by its path.
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
    """An image that becomes a node of QEMU."""

    path: Path
    node_name: str


class _Way(Enum):
    """How QEMU comes to an image."""

    DESCRIPTOR = "descriptor"
    PATH = "path"  #: with the rights of its own user
    OUR_CHILD = "our child"  #: by the path, with our rights


def open_in_qemu(
    monitor: Monitor,
    targets: Iterable[Target],
    *,
    undo: Undo,
    options: NodeOptions = QEMUS_OWN,
    security_labels: Sequence[SecurityLabel] = (),
) -> None:
    """Make each qcow2 image a node, in their order; ``undo`` gets their end.

    The node has no backing file in QEMU, whatever the image's header says: it takes only what a job
    writes. ``options`` are vbackup.images.tuning's. Raises StorageError where QEMU cannot open an image;
    ``security_labels`` are what confines QEMU, for the message that tells why it may not.
    """
    opened: list[str] = []
    undo.push("close the target images in QEMU", lambda: close_in_qemu(monitor, opened))
    for target in targets:
        opened.append(target.node_name)
        way = _Way.DESCRIPTOR
        try:
            try:
                filename = _pass_image(monitor, target)
            except FdsNotPassedError as err:
                filename = os.fspath(target.path)
                way = _Way.OUR_CHILD if isinstance(err, FdsNotNeededError) else _Way.PATH
            monitor.execute("blockdev-add", node(target.node_name, filename, options))
        except QmpError as err:
            raise StorageError(_refused(target.path, err.description, security_labels, way)) from err


def node(node_name: str, filename: str, options: NodeOptions = QEMUS_OWN) -> BlockdevOptions:
    """A qcow2 image without its backing file, as a node."""
    file = {"driver": "file", "filename": filename}
    return {"driver": "qcow2", "node-name": node_name, "file": file, "backing": None, **TABLES, **options.members()}


def flush_in_qemu(monitor: Monitor, node_names: Sequence[str]) -> BlockNodes:
    """Have QEMU write what it still holds of the images, and tell if that fails; all must be open.

    The qcow2 driver keeps tables in memory until the image is closed, after the job has concluded without
    an error; and blockdev-del says nothing when they cannot be written. Opening a node anew with the options
    it has changes nothing, but QEMU flushes it first and reports that. From the page cache to the disk is the caller's
    way (vbackup.images.writeback), except where QEMU was told to go it. Returns QEMU's nodes, which are asked for
    anyway. Raises NoSpaceError, StorageError.
    """
    nodes = block_nodes(monitor)
    try:
        options = [node(name, nodes.filename(name), nodes.options(name)) for name in node_names]
        monitor.execute("blockdev-reopen", {"options": options})
    except QmpError as err:
        if err.description.is_no_space:
            raise NoSpaceError(
                "No space left in the repository for the last of the images. Nothing was kept of this backup; make room"
                " and run the same command again."
            ) from err
        raise StorageError(
            f"QEMU could not write the last of the images to the repository: {err.description}. Nothing was kept of"
            " this backup; mend the repository's storage and run the same command again."
        ) from err
    return nodes


def close_in_qemu(monitor: Monitor, node_names: Sequence[str]) -> list[str]:
    """Close those of the nodes that are open, and take the descriptors back that they were opened with.

    A node has to come before those that it uses: QEMU closes none that is in use. Returns the nodes that were open.
    Raises QmpError, after closing the others, where QEMU refuses.
    """
    known = block_nodes(monitor).node_names()
    nodes = [name for name in node_names if name in known]
    refusal = None
    for name in nodes:
        try:
            monitor.execute("blockdev-del", {"node-name": name})
        except QmpError as err:
            refusal = refusal or err
    _remove_fds(monitor, lambda label: label in node_names)
    if refusal is not None:
        raise refusal
    return nodes


def close_all_in_qemu(monitor: Monitor, naming: Naming) -> list[str]:
    """Close all nodes of this repository, and take their descriptors back; returns the nodes.

    Which of them uses which is not known: what QEMU refuses because it is in use is tried again after the others.
    Raises QmpError where one stays in use.
    """
    nodes = sorted(name for name in block_nodes(monitor).node_names() if name.startswith(naming.prefix))
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


def _remove_fds(monitor: Monitor, is_ours: Callable[[str], bool]) -> None:
    try:
        reply = monitor.execute("query-fdsets")
    except QmpError as err:
        if err.error_class == "CommandNotFound":
            return  # a storage daemon, which takes none
        raise
    for entry in objects(reply, "query-fdsets", MalformedError):
        labels = [fd.optional_text("opaque") or "" for fd in entry.objects("fds")]
        if any(is_ours(label) for label in labels):
            monitor.execute("remove-fd", {"fdset-id": entry.integer("fdset-id")})


def _pass_image(monitor: Monitor, target: Target) -> str:
    with storage_errors(f"open {target.path}"):
        fd = os.open(target.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return pass_fd(monitor, fd, target.node_name)
    finally:
        os.close(fd)


def pass_fd(monitor: Monitor, fd: int, node_name: str) -> str:
    """Hand the descriptor for a node over; returns the file name by which QEMU opens it.

    Closing the node takes it back (``close_in_qemu``).

    Raises FdsNotPassedError where the way to QEMU carries none, QmpError.
    """
    reply: Any = monitor.execute("add-fd", {"opaque": node_name}, fd=fd)
    return f"/dev/fdset/{Fields(reply, 'add-fd', MalformedError).integer('fdset-id')}"


def denied(path: Path, labels: Sequence[SecurityLabel], *, by_descriptor: bool) -> str:
    """Why QEMU may not open a file or a directory, and what to do about it; ``labels`` are what confines it."""
    from vbackup.images import denied, denied_facts  # for this message only

    return denied.explain(denied_facts.gather(path, labels, by_descriptor=by_descriptor))


def _refused(path: Path, description: QemuText, labels: Sequence[SecurityLabel], way: _Way) -> str:
    if way is _Way.OUR_CHILD:
        hint = (
            " It has the rights of vbackup itself, so no mode or owner is in its way; look at the kernel's log for what"
            " confines it (AppArmor, SELinux), and at the mount options of the repository."
        )
        more = hint if description.is_denied else ""
        return f"The storage daemon cannot open the image {path}: {description.rstrip('.')}.{more}"
    if description.is_denied:
        return denied(path, labels, by_descriptor=way is _Way.DESCRIPTOR)
    if way is _Way.PATH and description.is_not_found:
        return (
            f"QEMU does not see {path}: over a connection to another host the repository must be on storage"
            " that both hosts have under the same path. Mount it there, or run vbackup on the host itself."
        )
    return f"QEMU cannot open the image {path}: {description.rstrip('.')}."
