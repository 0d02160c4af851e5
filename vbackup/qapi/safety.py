"""Refuse a user's transaction that changes what libvirt tracks, what a repository relies on, or files that exist.

``vbackup transaction --unsafe`` skips this. vbackup.qapi.checker checks whether QEMU accepts the transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vbackup import names
from vbackup.errors import UnsafeError, command, domain_argument

#: Actions that create an image file, and the member that names it.
FILES = {"drive-backup": "target", "blockdev-snapshot-sync": "snapshot-file"}

#: Actions that put another image on top of a disk, which libvirt must know about.
_SNAPSHOTS = ("blockdev-snapshot", "blockdev-snapshot-sync")

#: Actions that change a bitmap, and the member that names it.
_CHANGES = {
    "block-dirty-bitmap-remove": "name",
    "block-dirty-bitmap-clear": "name",
    "block-dirty-bitmap-enable": "name",
    "block-dirty-bitmap-disable": "name",
    "block-dirty-bitmap-merge": "target",
}


def check(
    actions: Sequence[Mapping[str, Any]],
    *,
    domain: str | None,
    libvirt_nodes: Mapping[str, str],
    existing: Mapping[str, Collection[str]],
    existing_files: Collection[str],
    uri: str | None = None,
) -> None:
    """Raise UnsafeError for the first action that would do harm.

    ``domain`` is the name of the domain whose block graph libvirt manages, None without libvirt; ``libvirt_nodes`` has
    the disk (or "") of each node that libvirt tracks; ``existing`` has the bitmaps by node; ``existing_files`` are the
    files that QEMU would create but that exist; ``uri`` is that of libvirt, if it is not the default one.
    """
    for index, action in enumerate(actions):
        kind, data = action["type"], action["data"]
        path = f"actions[{index}]"
        if kind in _SNAPSHOTS and domain is not None:
            _check_snapshot(kind, data, path, domain=domain, libvirt_nodes=libvirt_nodes, uri=uri)
        if kind in _CHANGES:
            _check_bitmap(data["node"], data[_CHANGES[kind]], f"{path}.data.{_CHANGES[kind]}", existing)
        if kind in FILES and data.get("mode") != "existing" and data[FILES[kind]] in existing_files:
            raise UnsafeError(
                f"{path}.data.{FILES[kind]}",
                f"{data[FILES[kind]]} exists, and QEMU would empty it even if the transaction fails; name another"
                ' file, or use "mode": "existing" to write to an image that was created for this',
            )


def _check_snapshot(
    kind: str, data: Mapping[str, Any], path: str, *, domain: str, libvirt_nodes: Mapping[str, str], uri: str | None
) -> None:
    member = next((name for name in ("node", "node-name", "device") if data.get(name)), "node")
    node = data.get(member, "")
    if node not in libvirt_nodes:
        return
    dev = libvirt_nodes[node] or "DISK"
    file, reuse = data.get("snapshot-file"), ""
    if file is None:
        file, reuse = "FILE", " --reuse-external"
    words = f"virsh snapshot-create-as {domain_argument(domain)} --disk-only --no-metadata"
    instead = command(f"{words} --diskspec {dev},file={file}{reuse}", uri)
    raise UnsafeError(
        f"{path}.data.{member}",
        f"libvirt manages node {node} and would continue with an outdated block graph. Use '{instead}'",
    )


def _check_bitmap(node: str, name: str, path: str, existing: Mapping[str, Collection[str]]) -> None:
    """Refuse a change to a checkpoint or a mark; a bitmap that the transaction itself adds is neither yet."""
    parsed = names.parse_bitmap(name) or names.parse_end_mark(name) or names.parse_rollback_mark(name)
    if parsed is None or name not in existing.get(node, ()):
        return
    if isinstance(parsed, names.RollbackMark):
        raise UnsafeError(
            path,
            f"{name} says that disk {parsed.dev} is in the middle of a rollback. To remove it use 'vbackup bitmap"
            " remove'",
        )
    what = "an end mark" if isinstance(parsed, names.EndMark) else "a checkpoint"
    raise UnsafeError(
        path,
        f"{name} is {what} of repository {parsed.repository_id}: if it were changed, the next backup of disk"
        f" {parsed.dev} would miss changes. To remove it use 'vbackup bitmap remove', which reports the consequences",
    )
