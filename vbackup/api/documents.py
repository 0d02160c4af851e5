"""Answers as JSON-ready dicts, as the commands print them with --json (vbackup-json(7)).

They have the members of a document without ``schema``; only ``error`` is a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vbackup.errors import error_document as error
from vbackup.model import ImageFormat
from vbackup.repository import manifest

__all__ = [
    "backup",
    "boot",
    "error",
    "failed_back",
    "failed_over",
    "fsck",
    "group",
    "host",
    "left_out",
    "live_restored",
    "machine",
    "overview",
    "plan",
    "replicated",
    "restored",
    "rolled_back",
    "standby",
    "tested_failover",
    "time",
    "verification",
]

if TYPE_CHECKING:
    from vbackup.engine.plan import BackupPlan
    from vbackup.model import Backup, Group, HostIdentity, LeftOut
    from vbackup.operations.failback import FailedBack
    from vbackup.operations.failover import FailedOver
    from vbackup.operations.failover_test import TriedFailover
    from vbackup.operations.live_restore import LiveRestored
    from vbackup.operations.replicate import Replicated
    from vbackup.operations.restore import Restored
    from vbackup.operations.restore_in_place import RestoredInPlace
    from vbackup.operations.restored_machine import Placed
    from vbackup.operations.standby_status import StandbyStatus
    from vbackup.overview.state import Overview
    from vbackup.repository.boot_result import BootResult
    from vbackup.repository.fsck_result import FsckResult
    from vbackup.repository.verification import Verification
    from vbackup.runs.record import Run


def time(moment: datetime) -> str:
    """Return the time in UTC, as 2026-11-23T10:15:00.000000Z."""
    return manifest.iso(moment)


def backup(made: Backup) -> dict[str, Any]:
    """Return a backup, as vbackup.backup/1 and the manifest have it."""
    return manifest.document(made)


def host(identity: HostIdentity) -> dict[str, str | None]:
    """Return the host on which a backup was made."""
    return manifest.host_document(identity)


def group(made: Group) -> dict[str, Any]:
    """Return the group to which a backup belongs."""
    return manifest.group_document(made)


def left_out(left: LeftOut) -> dict[str, str]:
    """Return a disk or device that a backup or a restored domain does not have, with the reason."""
    return manifest.left_out_document(left)


def overview(found: Overview) -> dict[str, Any]:
    """Return the state of everything, as vbackup.status/1 has it."""
    from vbackup.overview import documents

    return documents.document(found)


def plan(made: BackupPlan) -> dict[str, Any]:
    """Return the plan of a backup, as vbackup.plan/1 has it."""
    from vbackup.operations import documents

    return _members(documents.plan(made))


def restored(done: Restored, image_format: ImageFormat = ImageFormat.QCOW2) -> dict[str, Any]:
    """Return what ``restore`` did, as vbackup.restore/1 has it; ``image_format``: of the request."""
    from vbackup.operations import restore_documents

    return _members(restore_documents.restored(done, image_format))


def rolled_back(done: RestoredInPlace) -> dict[str, Any]:
    """Return what ``restore_in_place`` did, as vbackup.rollback/1 has it."""
    from vbackup.operations import restore_documents

    return _members(restore_documents.rolled_back(done))


def live_restored(done: LiveRestored) -> dict[str, Any]:
    """Return what ``restore_live`` or ``resume_live`` did, as vbackup.liverestore/1 has it."""
    from vbackup.operations import restore_documents

    return _members(restore_documents.live_restored(done))


def replicated(done: Replicated) -> dict[str, Any]:
    """Return what ``replicate`` did, as vbackup.replicate/1 has it."""
    from vbackup.operations import standby_documents

    return _members(standby_documents.replicated(done))


def failed_over(done: FailedOver) -> dict[str, Any]:
    """Return what ``failover`` did, as vbackup.failover/1 has it."""
    from vbackup.operations import standby_documents

    return _members(standby_documents.failed_over(done))


def tested_failover(done: TriedFailover) -> dict[str, Any]:
    """Return what ``test_failover`` has shown, as vbackup.failovertest/1 has it."""
    from vbackup.operations import standby_documents

    return _members(standby_documents.tested_failover(done))


def failed_back(done: FailedBack) -> dict[str, Any]:
    """Return what ``failback`` did, as vbackup.failback/1 has it."""
    from vbackup.operations import standby_documents

    return _members(standby_documents.failed_back(done))


def standby(found: StandbyStatus) -> dict[str, Any]:
    """Return a standby, as vbackup.standbys/1 has it."""
    from vbackup.operations import standby_documents

    return standby_documents.status(found)


def verification(found: Verification) -> dict[str, Any]:
    """Return the result of the last verify of a backup."""
    from vbackup.repository import verification as verifications

    return verifications.document(found)


def boot(result: BootResult) -> dict[str, Any]:
    """Return the result of a boot test."""
    from vbackup.repository import boot_result

    return boot_result.document(result)


def fsck(result: FsckResult) -> Mapping[str, Any]:
    """Return the result of a check of file systems."""
    from vbackup.repository import fsck_result

    return fsck_result.document(result)


def run(made: Run, *, with_details: bool = True) -> dict[str, Any]:
    """Return a run of a job, as vbackup.run/1 has it; without details, without the documents of its steps."""
    from vbackup.runs import documents

    return documents.document(made, with_details=with_details)


def machine(places: Sequence[Placed]) -> list[dict[str, str | None]]:
    """Return the files that a restored domain needs beside disks and XML."""
    from vbackup.operations import restored_machine

    return restored_machine.document(places)


def _members(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document without its schema."""
    return {name: value for name, value in document.items() if name != "schema"}
