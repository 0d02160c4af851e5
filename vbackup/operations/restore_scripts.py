"""The user's scripts before a restore, and the plan that they get as their input."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from vbackup.model import Backup
from vbackup.repository import manifest
from vbackup.repository.chosen import Chosen
from vbackup.repository.repository import Repository
from vbackup.scripts.finding import ScriptPhase
from vbackup.scripts.runner import DomainScripts


class Way(Enum):
    """How a domain is restored."""

    NEW = "new"  #: to new files, block devices or volumes
    IN_PLACE = "in-place"  #: over its own disks, while it is off
    LIVE = "live"  #: to new files, while it runs from the backup


def know(
    scripts: DomainScripts, backup: Backup, *, repository: Repository, uri: str | None, output: Path | None
) -> None:
    """Find the scripts of the domain that is restored. Raises UnsafeScriptError, StorageError."""
    scripts.know(
        repository=os.fspath(repository.path.absolute()),
        backup_id=backup.id,
        level=backup.level.value,
        output="" if output is None else os.fspath(output.absolute()),
    )
    scripts.of_domain(backup.domain_name, backup.domain_uuid, uri=uri or "")


def before(
    scripts: DomainScripts,
    point: Chosen,
    way: Way,
    *,
    output: Path | None = None,
    files: Mapping[str, Path] | None = None,
    name: str | None = None,
) -> None:
    """Run the pre-restore scripts. Raises ScriptError: nothing has been restored.

    ``files``: where each disk (dev) will be, if that is known; ``name``: of a new domain.
    """
    backup, known = point.backup, files or {}
    document = {
        "schema": "vbackup.restoreplan/1",
        "id": backup.id,
        "time": manifest.iso(backup.time),
        "domain": {"name": backup.domain_name, "uuid": backup.domain_uuid},
        "way": way.value,
        "output": None if output is None else os.fspath(output.absolute()),
        "name": name or backup.domain_name,
        "disks": [
            {"dev": dev, "backup": one.id, "file": os.fspath(known[dev]) if dev in known else None}
            for dev, one in point.choice.disks.items()
        ],
    }
    scripts.before(ScriptPhase.PRE_RESTORE, document)
