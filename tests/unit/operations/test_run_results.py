"""Every document says what failed, each thing once, and a step has the outcome that its command had."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.builders import UUID
from tests.unit.operations.run_examples import BUSY, GOOD, NOW, backups, failed, made
from vbackup.errors import BusyError, DomainNotFoundError, HostUnreachableError, UsageError, error_document
from vbackup.operations import run_results
from vbackup.operations.run_children import Ended
from vbackup.operations.run_commands import Planned
from vbackup.runs.record import Outcome, Step, StepKind

GONE = DomainNotFoundError("db", "at qemu:///system", "look elsewhere")


def step(kind: StepKind, *ended: Ended, stopped: bool = False) -> Step:
    return run_results.step(Planned(kind), ended, started=NOW, duration_s=1.23456, stopped=stopped)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ((), 0),
        ((0, 0), 0),
        ((0, 7), 7),
        ((7, 7), 7),
        ((7, 3), 3),
        ((7, 6, 0), 3),
        ((3, 0), 3),
        ((7, 143), 143),
        ((137, 0), 137),
    ],
)
def test_status_of_a_whole(statuses: Sequence[int], status: int) -> None:
    assert run_results.joined_status(statuses) == status


@pytest.mark.parametrize(
    ("kind", "document", "summary"),
    [
        (StepKind.BACKUP, GOOD["backup"], "1 domain, 3.0 MiB"),
        (StepKind.BACKUP, made(), "1 domain, 3.0 MiB"),
        (StepKind.PRUNE, GOOD["prune"], "1 backup removed, 3 kept, 1.0 KiB freed"),
        (StepKind.COPY, GOOD["copy"], "2 backups, 2.0 KiB sent"),
        (StepKind.COPY_PRUNE, GOOD["prune --at"], "1 backup removed, 3 kept, 1.0 KiB freed"),
        (StepKind.VERIFY, GOOD["verify"], "1 backup, 512 B read"),
        (StepKind.COPY_VERIFY, GOOD["verify --from"], "1 backup, 5 B read"),
        (StepKind.AUDIT, GOOD["audit"], "1 domain, 4.0 KiB read"),
    ],
)
def test_a_good_step(kind: StepKind, document: dict[str, Any], summary: str) -> None:
    found = step(kind, Ended(0, document, warnings=("web: It was not frozen.",)))
    assert (found.outcome, found.status, found.faults, found.summary) == (Outcome.DONE, 0, (), summary)
    assert (found.started, found.duration_s, found.warnings) == (NOW, 1.235, ("web: It was not frozen.",))


def with_(kind: str, **members: Any) -> dict[str, Any]:
    """A document whose only domain has these members."""
    [domain] = GOOD[kind]["domains"]
    return {**GOOD[kind], "domains": [{**domain, **members}]}


BOOT = {"backup": "B", "verdict": "failed", "reason": "no agent"}
FSCK = {"backup": "B", "verdict": "damaged", "file_systems": [{"name": "vda/1", "state": "damaged"}]}
OF_WEB = {"domain": {"name": "web", "uuid": UUID}, "error": error_document(BusyError("Busy."))}
MISSED_CHANGES = (
    "Disk vda: changed-block tracking has missed changes: 64.0 KiB that were read are not as backup B has them. Make a"
    " full backup (--level full)."
)
MISSED = {"dev": "vda", "verdict": "missed", "read_bytes": 9, "wrong_bytes": 65536, "backup": "B"}


@pytest.mark.parametrize(
    ("kind", "document", "fault"),
    [
        (StepKind.BACKUP, backups(made(), ("db", GONE)), ("DOMAIN_NOT_FOUND", 4, str(GONE), "db")),
        (
            StepKind.BACKUP,
            {**backups(made()), "hosts": [{"name": "hv1", "error": error_document(HostUnreachableError("u", "no"))}]},
            ("HOST_UNREACHABLE", 4, str(HostUnreachableError("u", "no")), None),
        ),
        (StepKind.BACKUP, error_document(UsageError("Wrong.")), ("USAGE", 2, "Wrong.", None)),
        (StepKind.PRUNE, {**GOOD["prune"], "failed": [OF_WEB]}, ("BUSY", 8, "Busy.", "web")),
        (
            StepKind.PRUNE,
            with_("prune", busy=[{"id": "B", "reason": "it is mounted"}]),
            ("BUSY", 8, "Backup B was not removed: it is mounted", "web"),
        ),
        (
            StepKind.COPY,
            with_("copy", skipped=[{"id": "B", "reason": "it is damaged"}]),
            ("BACKUP_DAMAGED", 6, "Backup B was not copied: it is damaged", "web"),
        ),
        (
            StepKind.VERIFY,
            with_("verify", damage=[{"backup": "B", "file": "/f", "reason": "wrong digest"}]),
            ("BACKUP_DAMAGED", 6, "Backup B is damaged: /f: wrong digest", "web"),
        ),
        (
            StepKind.VERIFY,
            with_("verify", broken=[{"id": "B", "reason": "no manifest"}]),
            ("BACKUP_DAMAGED", 6, "Backup B cannot be read: no manifest", "web"),
        ),
        (StepKind.VERIFY, with_("verify", error=error_document(BusyError("Busy."))), ("BUSY", 8, "Busy.", "web")),
        (
            StepKind.VERIFY,
            with_("verify", boot=BOOT),
            ("BACKUP_DAMAGED", 6, "Backup B did not boot: no agent", "web"),
        ),
        (
            StepKind.VERIFY,
            with_("verify", fsck=FSCK),
            ("BACKUP_DAMAGED", 6, "Backup B has damaged file systems: vda/1.", "web"),
        ),
        (
            StepKind.COPY_VERIFY,
            with_("verify --from", damaged=[{"id": "B", "reasons": ["gone"]}]),
            ("BACKUP_DAMAGED", 6, "The copy of backup B is damaged: gone", "web"),
        ),
        (
            StepKind.AUDIT,
            {**GOOD["audit"], "disks": [MISSED]},
            (
                "BACKUP_DAMAGED",
                6,
                MISSED_CHANGES,
                "web",
            ),
        ),
    ],
)
def test_what_failed_is_in_the_document(
    kind: StepKind, document: dict[str, Any], fault: tuple[str, int, str, str | None]
) -> None:
    [found] = step(kind, Ended(9, document)).faults
    assert (found.code, found.status, found.message, found.domain) == fault


@pytest.mark.parametrize(
    ("ended", "outcome"),
    [
        ([Ended(3, backups(made(), ("db", GONE)))], Outcome.SOME_FAILED),
        ([Ended(3, backups(("web", GONE), ("db", GONE)))], Outcome.FAILED),
        ([Ended(3, {**GOOD["prune"], "failed": [OF_WEB]})], Outcome.SOME_FAILED),
        ([Ended(3, {**GOOD["prune"], "domains": [], "failed": [OF_WEB]})], Outcome.FAILED),
        ([Ended(3, None)], Outcome.FAILED),
        ([Ended(7, None)], Outcome.FAILED),
        ([Ended(0, GOOD["audit"]), Ended(8, None)], Outcome.SOME_FAILED),
        ([Ended(137, None, killed_by=9)], Outcome.FAILED),
    ],
)
def test_outcome_of_a_step_that_failed(ended: list[Ended], outcome: Outcome) -> None:
    assert step(StepKind.BACKUP, *ended).outcome is outcome


def test_a_signal_that_was_passed_on_interrupts() -> None:
    assert step(StepKind.BACKUP, Ended(143, None), stopped=True).outcome is Outcome.INTERRUPTED
    assert step(StepKind.BACKUP, Ended(7, None), stopped=True).outcome is Outcome.FAILED
    assert step(StepKind.BACKUP, Ended(0, made()), stopped=True).outcome is Outcome.DONE


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGTERM, "It was ended by SIGTERM, as the run was asked to stop."),
        (signal.SIGABRT, "It was ended by SIGABRT."),
    ],
)
def test_a_signal_that_was_passed_on_is_not_the_kernels(number: signal.Signals, message: str) -> None:
    [fault] = step(StepKind.BACKUP, Ended(128 + number, None, killed_by=number), stopped=True).faults
    assert fault.message == message


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (Ended(1, None, ("first", "Traceback")), "It failed with status 1: Traceback"),
        (Ended(1, None), "It failed with status 1: it said nothing"),
        (Ended(137, None, killed_by=signal.SIGKILL), "It was killed by SIGKILL: by the kernel, if memory was short"),
        (Ended(143, None, killed_by=signal.SIGTERM), "It was ended by SIGTERM."),
        (Ended(139, None, killed_by=signal.SIGSEGV), "It was ended by SIGSEGV."),
        (Ended(5, {"schema": "vbackup.future/1"}, ("Hm.",)), "It failed with status 5: Hm."),
    ],
)
def test_a_step_without_a_document_fails_with_what_it_said(ended: Ended, message: str) -> None:
    [fault] = step(StepKind.COPY, ended).faults
    assert fault.message.startswith(message)
    assert (fault.code, fault.status) == ("FAILED", ended.status)


def test_a_warning_that_is_the_fault_of_a_domain_is_not_there_twice() -> None:
    ended = Ended(3, backups(made(), ("db", GONE)), warnings=(f"db: {GONE}", "web: Slow."))
    assert step(StepKind.BACKUP, ended).warnings == ("web: Slow.",)


def test_several_commands_are_one_step_with_all_documents() -> None:
    found = step(StepKind.AUDIT, Ended(0, GOOD["audit"], domain="web"), Ended(8, BUSY.document, domain="db"))
    assert found.document == {"documents": [GOOD["audit"], BUSY.document]}
    assert [(fault.domain, fault.code) for fault in found.faults] == [("db", "BUSY")]
    assert (found.status, found.outcome) == (8, Outcome.SOME_FAILED)


# domains


def test_domains_have_their_backup_their_fault_and_what_is_unusual() -> None:
    unusual = {"dev": "vda", "change": {"unusual": "9 times the usual change"}}
    document = backups(made(disks=[unusual, {"dev": "vdb"}]), ("db", GONE))
    found = [one.result for one in run_results.domains(step(StepKind.BACKUP, Ended(3, document)), ())]
    assert [(one.name, one.uuid, one.outcome, one.backup, one.level, one.size_bytes) for one in found] == [
        ("web", UUID, Outcome.DONE, "20261130T010005Z-full", "full", 3 << 20),
        ("db", None, Outcome.FAILED, None, None, None),
    ]
    assert found[0].unusual == ("Disk vda: 9 times the usual change",)
    assert found[1].fault is not None
    assert found[1].fault.code == "DOMAIN_NOT_FOUND"


def test_domains_of_several_hosts_have_their_host() -> None:
    document = backups(made())
    document["hosts"] = [{"name": "hv1", "uri": "qemu+ssh://hv1/system"}]
    document["domains"][0]["host"] = "hv1"
    [found] = run_results.domains(step(StepKind.BACKUP, Ended(0, document)), ())
    assert (found.result.host, found.uri) == ("hv1", "qemu+ssh://hv1/system")


def test_a_single_domain_has_another_document() -> None:
    [found] = run_results.domains(step(StepKind.BACKUP, Ended(0, made())), ("web",))
    assert (found.result.name, found.result.backup, found.uri) == ("web", "20261130T010005Z-full", None)
    [found] = run_results.domains(step(StepKind.BACKUP, failed(GONE)), ("db",))
    assert (found.result.name, found.result.outcome) == ("db", Outcome.FAILED)
    assert run_results.domains(step(StepKind.BACKUP, failed(UsageError("No."))), ("db",)) == []
    assert run_results.domains(step(StepKind.BACKUP, failed(GONE)), ("db", "web")) == []
    assert run_results.domains(step(StepKind.BACKUP, Ended(137, None)), ("db",)) == []
