"""The JSON documents of restores: what --json prints, and what the user's scripts get as their input."""

from __future__ import annotations

from typing import Any

from vbackup.model import ImageFormat
from vbackup.operations import restored_machine
from vbackup.operations.live_restore import LiveRestored
from vbackup.operations.restore import Restored
from vbackup.operations.restore_in_place import RestoredInPlace
from vbackup.repository import manifest


def restored(done: Restored, image_format: ImageFormat) -> dict[str, Any]:
    """Return the document of a restore to new places; ``image_format``: of the files."""
    return {
        "schema": "vbackup.restore/1",
        "id": done.backup.id,
        "domain": {"name": done.backup.domain_name, "uuid": done.backup.domain_uuid},
        "host": None if done.backup.host is None else manifest.host_document(done.backup.host),
        "disks": [
            {
                "dev": dev,
                "file": str(path),
                "type": "block" if dev in done.devices else "file",
                "volume": done.volumes.get(dev),
                "format": ImageFormat.RAW.value if dev in done.devices else image_format.value,
                "backup": done.backups[dev],
                "checkpoint": dev in done.checkpoints,
            }
            for dev, path in done.images.items()
        ],
        "domain_xml": str(done.domain_xml),
        "machine": restored_machine.document(done.machine),
        "tpm_place": None if done.tpm_place is None else str(done.tpm_place),
        "autostart": done.backup.autostart,
        "closed": [str(path) for path in done.closed],
        "left_out": [manifest.left_out_document(left) for left in done.left_out],
        "shared": [manifest.left_out_document(left) for left in done.shared],
        "defined": done.defined is not None,
        "name": done.backup.domain_name if done.defined is None else done.defined.name,
        "uuid": done.backup.domain_uuid if done.defined is None else done.defined.uuid,
        "started": done.defined is not None and done.defined.started,
    }


def rolled_back(done: RestoredInPlace) -> dict[str, Any]:
    """Return the document of a restore in place."""
    return {
        "schema": "vbackup.rollback/1",
        "id": done.backup_id,
        "domain": {"name": done.domain_name, "uuid": done.domain_uuid},
        "disks": [
            {"dev": one.dev, "backup": one.backup, "written_bytes": one.written_bytes, "full": None, "kept": None}
            for one in done.disks
        ]
        + [
            {
                "dev": one.dev,
                "backup": one.backup,
                "written_bytes": one.written_bytes,
                "full": one.reason,
                "kept": None if one.kept is None else str(one.kept),
            }
            for one in done.in_full
        ],
        "machine_untouched": [kind.value for kind in done.machine_untouched],
    }


def live_restored(done: LiveRestored) -> dict[str, Any]:
    """Return the document of a live restore whose data is at home."""
    return {
        "schema": "vbackup.liverestore/1",
        "id": done.backup_id,
        "state": "home",
        "domain": {"name": done.name, "uuid": done.uuid},
        "disks": [
            {
                "dev": dev,
                "file": str(path),
                "format": "qcow2",
                "backup": done.backups[dev],
                "checkpoint": dev in done.checkpoints,
            }
            for dev, path in done.images.items()
        ],
        "machine": restored_machine.document(done.machine),
        "left_out": [manifest.left_out_document(left) for left in done.left_out],
        "shared": [manifest.left_out_document(left) for left in done.shared],
    }
