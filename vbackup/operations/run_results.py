"""What became of a step, from the document that its command printed: faults, domains, and a sentence. Does no I/O.

The documents are those of vbackup-json(7). A command that printed none, or another one, has at least its status.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from vbackup.amounts import size
from vbackup.errors import DamagedError, Status, VbackupError, error_document
from vbackup.operations.run_children import Ended
from vbackup.operations.run_commands import Planned
from vbackup.runs.record import DomainResult, Fault, Outcome, Step, StepKind

_Document = Mapping[str, Any]

#: The signals that a run passes on to its step.
_STOPPING = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def step(planned: Planned, ended: Sequence[Ended], *, started: datetime, duration_s: float, stopped: bool) -> Step:
    """Return the step that one command did, or several: audit is one for each domain.

    ``stopped``: the run was asked to stop, so a signal that ended the step was passed on to it.
    """
    ended = [_believed(one) for one in ended]
    status = joined_status([one.status for one in ended])
    faults = [fault for one in ended for fault in _faults(one, stopped=stopped)]
    warnings = [warning for one in ended for warning in one.warnings]
    documents = [one.document for one in ended if one.document is not None]
    is_several = planned.kind is StepKind.AUDIT
    return Step(
        planned.kind,
        _outcome(ended, status, stopped=stopped),
        started,
        round(duration_s, 3),
        status,
        target=planned.target,
        faults=tuple(faults),
        warnings=_without_faults(warnings, faults),
        summary=_SUMMARIES[planned.kind](documents) if documents else "",
        document={"documents": documents} if is_several else (documents[0] if documents else None),
    )


def _believed(ended: Ended) -> Ended:
    """Return how a command ended; one that says that all is well, and not what it has done, has failed."""
    if ended.status == Status.DONE and ended.document is None:
        said = "It ended with status 0, but did not say what it has done: run it by hand to see why."
        return replace(ended, status=int(Status.FAILED), document=error_document(VbackupError(said)))
    return ended


def joined_status(statuses: Sequence[int]) -> int:
    """Return the status of a whole: 0, that which all that failed have, or 3 if they have different ones.

    A signal that ended one ended the whole.
    """
    failed = {status for status in statuses if status}
    signals = [status for status in statuses if status > Status.SIGNAL]
    if signals:
        return signals[0]
    return next(iter(failed)) if len(failed) == 1 else Status.SOME_FAILED if failed else Status.DONE


def _outcome(ended: Sequence[Ended], status: int, *, stopped: bool) -> Outcome:
    if status == Status.DONE:
        return Outcome.DONE
    if stopped and status > Status.SIGNAL:
        return Outcome.INTERRUPTED
    if any(one.status == Status.DONE for one in ended):
        return Outcome.SOME_FAILED
    if all(one.status == Status.SOME_FAILED and _has_some(one.document) for one in ended):
        return Outcome.SOME_FAILED
    return Outcome.FAILED


def _has_some(document: _Document | None) -> bool:
    """Return True if a command that failed for some domains did its work for others."""
    if document is None:
        return False
    if "done" in document:
        return bool(document["done"])
    return any("error" not in domain for domain in document.get("domains", ()))


def _without_faults(warnings: Sequence[str], faults: Sequence[Fault]) -> tuple[str, ...]:
    """Return the warnings that are no faults: commands for several domains warn of the fault of each as it comes."""
    messages = tuple(fault.message for fault in faults)
    return tuple(warning for warning in warnings if not warning.endswith(messages))


# faults


def _faults(ended: Ended, *, stopped: bool) -> list[Fault]:
    """Return what failed; at least one fault if the command did."""
    if ended.status == Status.DONE:
        return []
    found = list(_in_document(ended.document)) if ended.document is not None else []
    found = found or [Fault("FAILED", ended.status, _last_words(ended, stopped=stopped))]
    return [replace(fault, domain=fault.domain or ended.domain) for fault in found]


def _last_words(ended: Ended, *, stopped: bool) -> str:
    if ended.killed_by == signal.SIGKILL:
        return "It was killed by SIGKILL: by the kernel, if memory was short (see 'journalctl -k'), or by somebody."
    if ended.killed_by is not None:
        name = signal.Signals(ended.killed_by).name
        passed_on = stopped and ended.killed_by in _STOPPING
        return f"It was ended by {name}{', as the run was asked to stop' if passed_on else ''}."
    said = ended.last_words[-1] if ended.last_words else "it said nothing"
    return f"It failed with status {ended.status}: {said}"


def _in_document(document: _Document) -> Iterator[Fault]:
    reader = _FAULTS.get(str(document.get("schema")))
    if reader is not None:
        yield from reader(document)


def _of_error(error: _Document, domain: str | None = None) -> Fault:
    return Fault(error["code"], error["status"], error["message"], domain)


def _of_damage(message: str, domain: str) -> Fault:
    return Fault(DamagedError.code, int(DamagedError.status), message, domain)


def _of_backups(document: _Document) -> Iterator[Fault]:
    for host in document.get("hosts", ()):
        if "error" in host:
            yield _of_error(host["error"])
    for domain in document["domains"]:
        if "error" in domain:
            yield _of_error(domain["error"], domain["name"])


def _of_failed(document: _Document) -> Iterator[Fault]:
    for one in document.get("failed", ()):
        yield _of_error(one["error"], one["domain"]["name"])


def _of_prune(document: _Document) -> Iterator[Fault]:
    yield from _of_failed(document)
    for domain in document["domains"]:
        for one in domain.get("busy", ()):
            message = f"Backup {one['id']} was not removed: {one['reason']}"
            yield Fault("BUSY", int(Status.BUSY), message, domain["domain"]["name"])


def _of_copy(document: _Document) -> Iterator[Fault]:
    yield from _of_failed(document)
    for domain in document["domains"]:
        for one in domain["skipped"]:
            yield _of_damage(f"Backup {one['id']} was not copied: {one['reason']}", domain["domain"]["name"])


def _of_verify(document: _Document) -> Iterator[Fault]:
    for domain in document["domains"]:
        name = domain["name"]
        if "error" in domain:
            yield _of_error(domain["error"], name)
        for one in domain.get("broken", ()):
            yield _of_damage(f"Backup {one['id']} cannot be read: {one['reason']}", name)
        for one in domain.get("damage", ()):
            yield _of_damage(f"Backup {one['backup']} is damaged: {one['file']}: {one['reason']}", name)
        boot, fsck = domain.get("boot"), domain.get("fsck")
        if boot is not None and boot["verdict"] != "booted":
            yield _of_damage(f"Backup {boot['backup']} did not boot: {boot['reason']}", name)
        if fsck is not None and fsck["verdict"] == "damaged":
            bad = [one["name"] for one in fsck["file_systems"] if one["state"] == "damaged"]
            yield _of_damage(f"Backup {fsck['backup']} has damaged file systems: {', '.join(bad)}.", name)


def _of_copy_verify(document: _Document) -> Iterator[Fault]:
    for domain in document["domains"]:
        for one in domain["damaged"]:
            message = f"The copy of backup {one['id']} is damaged: {'; '.join(one['reasons'])}"
            yield _of_damage(message, domain["domain"]["name"])


def _of_audit(document: _Document) -> Iterator[Fault]:
    for disk in document["disks"]:
        if disk["verdict"] != "good":
            message = (
                f"Disk {disk['dev']}: changed-block tracking has missed changes: {size(disk['wrong_bytes'])} that were"
                f" read are not as backup {disk['backup']} has them. Make a full backup (--level full)."
            )
            yield _of_damage(message, document["domain"]["name"])


_FAULTS: Mapping[str, Callable[[_Document], Iterator[Fault]]] = {
    "vbackup.error/1": lambda document: iter((_of_error(document),)),
    "vbackup.backups/1": _of_backups,
    "vbackup.prune/1": _of_prune,
    "vbackup.copy/1": _of_copy,
    "vbackup.verify/1": _of_verify,
    "vbackup.copyverify/1": _of_copy_verify,
    "vbackup.audit/1": _of_audit,
}


# domains


@dataclass(frozen=True)
class Backed:
    """A domain that a backup step was about, and where it is."""

    result: DomainResult
    uri: str | None = None  #: of its host; None with one host


def domains(backup: Step, named: Sequence[str]) -> list[Backed]:
    """Return what the step did for each domain; ``named``: the words of the job, for a command of one domain."""
    document = backup.document or {}
    schema = document.get("schema")
    if schema == "vbackup.backup/1":
        return [Backed(_made(document))]
    if schema == "vbackup.backups/1":
        uris = {host["name"]: host["uri"] for host in document.get("hosts", ())}
        return [Backed(_result(entry), uris.get(entry.get("host"))) for entry in document["domains"]]
    if len(named) == 1 and backup.faults and backup.faults[0].code != "USAGE" and schema == "vbackup.error/1":
        return [Backed(DomainResult(named[0], None, _failed(backup.faults[0]), fault=backup.faults[0]))]
    return []


def _result(entry: _Document) -> DomainResult:
    if "error" in entry:
        fault = _of_error(entry["error"], entry["name"])
        return DomainResult(entry["name"], entry["uuid"], _failed(fault), fault=fault, host=entry.get("host"))
    return _made(entry["backup"], host=entry.get("host"))


def _failed(fault: Fault) -> Outcome:
    return Outcome.INTERRUPTED if fault.code == "INTERRUPTED" else Outcome.FAILED


def _made(document: _Document, host: str | None = None) -> DomainResult:
    return DomainResult(
        document["domain"]["name"],
        document["domain"]["uuid"],
        Outcome.DONE,
        backup=document["id"],
        level=document["level"],
        size_bytes=document["size_bytes"],
        unusual=tuple(
            f"Disk {disk['dev']}: {disk['change']['unusual']}"
            for disk in document["disks"]
            if (disk.get("change") or {}).get("unusual")
        ),
        host=host,
    )


# sentences


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _sum(documents: Sequence[_Document], member: str) -> int:
    return sum(domain.get(member, 0) for document in documents for domain in document.get("domains", ()))


def _backup_summary(documents: Sequence[_Document]) -> str:
    made = [document for document in documents if document.get("schema") == "vbackup.backup/1"]
    for document in documents:
        made += [entry["backup"] for entry in document.get("domains", ()) if "backup" in entry]
    total = len(made) + sum("error" in entry for document in documents for entry in document.get("domains", ()))
    if not total:
        return ""
    of_total = f"{len(made)} of " if len(made) != total else ""
    return f"{of_total}{_counted(total, 'domain')}, {size(sum(one['size_bytes'] for one in made))}"


def _prune_summary(documents: Sequence[_Document]) -> str:
    removed = _counted(_sum(documents, "removed"), "backup")
    return f"{removed} removed, {_sum(documents, 'kept')} kept, {size(max(_sum(documents, 'freed_bytes'), 0))} freed"


def _copy_summary(documents: Sequence[_Document]) -> str:
    copied = sum(len(domain["copied"]) for document in documents for domain in document.get("domains", ()))
    return f"{_counted(copied, 'backup')}, {size(_sum(documents, 'size_bytes'))} sent"


def _verify_summary(documents: Sequence[_Document]) -> str:
    domains_ = [domain for document in documents for domain in document.get("domains", ())]
    backups = sum(len(domain.get("backups", domain.get("verified", ()))) for domain in domains_)
    proved = sum("boot" in domain or "fsck" in domain for domain in domains_)
    read = size(_sum(documents, "read_bytes"))
    return _counted(proved, "backup") + " tried" if proved else f"{_counted(backups, 'backup')}, {read} read"


def _audit_summary(documents: Sequence[_Document]) -> str:
    audited = [document for document in documents if "disks" in document]
    read = sum(disk["read_bytes"] for document in audited for disk in document["disks"])
    return f"{_counted(len(audited), 'domain')}, {size(read)} read"


_SUMMARIES: Mapping[StepKind, Callable[[Sequence[_Document]], str]] = {
    StepKind.BACKUP: _backup_summary,
    StepKind.PRUNE: _prune_summary,
    StepKind.COPY: _copy_summary,
    StepKind.COPY_PRUNE: _prune_summary,
    StepKind.VERIFY: _verify_summary,
    StepKind.COPY_VERIFY: _verify_summary,
    StepKind.AUDIT: _audit_summary,
}
