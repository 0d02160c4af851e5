"""What QEMU refuses in a transaction although its schema allows it, and what can be known without asking QEMU.

Every rule is one of QEMU's (measured on 7.2, tests/contract/test_checker.py): nothing is refused that QEMU
would carry out. Some matter more than others: QEMU 7.2 crashes where -enable names a bitmap that is not there,
or stands in a grouped transaction, and where it names one that the transaction removes, that bitmap is left
disabled. vbackup.qapi.checker looks at the schema first; what that has let through is taken for granted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vbackup.errors import TransactionError
from vbackup.qapi import actions, wording
from vbackup.qapi.actions.bitmaps import MAX_GRANULARITY_BYTES, MAX_NAME_BYTES, MIN_GRANULARITY_BYTES

#: The bitmaps of nodes by node-name.
Existing = Mapping[str, Collection[str]]

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # id_wellformed() in QEMU's util/id.c
MAX_NODE_NAME_BYTES = 31
MAX_WORKERS = 2**31 - 1
INT64_MAX = 2**63 - 1
#: Actions that put a node above another: from then on a device's name means that new node.
_CHANGES_GRAPH = ("blockdev-backup", "drive-backup", "blockdev-snapshot", "blockdev-snapshot-sync")
_BACKUPS = ("blockdev-backup", "drive-backup")
_USES_BITMAP = tuple(f"block-dirty-bitmap-{verb}" for verb in ("clear", "enable", "disable", "remove"))


@dataclass(frozen=True)
class _Step:
    """One action, whose members are asked for with their type; what is no such thing is as if it were not there."""

    index: int
    kind: str
    data: Mapping[str, Any]

    def text(self, name: str) -> str | None:
        value = self.data.get(name)
        return value if isinstance(value, str) else None

    def whole(self, name: str) -> int | None:
        return _whole(self.data, name)

    def path(self, name: str) -> str:
        return f"actions[{self.index}].data.{name}"

    def refuse(self, name: str, message: str) -> TransactionError:
        return TransactionError(self.path(name), message)


def experimental_names(arguments: Mapping[str, Any]) -> None:
    """Refuse the names that actions had before they were stable (QEMU 3.1).

    Raises TransactionError with the modern name.
    """
    given = arguments.get("actions")
    for index, action in enumerate(given if isinstance(given, list) else ()):
        kind = action.get("type") if isinstance(action, dict) else None
        if not isinstance(kind, str) or not kind.startswith("x-"):
            continue
        modern = actions.modern_name(kind)
        says = f"say '{modern}', which QEMU has since {actions.TYPES[modern].SINCE}" if modern else "it is not stable"
        raise TransactionError(f"actions[{index}].type", f"{wording.shown(kind)} is an experimental name: {says}.")


def check(arguments: Mapping[str, Any], existing: Existing) -> tuple[str, ...]:
    """Check arguments of ``transaction`` that fit the schema, and return warnings, each a sentence.

    ``existing`` has the bitmaps that there are now, by node-name (not by the name of a device); nodes
    that are not in it are not judged. Raises TransactionError.
    """
    given = arguments.get("actions")
    steps = [
        _Step(index, action["type"], action["data"])
        for index, action in enumerate(given if isinstance(given, list) else ())
        if isinstance(action, dict) and isinstance(action.get("data"), dict) and action.get("type") in actions.TYPES
    ]
    _completion_mode(arguments, steps)
    order = _Order(existing)
    for step in steps:
        alone = _ALONE.get(step.kind)
        if alone is not None:
            alone(step)
        order.take(step)
    return tuple(order.warnings)


def _completion_mode(arguments: Mapping[str, Any], steps: Collection[_Step]) -> None:
    properties = arguments.get("properties")
    if not isinstance(properties, dict) or properties.get("completion-mode") != "grouped":
        return
    able = wording.listed([kind for kind, action in actions.TYPES.items() if action.GROUPED])
    for step in steps:
        if not actions.TYPES[step.kind].GROUPED:
            raise TransactionError(
                f"actions[{step.index}].type",
                f"'{step.kind}' cannot be in a transaction with completion-mode grouped, which only takes {able}."
                " With --wait vbackup does the same itself; else leave completion-mode out, set auto-finalize false,"
                " and finalise the jobs when all are pending.",
            )


# each action by itself


def _add(step: _Step) -> None:
    name = step.text("name")
    if name == "":
        raise step.refuse("name", "a bitmap's name must not be empty.")
    if name is not None and len(name.encode()) > MAX_NAME_BYTES:
        raise step.refuse("name", f"a bitmap's name has at most {MAX_NAME_BYTES} bytes, not {len(name.encode())}.")
    size = step.whole("granularity")
    if size is None:
        return
    if not MIN_GRANULARITY_BYTES <= size <= MAX_GRANULARITY_BYTES or not _is_power_of_two(size):
        raise step.refuse(
            "granularity",
            f"{size} is no power of two from {MIN_GRANULARITY_BYTES} to {MAX_GRANULARITY_BYTES} (bytes).",
        )


def _backup(step: _Step) -> None:
    job_id = step.text("job-id")
    if job_id is not None and not _IDENTIFIER.fullmatch(job_id):
        raise step.refuse(
            "job-id", f"{wording.shown(job_id)} must be a letter, then letters, digits, dots, dashes, underscores."
        )
    speed = step.whole("speed")
    if speed is not None and not 0 <= speed <= INT64_MAX:
        raise step.refuse("speed", f"{speed} must be from 0 (no limit) to {INT64_MAX} (bytes/s).")
    _node_name(step, "filter-node-name")
    _performance(step)
    _sync(step)
    if step.kind == "blockdev-backup" and step.data.get("device") == step.data.get("target"):
        raise step.refuse("target", "a node cannot be copied into itself; give another node than 'device'.")


def _sync(step: _Step) -> None:
    """The table of sync, bitmap and bitmap-mode in do_backup_common() of QEMU's blockdev.c."""
    sync, mode = step.text("sync"), step.text("bitmap-mode")
    if "bitmap" not in step.data:
        if sync in ("bitmap", "incremental"):
            raise step.refuse("bitmap", f"this is missing; sync '{sync}' copies what is dirty in a bitmap.")
        if mode is not None:
            raise step.refuse("bitmap-mode", "this needs a 'bitmap' to act on; leave it out, or name one.")
        return
    if sync == "incremental":
        if mode not in (None, "on-success"):
            raise step.refuse(
                "bitmap-mode", f"sync 'incremental' always means 'on-success'; say sync 'bitmap' to have '{mode}'."
            )
        return
    if mode is None:
        modes = wording.listed([one.value for one in actions.BitmapSyncMode])
        raise step.refuse("bitmap-mode", f"this is missing; with a bitmap and sync '{sync}' it must be one of {modes}.")
    if sync == "none":
        raise step.refuse("sync", "'none' makes nothing of a bitmap; leave 'bitmap' and 'bitmap-mode' out.")
    if mode == "never" and sync != "bitmap":
        raise step.refuse(
            "bitmap-mode",
            f"'never' with sync '{sync}' makes nothing of the bitmap; leave 'bitmap' and 'bitmap-mode' out, or say"
            " 'on-success' or 'always'.",
        )


