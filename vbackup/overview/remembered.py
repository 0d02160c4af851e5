"""What a repository had when it could be read: of one that is not mounted, the domains do not vanish from the answer.

    STATE/seen/HASH.json     the domains of a repository, by the hash of its path; its mtime says when they were read

Alerts of a domain would otherwise resolve themselves with the disk that is gone, and one that becomes overdue meanwhile
would give none. Nothing needs the file: one that cannot be read or written only means that nothing is remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vbackup.errors import StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import make_private, read_regular, replace_text, storage_errors
from vbackup.overview.facts import DomainFacts
from vbackup.repository.glance import Glance, SeenBackup
from vbackup.repository.verification import Verdict

#: That of thousands of domains.
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Seen:
    """What was read."""

    time: datetime
    domains: tuple[DomainFacts, ...]
    targets: frozenset[str]  #: of which the repository has a ledger


def note(state: Path, repository: str, seen: Seen) -> None:
    """Remember it; ``state``: vbackup.runs.store.default_directory(). Raises StorageError, NoSpaceError."""
    document = {"targets": sorted(seen.targets), "domains": [_document(one) for one in seen.domains]}
    text = json.dumps(document) + "\n"
    path = _path(state, repository)
    with storage_errors(f"write {path}"):
        make_private(state)
        make_private(path.parent)
        if _text(path) != text:
            replace_text(path, text)
        os.utime(path, (seen.time.timestamp(),) * 2)


def recall(state: Path, repository: str) -> Seen | None:
    """Return what was read last; None if nothing is remembered."""
    path = _path(state, repository)
    try:
        fields = Fields(parse_json(_text(path) or ""), path.name, StorageError)
        return Seen(
            datetime.fromtimestamp(path.stat().st_mtime, timezone.utc),
            tuple(_domain(one) for one in fields.objects("domains")),
            fields.strings("targets"),
        )
    except (OSError, ValueError, OverflowError, RecursionError, StorageError):
        return None


def _path(state: Path, repository: str) -> Path:
    return state / "seen" / f"{hashlib.sha256(os.fsencode(os.path.realpath(repository))).hexdigest()[:16]}.json"


def _text(path: Path) -> str | None:
    try:
        return read_regular(path, max_bytes=_MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None


def _document(one: DomainFacts) -> dict[str, Any]:
    seen = one.seen
    return {
        "uuid": seen.uuid,
        "name": seen.name,
        "ids": sorted(seen.ids),
        "newest": None if seen.newest is None else _backup_document(seen.newest),
        "chain_images": seen.chain_images,
        "broken": seen.broken,
        "latest": [_backup_document(each) for each in seen.latest],
        "size_bytes": seen.size_bytes,
        "verified": None if seen.verified is None else seen.verified.timestamp(),
        "verdict": None if seen.verdict is None else seen.verdict.value,
        "damaged": list(seen.damaged),
        "unusual": list(seen.unusual),
        "copies": {target: sorted(ids) for target, ids in sorted(one.copies.items())},
    }


def _domain(fields: Fields) -> DomainFacts:
    verdict = fields.optional_text("verdict")
    copies = fields.object("copies")
    return DomainFacts(
        Glance(
            uuid=fields.text("uuid"),
            name=fields.text("name"),
            ids=fields.strings("ids"),
            newest=_backup(fields.object("newest")) if "newest" in fields else None,
            chain_images=fields.integer("chain_images"),
            broken=fields.optional_text("broken"),
            latest=tuple(_backup(each) for each in fields.objects("latest")),
            size_bytes=fields.integer("size_bytes"),
            verified=_time(fields.number("verified")) if "verified" in fields else None,
            verdict=None if verdict is None else Verdict(verdict),
            damaged=tuple(sorted(fields.strings("damaged"))),
            unusual=tuple(fields.raw("unusual") if fields.strings("unusual") else ()),
        ),
        {target: copies.strings(target) for target in copies.names},
    )


def _backup_document(one: SeenBackup) -> Mapping[str, Any]:
    """Return it without its images, which only say whether it can be restored."""
    return {
        "id": one.id,
        "sequence": one.sequence,
        "time": one.time.timestamp(),
        "level": one.level,
        "size_bytes": one.size_bytes,
        "changed_bytes": one.changed_bytes,
    }


def _backup(fields: Fields) -> SeenBackup:
    return SeenBackup(
        fields.text("id"),
        fields.integer("sequence"),
        _time(fields.number("time")),
        fields.text("level"),
        fields.integer("size_bytes"),
        fields.integer("changed_bytes"),
        (),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
