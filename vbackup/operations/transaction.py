"""Send a user's transaction: resolve names, check it, refuse harm, and follow its jobs to their end.

vbackup.qapi.actions defines what a transaction can contain, vbackup.qapi.checker decides whether this QEMU accepts it,
vbackup.domain.attached selects the QEMU. Backups have their own transactions (vbackup.engine.plan).
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from vbackup.domain.attached import AttachedQemu
from vbackup.errors import BusyError, DiskError, QmpError, TransactionError, TransactionRefusedError
from vbackup.model import DiskNode
from vbackup.qapi import actions, checker, safety, wording
from vbackup.qapi.actions import CompletionMode, blame
from vbackup.qemu import jobs, transaction
from vbackup.qemu.jobs import Job
from vbackup.qemu.monitor import schema
from vbackup.report import Reporter
from vbackup.stop import Stop
from vbackup.undo import Undo

#: Actions that start a job.
JOBS = frozenset(kind for kind, action in actions.TYPES.items() if action.GROUPED)

#: A string with this prefix and a disk name stands for the name of the disk's active node.
DISK_PREFIX = "$disk:"


class Completion(Enum):
    """How the jobs of a transaction end, and who ensures it."""

    INDIVIDUAL = "individual"  #: each independently
    GROUPED = "grouped"  #: QEMU: all or none
    TOGETHER = "together"  #: vbackup: all or none, where QEMU refuses grouped


@dataclass(frozen=True)
class TransactionRequest:
    """The options of ``vbackup transaction``."""

    arguments: Any  #: the arguments of the QMP command, or the list of actions alone
    completion_mode: CompletionMode | None = None  #: overrides the one in ``arguments``
    test: bool = False  #: QEMU prepares everything and undoes it
    wait: bool = False  #: follow the jobs to their end
    unsafe: bool = False  #: also send changes to what libvirt or a repository relies on


@dataclass(frozen=True)
class Done:
    """What was sent, and the result."""

    arguments: Mapping[str, Any]  #: as sent to QEMU
    warnings: tuple[str, ...]
    completion: Completion
    tested: bool
    jobs: tuple[Job, ...] = field(default=())  #: as they ended; empty without waiting

    @property
    def failed_jobs(self) -> tuple[Job, ...]:
        """The jobs that ended with an error."""
        return tuple(ended for ended in self.jobs if ended.error is not None)


def run(request: TransactionRequest, *, attached: AttachedQemu, reporter: Reporter, stop: Stop) -> Done:
    """Check the transaction, send it, and return the result.

    Raises TransactionError (nothing was sent: this QEMU would not accept it), UnsafeError (nothing was sent: it would
    do harm), TransactionRefusedError (QEMU carried out none of it), BusyError, and what every monitor can raise. A job
    that fails raises nothing; Done.failed_jobs has it.
    """
    arguments = _arguments(request, attached)
    wait = (request.wait or attached.ends_with_us) and not request.test
    arguments, completion = _completion(arguments, wait=wait)
    warnings = checker.check(arguments, schema(attached.monitor), existing=attached.bitmaps())
    for warning in warnings:
        reporter.warning(warning)
    if attached.ends_with_us:
        _refuse_read_only(arguments["actions"], attached)
    if request.test:
        _refuse_own_abort(arguments["actions"])
    if not request.unsafe:
        _refuse_harm(arguments["actions"], attached)
    stop.check()
    if request.test:
        _test(arguments, attached)
        return Done(arguments, warnings, completion, tested=True)
    if not wait:
        _send(arguments, attached)
        return Done(arguments, warnings, completion, tested=False)
    sent, kept = _keep_concluded(arguments)
    with Undo(reporter) as undo:
        job_ids = _job_ids(sent["actions"])
        undo.push("end the jobs", lambda: jobs.cancel(attached.monitor, job_ids))
        _send(sent, attached)
        together = completion is Completion.TOGETHER
        devs = _devs(sent["actions"], attached)
        ended = jobs.follow(attached.monitor, job_ids, together=together, reporter=reporter, stop=stop, devs=devs)
        undo.release()
    # Dismiss what the user did not ask to keep, as QEMU would have done.
    jobs.cancel(attached.monitor, [job_id for job_id in kept if ended[job_id].status is jobs.JobStatus.CONCLUDED])
    return Done(sent, warnings, completion, tested=False, jobs=tuple(ended.values()))


def _refuse_read_only(wanted: Sequence[Mapping[str, Any]], attached: AttachedQemu) -> None:
    """Raise DiskError if a bitmap would be stored in an image that is only read, or data copied to it.

    QEMU before 11 adds such a bitmap, and drops it at the end of the storage daemon. It refuses other changes of stored
    bitmaps, and copies, but does not know the reason.
    """
    only_read = {disk.top.node_name: (dev, disk.read_only_reason) for dev, disk in attached.disks().items()}
    for action in wanted:
        data = action["data"]
        dev, reason = only_read.get(data.get("target"), ("", None))
        if reason is not None:
            raise DiskError(dev, f"nothing can be written to it now: {reason}.")
        dev, reason = only_read.get(data.get("node"), ("", None))
        if reason is not None and action["type"] == "block-dirty-bitmap-add" and data.get("persistent"):
            raise DiskError(dev, f"no bitmap can be stored in it now: {reason}.")


def _arguments(request: TransactionRequest, attached: AttachedQemu) -> dict[str, Any]:
    """Return the arguments of the command, with node names in place of ``$disk:``."""
    value = request.arguments
    if isinstance(value, list):
        value = {"actions": value}
    if not isinstance(value, dict):
        raise TransactionError(
            "arguments",
            f"this is {wording.kind(value)}, but must be an object with 'actions', or a list of actions.",
        )
    try:
        arguments: dict[str, Any] = _resolve(value, functools.cache(attached.disks), path="")
    except RecursionError:
        raise TransactionError("arguments", "these are nested more deeply than any transaction.") from None
    if request.completion_mode is not None:
        properties = arguments.get("properties")
        given = properties if isinstance(properties, dict) else {}
        arguments["properties"] = {**given, "completion-mode": request.completion_mode.value}
    return arguments


def _resolve(value: Any, disks: Callable[[], Mapping[str, DiskNode]], *, path: str) -> Any:
    """Return a copy with the node names of disks filled in."""
    if isinstance(value, dict):
        return {name: _resolve(member, disks, path=f"{path}.{name}".lstrip(".")) for name, member in value.items()}
    if isinstance(value, list):
        return [_resolve(element, disks, path=f"{path}[{index}]") for index, element in enumerate(value)]
    if isinstance(value, str) and value.startswith(DISK_PREFIX):
        dev = value[len(DISK_PREFIX) :]
        if dev not in disks():
            raise TransactionError(path, f"there is no disk {dev!r}; the disks are: {', '.join(disks()) or 'none'}.")
        return disks()[dev].top.node_name
    return value


def _completion(arguments: dict[str, Any], *, wait: bool) -> tuple[dict[str, Any], Completion]:
    """Return the arguments and who groups the jobs; if vbackup does, the arguments make the jobs wait for it.

    QEMU accepts completion-mode grouped only if every action is a backup. Otherwise vbackup does the same from outside:
    the jobs wait for job-finalize, all get it when all are pending, and the first failure cancels the others.
    """
    properties = arguments.get("properties")
    if not isinstance(properties, dict) or properties.get("completion-mode") != CompletionMode.GROUPED.value:
        return arguments, Completion.INDIVIDUAL
    if not wait or not isinstance(arguments.get("actions"), list) or _all_grouped(arguments["actions"]):
        return arguments, Completion.GROUPED
    rest = {name: value for name, value in properties.items() if name != "completion-mode"}
    sent = {**arguments, "properties": rest} if rest else {**arguments}
    if not rest:
        del sent["properties"]
    sent["actions"] = [
        _with_data(action, {"auto-finalize": False}) if _is_job(action) else action for action in sent["actions"]
    ]
    return sent, Completion.TOGETHER


def _all_grouped(given: Sequence[Any]) -> bool:
    return all(_is_job(action) for action in given)


def _is_job(action: Any) -> bool:
    return isinstance(action, dict) and action.get("type") in JOBS and isinstance(action.get("data"), dict)


def _with_data(action: Mapping[str, Any], members: Mapping[str, Any]) -> dict[str, Any]:
    return {**action, "data": {**action["data"], **members}}


def _job_ids(given: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the jobs in QEMU: that in the action, else the name of the device."""
    return [str(action["data"].get("job-id", action["data"]["device"])) for action in given if _is_job(action)]


