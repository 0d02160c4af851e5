"""A point at a target, as its manifest describes it: a backup's manifest with a member ``copy``.

``copy`` has size and digest of every other object of the point, which is how copies are verified without being
understood, and what the images were made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vbackup.errors import ChainError
from vbackup.fields import Fields, parse_json
from vbackup.model import Backup, DiskImage
from vbackup.repository import manifest


@dataclass(frozen=True)
class ObjectRecord:
    """What a manifest records of another object of its point."""

    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Origin:
    """The image, in the repository, of which a disk's image at the target was made."""

    base: str | None
    blocks: str | None  #: digest of its block list; None if it has none


@dataclass(frozen=True)
class Point:
    """A point at a target."""

    backup: Backup
    objects: Mapping[str, ObjectRecord] = field(default_factory=dict)  #: by name
    origins: Mapping[str, Origin] = field(default_factory=dict)  #: by dev


def origin_of(image: DiskImage) -> Origin:
    """Return what is recorded of the image in the repository."""
    return Origin(image.base, None if image.blocks is None else image.blocks.digest)


def dump(point: Point) -> str:
    """Return the text of the manifest."""
    copy: dict[str, Any] = {
        "objects": {
            name: {"size_bytes": each.size_bytes, "digest": each.digest} for name, each in point.objects.items()
        },
        "origins": {dev: {"base": each.base, "blocks": each.blocks} for dev, each in point.origins.items()},
    }
    return manifest.text_of({"schema": manifest.SCHEMA, **manifest.document(point.backup), "copy": copy})


def load(text: str, *, backup_id: str, uuid: str) -> Point:
    """Return the point that a manifest describes. Raises ChainError if it is damaged, or not of this point."""
    backup = manifest.load(text, backup_id=backup_id, domain_uuid=uuid)
    where = f"the manifest of backup {backup_id}"
    copy = Fields(parse_json(text), where, ChainError).object("copy")
    objects, origins = copy.object("objects"), copy.object("origins")
    point = Point(
        backup,
        {name: ObjectRecord(each.integer("size_bytes"), each.text("digest")) for name, each in _members(objects)},
        {dev: Origin(each.optional_text("base"), each.optional_text("blocks")) for dev, each in _members(origins)},
    )
    missing = [name for name in names_of(backup) if name not in point.objects]
    if missing:
        raise ChainError(f"In {where}: it has no digest of {missing[0]}.")
    return point


def _members(fields: Fields) -> list[tuple[str, Fields]]:
    return [(name, fields.object(name)) for name in fields.names]


def names_of(backup: Backup) -> list[str]:
    """Return the names of a point's objects other than the manifest: further files, images, block lists."""
    found = list(backup.digests)
    for image in backup.disks:
        found.append(image.file)
        if image.blocks is not None:
            found.append(list_name(image))
    return found


def dev_of(backup: Backup, name: str) -> str | None:
    """Return the disk (dev) of an image or a block list, None for any other object of a point."""
    return next((image.dev for image in backup.disks if name in (image.file, list_name(image))), None)


def list_name(image: DiskImage) -> str:
    """Return the name of the block list of an image."""
    return f"{image.dev}.blocks"
