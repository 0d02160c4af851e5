"""Record the domains whose disks are half restored, so that the hook script refuses to start them.

    /var/lib/vbackup/half-restored/<domain uuid>    JSON: domain, disks, command, since, work, owner

Unlike a mark of vbackup.hooks.marks it counts until the restore has ended, whoever has died meanwhile, the host
included. After a restore in place a guest would start from disks of which some blocks are as in the backup and others
as before, which damages its file systems; after a live one from disks whose data is not there. ``command`` ends the
restore. As long as the process ``owner`` lives, which serves the data of a live restore, the domain may start. The
record is removed disk by disk, as later restores may be of some of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from vbackup import files, names
from vbackup.errors import MalformedError
from vbackup.fields import Fields
from vbackup.process import Process

log = logging.getLogger(__name__)

#: The same as in the hook script.
DIRECTORY = Path("/var/lib/vbackup/half-restored")
LIMIT_BYTES = 64 * 1024


class Work(Enum):
    """How the disks are restored."""

    IN_PLACE = "in-place"
    LIVE = "live"


def begin(uuid: str, disks: Collection[str], *, domain: str, command: str, work: Work = Work.IN_PLACE) -> None:
    """Record that disks (dev) of the domain are about to be written; ``command`` restores them.

    Of a live restore, this process is the owner. A user who may not record it, such as one who is not root, goes
    without.
    """
    known = _disks(uuid)
    document: dict[str, Any] = {
        "domain": domain,
        "disks": sorted({*known, *disks}),
        "command": command,
        "since": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "work": work.value,
    }
    try:
        if work is Work.LIVE:
            document["owner"] = Process.this().document()
        for directory in (DIRECTORY.parent, DIRECTORY):
            directory.mkdir(mode=0o700, exist_ok=True)
        files.replace_text(_path(uuid), json.dumps(document) + "\n")
    except OSError as err:
        log.debug("no record that domain %s is being restored: %s", uuid, err)


def end(uuid: str, disks: Collection[str] | None = None) -> None:
    """Record that disks (dev) of the domain, or all, are restored."""
    path = _path(uuid)
    left = [] if disks is None else [dev for dev in _disks(uuid) if dev not in disks]
    try:
        if left:
            document = {**json.loads(files.read_regular(path, max_bytes=LIMIT_BYTES)), "disks": left}
            files.replace_text(path, json.dumps(document) + "\n")
        else:
            path.unlink(missing_ok=True)
    except (OSError, ValueError) as err:
        log.debug("the record that domain %s is being restored stays: %s", uuid, err)


def _disks(uuid: str) -> list[str]:
    """Return the disks (dev) that are recorded; none if there is no record, or it is damaged."""
    try:
        text = files.read_regular(_path(uuid), max_bytes=LIMIT_BYTES)
        return sorted(Fields(json.loads(text), "half-restored", MalformedError).strings("disks"))
    except (OSError, ValueError, RecursionError, MalformedError) as err:
        log.debug("no record of domain %s: %s", uuid, err)
        return []


def _path(uuid: str) -> Path:
    assert names.UUID.fullmatch(uuid)  # libvirt made it
    return DIRECTORY / uuid