def _devs(given: Sequence[Mapping[str, Any]], attached: AttachedQemu) -> dict[str, str]:
    """Return the disk that each job copies, by the job's id: of those that have it for themselves."""
    nodes = {layer.node_name: dev for dev, disk in attached.disks().items() for layer in disk.layers}
    found = {
        job_id: nodes[action["data"]["device"]]
        for action in given
        if _is_job(action) and action["data"]["device"] in nodes
        for job_id in _job_ids([action])
    }
    devs = list(found.values())
    return {job_id: dev for job_id, dev in found.items() if devs.count(dev) == 1}


def _keep_concluded(arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return arguments that keep the ended jobs in query-jobs, which has their result, and the ids of those changed.

    An event has the result too, but events can be lost.
    """
    sent: list[Mapping[str, Any]] = []
    kept: list[Mapping[str, Any]] = []
    for action in arguments["actions"]:
        if _is_job(action) and action["data"].get("auto-dismiss", True):
            sent.append(_with_data(action, {"auto-dismiss": False}))
            kept.append(action)
        else:
            sent.append(action)
    return {**arguments, "actions": sent}, _job_ids(kept)


def _refuse_own_abort(given: Sequence[Mapping[str, Any]]) -> None:
    for index, action in enumerate(given):
        if action["type"] == "abort":
            raise TransactionError(
                f"actions[{index}]",
                "this aborts the transaction before the test is complete; leave it out, --test adds one.",
            )


def _refuse_harm(given: Sequence[Mapping[str, Any]], attached: AttachedQemu) -> None:
    safety.check(
        given,
        domain=attached.domain,
        libvirt_nodes=attached.libvirt_nodes(),
        existing=attached.bitmaps(),
        existing_files={str(path) for path in _files_to_make(given, attached) if _exists(path)},
        uri=attached.uri,
    )


def _test(arguments: Mapping[str, Any], attached: AttachedQemu) -> None:
    """Let QEMU prepare everything for real and undo it."""
    with _refusals(arguments, attached) as remove_new_files:
        transaction.prepare_only(attached.monitor, arguments["actions"], qemu=attached.name)
        remove_new_files()


def _send(arguments: Mapping[str, Any], attached: AttachedQemu) -> None:
    with _refusals(arguments, attached):
        transaction.send(attached.monitor, arguments)


@contextmanager
def _refusals(arguments: Mapping[str, Any], attached: AttachedQemu) -> Iterator[Callable[[], None]]:
    """Say which action a refusal is about. No file stays that QEMU made for a transaction that was not carried out.

    Yields what removes these files.
    """
    new_files = [path for path in _files_to_make(arguments["actions"], attached) if not _exists(path)]

    def remove_new_files() -> None:
        for path in new_files:
            with suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()

    try:
        yield remove_new_files
    except BusyError:
        remove_new_files()
        raise
    except QmpError as err:
        remove_new_files()
        index = blame.failing_index(arguments["actions"], err.description)
        kind = None if index is None else arguments["actions"][index]["type"]
        raise TransactionRefusedError(err.description, index, kind) from err


def _files_to_make(given: Sequence[Mapping[str, Any]], attached: AttachedQemu) -> Iterator[Path]:
    """Yield the files that drive-backup and blockdev-snapshot-sync create; their undo in QEMU does not remove them."""
    for action in given:
        member = safety.FILES.get(action["type"])
        if member is not None and action["data"].get("mode", "absolute-paths") == "absolute-paths":
            path = Path(action["data"][member])
            if attached.is_local and path.is_absolute():
                yield path


def _exists(path: Path) -> bool:
    return os.path.lexists(path)