def _performance(step: _Step) -> None:
    perf = step.data.get("x-perf")
    if not isinstance(perf, dict):
        return
    workers, chunk = _whole(perf, "max-workers"), _whole(perf, "max-chunk")
    cluster = _whole(perf, "min-cluster-size")
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise step.refuse("x-perf.max-workers", f"{workers} must be from 1 to {MAX_WORKERS}.")
    if chunk is not None and not 0 <= chunk <= INT64_MAX:
        raise step.refuse("x-perf.max-chunk", f"{chunk} must be from 0 (no limit) to {INT64_MAX} (bytes).")
    if cluster is not None and cluster != 0 and not _is_power_of_two(cluster):
        raise step.refuse("x-perf.min-cluster-size", f"{cluster} must be a power of two, or 0 (bytes).")


def _snapshot(step: _Step) -> None:
    if step.data.get("node") == step.data.get("overlay"):
        raise step.refuse("overlay", "a node cannot be its own overlay; give another node than 'node'.")


def _internal_snapshot(step: _Step) -> None:
    if step.text("name") == "":
        raise step.refuse("name", "a snapshot's name must not be empty.")


def _snapshot_file(step: _Step) -> None:
    if "device" not in step.data and "node-name" not in step.data:
        raise step.refuse("node-name", "this is missing; either 'device' or 'node-name' must name the disk.")
    if "node-name" in step.data and "snapshot-node-name" not in step.data:
        raise step.refuse("snapshot-node-name", "this is missing; with 'node-name' the overlay needs a name as well.")
    _node_name(step, "snapshot-node-name")


