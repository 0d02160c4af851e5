"""What QEMU refuses in a transaction although its schema allows it, as far as vbackup can know without asking QEMU.

Every rule is one of QEMU's (measured on 7.2, tests/contract/test_checker.py): nothing is refused that QEMU would carry
out. Some rules prevent harm: QEMU 7.2 crashes if block-dirty-bitmap-enable names a bitmap that does not exist, or is in
a grouped transaction; if it names a bitmap that the transaction removes, that bitmap stays disabled.
vbackup.qapi.checker checks the schema first, so the rules rely on what the schema ensures.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vbackup.errors import TransactionError
from vbackup.qapi import actions, wording
from vbackup.qapi.actions.bitmaps import MAX_GRANULARITY_BYTES, MAX_NAME_BYTES, MIN_GRANULARITY_BYTES

#: The names of the bitmaps by node-name.
Existing = Mapping[str, Collection[str]]

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # id_wellformed() in QEMU's util/id.c
MAX_NODE_NAME_BYTES = 31
MAX_WORKERS = 2**31 - 1
INT64_MAX = 2**63 - 1
#: Actions that insert a node above another: from then on a device's name means the new node.
_CHANGES_GRAPH = ("blockdev-backup", "drive-backup", "blockdev-snapshot", "blockdev-snapshot-sync")
_BACKUPS = ("blockdev-backup", "drive-backup")
_USES_BITMAP = tuple(f"block-dirty-bitmap-{verb}" for verb in ("clear", "enable", "disable", "remove"))


@dataclass(frozen=True)
class _Step:
    """One action. A member that is not of the type asked for counts as missing."""

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
    """Refuse the names that actions had before they became stable (QEMU 3.1).

    Raises TransactionError, with the stable name.
    """
    given = arguments.get("actions")
    for index, action in enumerate(given if isinstance(given, list) else ()):
        kind = action.get("type") if isinstance(action, dict) else None
        if not isinstance(kind, str) or not kind.startswith("x-"):
            continue
        modern = actions.modern_name(kind)
        advice = f"use '{modern}', stable since QEMU {actions.TYPES[modern].SINCE}" if modern else "it is not stable"
        raise TransactionError(f"actions[{index}].type", f"{wording.shown(kind)} is an experimental name; {advice}.")


def check(arguments: Mapping[str, Any], existing: Existing) -> tuple[str, ...]:
    """Check arguments of ``transaction`` that match the schema, and return warnings, each a sentence with its path.

    ``existing`` has the current bitmaps, by node-name (not by the name of a device); the bitmaps of other nodes are
    not checked. Raises TransactionError.
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
    allowed = wording.listed([kind for kind, action in actions.TYPES.items() if action.GROUPED])
    for step in steps:
        if not actions.TYPES[step.kind].GROUPED:
            raise TransactionError(
                f"actions[{step.index}].type",
                f"'{step.kind}' cannot be in a transaction with completion-mode grouped, which only allows {allowed}."
                " With --wait, vbackup groups the jobs itself; otherwise leave completion-mode out, set auto-finalize"
                " to false, and finalise the jobs when all are pending.",
            )


# each action by itself


def _add(step: _Step) -> None:
    name = step.text("name")
    if name == "":
        raise step.refuse("name", "the name of a bitmap must not be empty.")
    if name is not None and len(name.encode()) > MAX_NAME_BYTES:
        raise step.refuse("name", f"the name of a bitmap has at most {MAX_NAME_BYTES} bytes, not {len(name.encode())}.")
    size = step.whole("granularity")
    if size is None:
        return
    if not MIN_GRANULARITY_BYTES <= size <= MAX_GRANULARITY_BYTES or not _is_power_of_two(size):
        raise step.refuse(
            "granularity",
            f"{size} must be a power of two from {MIN_GRANULARITY_BYTES} to {MAX_GRANULARITY_BYTES} (bytes).",
        )


