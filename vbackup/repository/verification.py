"""Keep the result of the last verify with each backup (verified.json), beside its manifest.

It is a note: no backup needs it to be read or restored, and one that cannot be read counts as none.
vbackup-repository(5) describes the members. vbackup.operations.verify makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from vbackup.fields import Fields
from vbackup.repository import kept_result, manifest

NAME = "verified.json"
SCHEMA = "vbackup.verified/1"
#: How many damaged ranges are kept: more say nothing new, and the file stays small.
MAX_DAMAGE = 1000


class Verdict(Enum):
    """What a verify found about the whole disks of a backup, all images that it depends on included."""

    GOOD = "good"  #: everything that was read is as it was when it was written
    DAMAGED = "damaged"  #: not all disks can be restored
    PARTIAL = "partial"  #: no damage so far, but not everything was read: it was stopped, or for some disks only


class Kind(Enum):
    """What is damaged."""

    CONTENT = "content"  #: blocks of an image
    STRUCTURE = "structure"  #: header or tables of an image: none of it can be trusted
    LIST = "list"  #: the block list: nothing of the image can be checked
    IMAGE = "image"  #: the image as a whole: missing, unreadable, of another size, or not the recorded one
    FILE = "file"  #: another file of the backup: domain.xml, live.xml, nvram, kernel and so on


@dataclass(frozen=True)
class Damage:
    """A damaged range of a disk, or a whole file."""

    dev: str | None  #: disk; None for a file that is of none
    file: str  #: below the domain's directory: ID/DEV.qcow2
    start_bytes: int  #: first byte on the disk, as the guest sees it
    length_bytes: int  #: the whole disk if more than content is damaged; 0 for a file that is of no disk
    kind: str  #: a value of Kind; that of a newer vbackup may be unknown


@dataclass(frozen=True)
class VerifiedImage:
    """An image of the backup that was read as a whole and found good."""

    dev: str
    time: datetime
    digest: str  #: the one that the manifest has of it: after a merge, the image is another


@dataclass(frozen=True)
class Verification:
    """The result of verifying one backup."""

    time: datetime  #: when it was completed
    verdict: Verdict
    percent: float  #: of the blocks that the backup depends on: how many were read
    checked_bytes: int  #: of images that were read
    damage: tuple[Damage, ...] = ()
    images: tuple[VerifiedImage, ...] = ()  #: of this backup itself
    unfinished: datetime | None = None  #: begin of a run that was stopped; the next one goes on there

    def image(self, dev: str) -> VerifiedImage | None:
        """Return when the image of a disk was read as a whole and found good, None if it never was."""
        return next((image for image in self.images if image.dev == dev), None)


def read(directory: Path) -> Verification | None:
    """Return the result that is kept in a backup's directory; None if there is none, or it cannot be read."""
    return kept_result.read(directory / NAME, SCHEMA, _parse)


def write(directory: Path, verification: Verification) -> None:
    """Keep the result in a backup's directory. Raises StorageError, NoSpaceError."""
    kept_result.write(directory / NAME, SCHEMA, document(verification))


def document(verification: Verification) -> dict[str, Any]:
    """Return the result as a JSON object, without the schema member."""
    members: dict[str, Any] = {
        "time": manifest.iso(verification.time),
        "verdict": verification.verdict.value,
        "percent": verification.percent,
        "checked_bytes": verification.checked_bytes,
        "damage": damage_documents(verification.damage[:MAX_DAMAGE]),
    }
    if verification.images:
        members["images"] = [
            {"dev": image.dev, "time": manifest.iso(image.time), "digest": image.digest}
            for image in verification.images
        ]
    if verification.unfinished is not None:
        members["unfinished"] = manifest.iso(verification.unfinished)
    return members


def damage_documents(damage: Iterable[Damage]) -> list[dict[str, Any]]:
    """Return damage as JSON objects."""
    return [
        {
            "dev": one.dev,
            "file": one.file,
            "start_bytes": one.start_bytes,
            "length_bytes": one.length_bytes,
            "kind": one.kind,
        }
        for one in damage
    ]


def _parse(fields: Fields) -> Verification:
    return Verification(
        time=manifest.time(fields.text("time"), NAME),
        verdict=Verdict(fields.text("verdict")),
        percent=fields.number("percent"),
        checked_bytes=fields.integer("checked_bytes"),
        damage=tuple(_damage(one) for one in fields.objects("damage")),
        images=tuple(
            VerifiedImage(one.text("dev"), manifest.time(one.text("time"), NAME), one.text("digest"))
            for one in (fields.objects("images") if "images" in fields else ())
        ),
        unfinished=manifest.time(fields.text("unfinished"), NAME) if "unfinished" in fields else None,
    )


def _damage(fields: Fields) -> Damage:
    return _shared(
        fields.optional_text("dev"),
        fields.text("file"),
        fields.integer("start_bytes"),
        fields.integer("length_bytes"),
        fields.text("kind"),
    )


@lru_cache(maxsize=4 * MAX_DAMAGE)
def _shared(dev: str | None, file: str, start_bytes: int, length_bytes: int, kind: str) -> Damage:
    """Return one object for damage that is kept with many backups: all results of a domain are in memory at once."""
    return Damage(dev, file, start_bytes, length_bytes, kind)