def _node_name(step: _Step, member: str) -> None:
    name = step.text(member)
    if name is None:
        return
    if not _IDENTIFIER.fullmatch(name) or len(name) > MAX_NODE_NAME_BYTES:
        raise step.refuse(
            member,
            f"{wording.shown(name)} must be a letter, then letters, digits, dots, dashes, underscores; at most"
            f" {MAX_NODE_NAME_BYTES} in all.",
        )


_ALONE = {
    "block-dirty-bitmap-add": _add,
    "blockdev-backup": _backup,
    "drive-backup": _backup,
    "blockdev-snapshot": _snapshot,
    "blockdev-snapshot-internal-sync": _internal_snapshot,
    "blockdev-snapshot-sync": _snapshot_file,
}


# the actions one after the other


class _Order:
    """What the actions so far have done to bitmaps, job ids and targets."""

    def __init__(self, existing: Existing) -> None:
        self.warnings: list[str] = []
        self._existing = existing
        self._added: dict[tuple[str, str], int] = {}
        self._removed: dict[tuple[str, str], int] = {}
        self._copied_by: dict[tuple[str, str], int] = {}
        self._used: dict[tuple[str, str], str] = {}  #: before any add: the path of the first use
        self._job_ids: dict[str, int] = {}
        self._nameless: dict[str, int] = {}  #: devices copied by jobs without an id
        self._targets: dict[str, int] = {}
        self._sources: dict[str, int] = {}
        self._self_ending: dict[str, int] = {}  #: devices copied by jobs that finalise themselves

    def take(self, step: _Step) -> None:
        """One action more."""
        node = step.text("node") or ""
        if step.kind == "block-dirty-bitmap-add":
            self._add(step, node)
        elif step.kind in _USES_BITMAP:
            self._use(node, step.text("name"), step.path("name"))
            self._warn_of_enabling(step, node)
            if step.kind == "block-dirty-bitmap-remove":
                self._removed[node, step.text("name") or ""] = step.index
        elif step.kind == "block-dirty-bitmap-merge":
            self._use(node, step.text("target"), step.path("target"))
            self._use_sources(step, node)
        elif step.kind in _BACKUPS:
            self._start(step)
        if step.kind in _CHANGES_GRAPH:
            self._forget_devices()

    def _add(self, step: _Step, node: str) -> None:
        name = step.text("name") or ""
        key, at = (node, name), step.path("name")
        what = f"bitmap {wording.shown(name)} of node {wording.shown(node)}"
        if key in self._removed:
            raise TransactionError(
                at,
                f"actions[{self._removed[key]}] removes {what}, but QEMU frees the name only when all actions"
                " have succeeded; remove it in a transaction before this one, or clear it instead.",
            )
        if key in self._added:
            raise TransactionError(at, f"{what} is added by actions[{self._added[key]}] already.")
        if key in self._used:
            raise TransactionError(
                self._used[key],
                f"{what} is added only by actions[{step.index}], which is too late; put that before this action.",
            )
        if name in self._existing.get(node, ()):
            raise TransactionError(at, f"there is a {what} already; use it, or remove it first.")
        self._added[key] = step.index

    def _warn_of_enabling(self, step: _Step, node: str) -> None:
        if step.kind != "block-dirty-bitmap-enable" or node in self._existing:
            return
        if (node, step.text("name")) not in self._added:
            # Its undo goes to the bitmap that was not found.
            self.warnings.append(
                f"{step.path('name')}: whether {wording.shown(node)} has this bitmap is not known here, and QEMU 7.2"
                " crashes if it has not; look before you send it."
            )

    def _use_sources(self, step: _Step, node: str) -> None:
        sources = step.data.get("bitmaps")
        for index, source in enumerate(sources if isinstance(sources, list) else ()):
            path = f"{step.path('bitmaps')}[{index}]"
            if isinstance(source, str):
                self._use(node, source, path)
            elif isinstance(source, dict) and isinstance(source.get("node"), str):
                self._use(source["node"], source.get("name"), f"{path}.name")

    def _use(self, node: str, name: Any, path: str) -> None:
        """A bitmap that must be there, and free."""
        if not isinstance(name, str):
            return
        key = (node, name)
        what = f"bitmap {wording.shown(name)} of node {wording.shown(node)}"
        if key in self._removed:
            raise TransactionError(path, f"{what} is removed by actions[{self._removed[key]}]; put that last.")
        if key in self._copied_by:
            raise TransactionError(
                path, f"{what} is in use by the job of actions[{self._copied_by[key]}]; put this action before it."
            )
        if key in self._added:
            return
        if node in self._existing and name not in self._existing[node]:
            hint = wording.similar(name, self._existing[node])
            has = wording.listed(sorted(self._existing[node])[:10])
            raise TransactionError(path, f"there is no {what} at this moment; the node has {has}.{hint}")
        self._used.setdefault(key, path)

    def _start(self, step: _Step) -> None:
        """A job."""
        device, target, job_id = step.text("device") or "", step.text("target") or "", step.text("job-id")
        if step.kind == "blockdev-backup":
            self._place(step, device, target)
        if "bitmap" in step.data:
            self._use(device, step.text("bitmap"), step.path("bitmap"))
            self._copied_by[device, step.text("bitmap") or ""] = step.index
        # Without a job-id QEMU takes the name of the device on the node, which two such jobs have in common.
        ids, key = (self._nameless, device) if job_id is None else (self._job_ids, job_id)
        if key in ids:
            same = wording.shown(job_id) if job_id is not None else "the device's name"
            raise step.refuse("job-id", f"actions[{ids[key]}] has the same id, {same}; give each job its own.")
        ids[key] = step.index
        if self._existing and device not in self._existing and device in self._sources:
            self.warnings.append(
                f"{step.path('device')}: {wording.shown(device)} is not a node-name, and is copied by"
                f" actions[{self._sources[device]}] too; QEMU (7.2 to 11.1) crashes when such a transaction fails."
                " Give the node-name."
            )
        self._sources[device] = step.index
        if step.text("on-cbw-error") == actions.OnCbwError.BREAK_SNAPSHOT.value and step.text("sync") != "none":
            self.warnings.append(
                f"{step.path('on-cbw-error')}: a job that reads the disk itself does not notice that the snapshot"
                " broke: it ends well, with what the guest has written since in its copy (seen on QEMU 11.1). Use sync"
                " none, and copy from a snapshot-access node on its filter."
            )
        self._warn_of_self_ending(step, device)

    def _warn_of_self_ending(self, step: _Step, device: str) -> None:
        if step.data.get("auto-finalize") is False:
            return
        if device in self._self_ending:
            self.warnings.append(
                f"{step.path('auto-finalize')}: actions[{self._self_ending[device]}] copies {wording.shown(device)}"
                " too, and both jobs end by themselves; QEMU 10.0 crashes when one of them fails, and 11.1 may when"
                " they end at once. Set auto-finalize false in both, and finalise them one after the other."
            )
        self._self_ending[device] = step.index

    def _place(self, step: _Step, device: str, target: str) -> None:
        """Where a job writes to."""
        if target in self._targets:
            raise step.refuse(
                "target",
                f"actions[{self._targets[target]}] writes to {wording.shown(target)} already; give each its own.",
            )
        if device in self._targets:
            raise step.refuse(
                "device",
                f"actions[{self._targets[device]}] writes to {wording.shown(device)}; it cannot be copied as well.",
            )
        self._targets[target] = step.index

    def _forget_devices(self) -> None:
        """A device's name may mean another node now; what is known of those in ``existing`` stays."""
        for known in (self._added, self._removed, self._copied_by, self._used):
            for key in [one for one in known if one[0] not in self._existing]:
                del known[key]


def _whole(data: Mapping[str, Any], name: str) -> int | None:
    value = data.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)