def _backup(step: _Step) -> None:
    job_id = step.text("job-id")
    if job_id is not None and not _IDENTIFIER.fullmatch(job_id):
        raise step.refuse(
            "job-id",
            f"{wording.shown(job_id)} must begin with a letter and have only letters, digits, dots, dashes and"
            " underscores.",
        )
    speed = step.whole("speed")
    if speed is not None and not 0 <= speed <= INT64_MAX:
        raise step.refuse("speed", f"{speed} must be from 0 (no limit) to {INT64_MAX} (bytes/s).")
    _node_name(step, "filter-node-name")
    _performance(step)
    _sync(step)
    if step.kind == "blockdev-backup" and step.data.get("device") == step.data.get("target"):
        raise step.refuse("target", "a node cannot be copied into itself; name a node other than 'device'.")


def _sync(step: _Step) -> None:
    """Check sync, bitmap and bitmap-mode against the table in do_backup_common() of QEMU's blockdev.c."""
    sync, mode = step.text("sync"), step.text("bitmap-mode")
    if "bitmap" not in step.data:
        if sync in ("bitmap", "incremental"):
            raise step.refuse("bitmap", f"this is missing; sync '{sync}' copies what is dirty in a bitmap.")
        if mode is not None:
            raise step.refuse("bitmap-mode", "this needs a 'bitmap'; name one, or leave 'bitmap-mode' out.")
        return
    if sync == "incremental":
        if mode not in (None, "on-success"):
            raise step.refuse(
                "bitmap-mode", f"sync 'incremental' always means 'on-success'; use sync 'bitmap' for '{mode}'."
            )
        return
    if mode is None:
        modes = wording.listed([mode.value for mode in actions.BitmapSyncMode])
        raise step.refuse("bitmap-mode", f"this is missing; with a bitmap and sync '{sync}' it must be one of {modes}.")
    if sync == "none":
        raise step.refuse("sync", "'none' does not use a bitmap; leave 'bitmap' and 'bitmap-mode' out.")
    if mode == "never" and sync != "bitmap":
        raise step.refuse(
            "bitmap-mode",
            f"'never' with sync '{sync}' does not use the bitmap; leave 'bitmap' and 'bitmap-mode' out, or use"
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
        raise step.refuse("x-perf.min-cluster-size", f"{cluster} must be 0 or a power of two (bytes).")


def _snapshot(step: _Step) -> None:
    if step.data.get("node") == step.data.get("overlay"):
        raise step.refuse("overlay", "a node cannot be its own overlay; name a node other than 'node'.")


def _internal_snapshot(step: _Step) -> None:
    if step.text("name") == "":
        raise step.refuse("name", "the name of a snapshot must not be empty.")


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
            f"{wording.shown(name)} must begin with a letter and have only letters, digits, dots, dashes and"
            f" underscores, at most {MAX_NODE_NAME_BYTES} in all.",
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
    """What the actions so far do to bitmaps, job ids and targets."""

    def __init__(self, existing: Existing) -> None:
        self.warnings: list[str] = []
        self._existing = existing
        self._added: dict[tuple[str, str], int] = {}
        self._removed: dict[tuple[str, str], int] = {}
        self._copied_by: dict[tuple[str, str], int] = {}
        self._used: dict[tuple[str, str], str] = {}  #: the path of the first use, before any add
        self._job_ids: dict[str, int] = {}
        self._nameless: dict[str, int] = {}  #: devices copied by jobs without an id
        self._targets: dict[str, int] = {}
        self._sources: dict[str, int] = {}
        self._self_ending: dict[str, int] = {}  #: devices copied by jobs that finalise themselves

    def take(self, step: _Step) -> None:
        """Check the next action after those before it."""
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
                " have succeeded; remove it in an earlier transaction, or clear it instead.",
            )
        if key in self._added:
            raise TransactionError(at, f"actions[{self._added[key]}] already adds {what}.")
        if key in self._used:
            raise TransactionError(
                self._used[key],
                f"actions[{step.index}] adds {what} too late; move it before this action.",
            )
        if name in self._existing.get(node, ()):
            raise TransactionError(at, f"{what} already exists; use it, or remove it first.")
        self._added[key] = step.index

    def _warn_of_enabling(self, step: _Step, node: str) -> None:
        if step.kind != "block-dirty-bitmap-enable" or node in self._existing:
            return
        if (node, step.text("name")) not in self._added:
            # Its undo in QEMU uses the bitmap that was not found.
            self.warnings.append(
                f"{step.path('name')}: vbackup does not know whether {wording.shown(node)} has this bitmap, and"
                " QEMU 7.2 crashes if it does not; check before you send this."
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
        """Check a bitmap that must exist and be free."""
        if not isinstance(name, str):
            return
        key = (node, name)
        what = f"bitmap {wording.shown(name)} of node {wording.shown(node)}"
        if key in self._removed:
            raise TransactionError(path, f"actions[{self._removed[key]}] removes {what}; move that action to the end.")
        if key in self._copied_by:
            raise TransactionError(
                path, f"the job of actions[{self._copied_by[key]}] uses {what}; move this action before that one."
            )
        if key in self._added:
            return
        if node in self._existing and name not in self._existing[node]:
            hint = wording.similar(name, self._existing[node])
            has = wording.listed(sorted(self._existing[node])[:10])
            raise TransactionError(path, f"there is no {what}; the node has {has}.{hint}")
        self._used.setdefault(key, path)

    def _start(self, step: _Step) -> None:
        """Check an action that starts a job."""
        device, target, job_id = step.text("device") or "", step.text("target") or "", step.text("job-id")
        if step.kind == "blockdev-backup":
            self._place(step, device, target)
        if "bitmap" in step.data:
            self._use(device, step.text("bitmap"), step.path("bitmap"))
            self._copied_by[device, step.text("bitmap") or ""] = step.index
        # Without a job-id QEMU uses the name of the device on the node, which is the same for two such jobs.
        ids, key = (self._nameless, device) if job_id is None else (self._job_ids, job_id)
        if key in ids:
            same = wording.shown(job_id) if job_id is not None else "the device's name"
            raise step.refuse("job-id", f"actions[{ids[key]}] has the same id, {same}; give each job its own id.")
        ids[key] = step.index
        if self._existing and device not in self._existing and device in self._sources:
            self.warnings.append(
                f"{step.path('device')}: {wording.shown(device)} is not a node-name, and"
                f" actions[{self._sources[device]}] also copies it; QEMU (7.2 to 11.1) crashes when such a transaction"
                " fails. Use the node-name."
            )
        self._sources[device] = step.index
        if step.text("on-cbw-error") == actions.OnCbwError.BREAK_SNAPSHOT.value and step.text("sync") != "none":
            self.warnings.append(
                f"{step.path('on-cbw-error')}: a job that reads the disk itself does not notice that the snapshot"
                " broke: it succeeds, and its copy contains what the guest has written since (seen on QEMU 11.1). Use"
                " sync none, and copy from a snapshot-access node on its filter."
            )
        self._warn_of_self_ending(step, device)

    def _warn_of_self_ending(self, step: _Step, device: str) -> None:
        if step.data.get("auto-finalize") is False:
            return
        if device in self._self_ending:
            self.warnings.append(
                f"{step.path('auto-finalize')}: actions[{self._self_ending[device]}] also copies"
                f" {wording.shown(device)}, and both jobs finalise themselves; QEMU 10.0 crashes when one of them"
                " fails, and 11.1 may crash when they end at the same time. Set auto-finalize to false in both, and"
                " finalise them one after the other."
            )
        self._self_ending[device] = step.index

    def _place(self, step: _Step, device: str, target: str) -> None:
        """Check the target of a job."""
        if target in self._targets:
            raise step.refuse(
                "target",
                f"actions[{self._targets[target]}] already writes to {wording.shown(target)}; give each job its own"
                " target.",
            )
        if device in self._targets:
            raise step.refuse(
                "device",
                f"actions[{self._targets[device]}] writes to {wording.shown(device)}; it cannot be copied too.",
            )
        self._targets[target] = step.index

    def _forget_devices(self) -> None:
        """Forget what was done to nodes that are not in ``existing``: a device's name may mean another node now."""
        for known in (self._added, self._removed, self._copied_by, self._used):
            for key in [(node, name) for node, name in known if node not in self._existing]:
                del known[key]


def _whole(data: Mapping[str, Any], name: str) -> int | None:
    value = data.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)
