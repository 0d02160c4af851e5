"""The JSON documents of standbys: what --json prints."""

from __future__ import annotations

from typing import Any

from vbackup.operations import restore_documents
from vbackup.operations.failback import FailedBack
from vbackup.operations.failover import FailedOver
from vbackup.operations.failover_test import TriedFailover
from vbackup.operations.replicate import Replicated
from vbackup.operations.standby_status import StandbyStatus
from vbackup.repository import boot_result, manifest


def replicated(done: Replicated) -> dict[str, Any]:
    """Return the document of a standby that is as at a backup."""
    return {
        "schema": "vbackup.replicate/1",
        "id": done.backup.id,
        "domain": {"name": done.backup.domain_name, "uuid": done.backup.domain_uuid},
        "uri": done.uri,
        "directory": str(done.directory),
        "before": done.before,
        "disks": [
            {"dev": one.dev, "backup": one.backup, "written_bytes": one.written_bytes, "full": None}
            for one in done.disks
        ]
        + [
            {"dev": one.dev, "backup": done.backup.id, "written_bytes": one.written_bytes, "full": one.reason}
            for one in done.new_images
        ],
        "redefined": done.is_redefined,
    }


def failed_over(done: FailedOver) -> dict[str, Any]:
    """Return the document of a standby that has taken over."""
    return {
        "schema": "vbackup.failover/1",
        "id": done.backup_id,
        "domain": {"name": done.name, "uuid": done.uuid},
        "uri": done.uri,
        "time": None if done.time is None else manifest.iso(done.time),
        "not_applied": list(done.not_applied),
        "running": done.is_running,
        "was_active": done.was_active,
    }


def tested_failover(done: TriedFailover) -> dict[str, Any]:
    """Return the document of a failover that was tried."""
    return {
        "schema": "vbackup.failovertest/1",
        "id": done.backup_id,
        "domain": {"name": done.name, "uuid": done.uuid},
        "uri": done.uri,
        "boot": boot_result.document(done.result),
    }


def failed_back(done: FailedBack) -> dict[str, Any]:
    """Return the document of an original that is as its standby was."""
    return {
        "schema": "vbackup.failback/1",
        "id": done.backup_id,
        "domain": {"name": done.original.domain_name, "uuid": done.original.domain_uuid},
        "uri": done.uri,
        "disks": restore_documents.rolled_back(done.original)["disks"],
        "started": done.is_started,
    }


def status(one: StandbyStatus) -> dict[str, Any]:
    """Return a standby, as it is in the list of them."""
    return {
        "domain": {"name": one.name, "uuid": one.uuid},
        "uri": one.uri,
        "directory": str(one.directory),
        "state": one.condition.value,
        "running": one.is_running,
        "backup": one.backup_id,
        "time": None if one.time is None else manifest.iso(one.time),
        "applied": None if one.applied is None else manifest.iso(one.applied),
        "behind": list(one.behind),
        "failback": one.failback,
        "reason": one.reason,
    }
