"""Record the domains whose disks are half restored, so that the hook script refuses to start them.

    /var/lib/vbackup/half-restored/<domain uuid>    JSON: domain, disks, command, since, work, owner

Unlike a mark of vbackup.hooks.marks it counts until the restore has ended, whoever has died meanwhile, the host
included. After a restore in place a guest would start from disks of which some blocks are as in the backup and others
as before, which damages its file systems; after a live one from disks whose data is not there. ``command`` ends the
restore. As long as the process ``owner`` lives, which serves the data of a live restore, the domain may start. The
record is removed disk by disk, as later restores may be of some of them.

A live restore makes other files the domain's disks. Until it has ended well, its record keeps that of a restore in
place (``before``), whose disks can become the domain's again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from vbackup import files, names
from vbackup.errors import MalformedError
from vbackup.fields import Fields
from vbackup.process import Process
from vbackup.report import Reporter

log = logging.getLogger(__name__)

#: The same as in the hook script.
DIRECTORY = Path("/var/lib/vbackup/half-restored")
LIMIT_BYTES = 64 * 1024


class Work(Enum):
    """How the disks are restored."""

    IN_PLACE = "in-place"
    LIVE = "live"


def begin(
    uuid: str, disks: Collection[str], *, domain: str, command: str, reporter: Reporter, work: Work = Work.IN_PLACE
) -> None:
    """Record that disks (dev) of the domain are about to be written; ``command`` restores them.

    Of a live restore, this process is the owner. A user who may not record it, such as one who is not root, goes
    without; for any other reason, a warning says so.
    """
    earlier = _read(uuid)
    is_live = work is Work.LIVE
    all_disks = {*disks, *([] if is_live else _disks(earlier))}
    document = _document(all_disks, domain=domain, command=command, work=work)
    try:
        if is_live:
            document |= _of_live(Process.this(), earlier)
        for directory in (DIRECTORY.parent, DIRECTORY):
            directory.mkdir(mode=0o700, exist_ok=True)
        _write(uuid, document)
    except PermissionError as err:
        log.debug("no record that domain %s is being restored: %s", uuid, err)
    except OSError as err:
        reporter.warning(unwritten(str(_path(uuid)), err.strerror or str(err), domain=domain))


def unwritten(path: str, why: str, *, domain: str) -> str:
    """Return what to say of a record that cannot be written, here or on another host."""
    return (
        f"{path} cannot be written ({why}): if the restore is interrupted, libvirt's hook script will not keep domain"
        f" {domain} from starting."
    )


def text(disks: Collection[str], *, domain: str, command: str, earlier: bytes | None = None) -> str:
    """Return the record of a restore in place for another host: in DIRECTORY there, under the UUID of the domain.

    ``earlier``: the record that is there, whose disks still count.
    """
    all_disks = {*disks, *_disks(_parsed(earlier))}
    return json.dumps(_document(all_disks, domain=domain, command=command, work=Work.IN_PLACE)) + "\n"


def text_without(earlier: bytes, disks: Collection[str]) -> str | None:
    """Return the record of another host when these disks are restored, None if there is none then."""
    record = _parsed(earlier)
    left = [dev for dev in _disks(record) if dev not in disks]
    return json.dumps({**record, "disks": left}) + "\n" if left else None


def live_text(disks: Collection[str], *, domain: str, command: str, owner: Process, earlier: bytes | None) -> str:
    """Return the record of a live restore for another host.

    ``owner`` is the process there that the data depends on, ``earlier`` the record that is there.
    """
    document = _document(disks, domain=domain, command=command, work=Work.LIVE)
    return json.dumps({**document, **_of_live(owner, _parsed(earlier))}) + "\n"


def text_before(earlier: bytes) -> str | None:
    """Return the record of another host as it is when a live restore was undone, None if there is none then."""
    record: Any = _parsed(earlier)
    if _is_live(record):
        record = record.get("before")
    return json.dumps(record) + "\n" if record else None


def _of_live(owner: Process, earlier: Mapping[str, Any]) -> dict[str, Any]:
    before = earlier.get("before") if _is_live(earlier) else earlier or None
    return {"owner": owner.document(), "before": before}


def _document(disks: Collection[str], *, domain: str, command: str, work: Work) -> dict[str, Any]:
    return {
        "domain": domain,
        "disks": sorted(disks),
        "command": command,
        "since": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "work": work.value,
    }


def end(uuid: str, disks: Collection[str] | None = None) -> None:
    """Record that disks (dev) of the domain, or all, are restored."""
    record = _read(uuid)
    left = [] if disks is None else [dev for dev in _disks(record) if dev not in disks]
    _replace(uuid, {**record, "disks": left} if left else None)


def take_back(uuid: str) -> None:
    """Record that a live restore was undone. What a restore in place had left in the middle before it still is."""
    record = _read(uuid)
    if _is_live(record):
        _replace(uuid, record.get("before"))


def _is_live(record: Mapping[str, Any]) -> bool:
    return record.get("work") == Work.LIVE.value


def _replace(uuid: str, record: Mapping[str, Any] | None) -> None:
    """Write the record, or remove it with None. Never fails."""
    try:
        if record:
            _write(uuid, record)
        else:
            _path(uuid).unlink(missing_ok=True)
    except OSError as err:
        log.debug("the record that domain %s is being restored stays: %s", uuid, err)


def _write(uuid: str, record: Mapping[str, Any]) -> None:
    files.replace_text(_path(uuid), json.dumps(record) + "\n")


def _read(uuid: str) -> dict[str, Any]:
    """Return the record; empty if there is none, or it is damaged."""
    try:
        return _parsed(files.read_regular(_path(uuid), max_bytes=LIMIT_BYTES))
    except OSError as err:
        log.debug("no record of domain %s: %s", uuid, err)
        return {}


def _parsed(text: bytes | None) -> dict[str, Any]:
    try:
        record = json.loads(text or b"{}")
    except (ValueError, RecursionError) as err:
        log.debug("no record that can be read: %s", err)
        return {}
    return record if isinstance(record, dict) else {}


def _disks(record: Mapping[str, Any]) -> list[str]:
    """Return the disks (dev) that are recorded; none if that is damaged."""
    try:
        return sorted(Fields(record, "half-restored", MalformedError).strings("disks"))
    except MalformedError as err:
        log.debug("%s", err)
        return []


def _path(uuid: str) -> Path:
    assert names.UUID.fullmatch(uuid)  # libvirt made it
    return DIRECTORY / uuid
