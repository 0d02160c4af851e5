"""What this machine keeps of a point whose copying has begun, until the point exists: so that it can go on.

    DIR/<backup id>.partial/upload          token of the objects at the target that are of this attempt, and the recipe
    DIR/<backup id>.partial/DEV.qcow2       an image that was made for the target, and DEV.blocks
    DIR/<backup id>.partial/DEV.made        what the manifest records of it: it is complete
    DIR/<backup id>.partial/NAME.sent       digest of the object NAME, which the target has

An image that was made twice has the same content, but not the same bytes. So what is at the target belongs together
only if it is of one attempt, which an object with its token shows there (vbackup.copies.target.UPLOAD). If the recipe
has changed, because images were merged in the repository, or if the token is gone, everything begins again.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vbackup.copies.planning import PointCopy
from vbackup.copies.target import UPLOAD, Target
from vbackup.errors import StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import fsync, read_regular, replace_text, storage_errors
from vbackup.model import BlocksRecord, DiskImage
from vbackup.repository import manifest
from vbackup.repository.repository import PARTIAL
from vbackup.stores.store import Deletion, StoredObject

_UPLOAD, _MADE, _SENT = "upload", ".made", ".sent"
_MAX_BYTES = 16 * 1024 * 1024


class Staging:
    """The directory of a point that is being copied."""

    def __init__(self, directory: Path, copy: PointCopy) -> None:
        """``directory``: this machine's, of the target and the domain (Ledger.directory_of)."""
        self.path = directory / (copy.backup.id + PARTIAL)
        self._copy = copy
        self.token = ""

    def begin(self, target: Target, prefix: str, objects: Mapping[str, StoredObject]) -> Mapping[str, StoredObject]:
        """Begin, or go on with, an attempt; return those of the objects under the point's prefix that belong to it.

        All others are deleted. Raises StorageError.
        """
        recipe = _recipe(self._copy, target)
        token = self._begun(recipe)
        if token is not None and (UPLOAD + token in objects or not objects):
            self.token = token
            kept = objects
        else:
            _clear(target, prefix, objects)
            kept = {}
            self.token = secrets.token_hex(6)
            with storage_errors(f"write to {self.path}"):
                shutil.rmtree(self.path, ignore_errors=True)
                self.path.mkdir(mode=0o700)
                replace_text(self.path / _UPLOAD, json.dumps({"token": self.token, "recipe": recipe}) + "\n")
        if UPLOAD + self.token not in kept:
            target.put_small(f"{prefix}{UPLOAD}{self.token}", b"")
        return kept

    def _begun(self, recipe: str) -> str | None:
        try:
            fields = _read(self.path / _UPLOAD)
            return fields.text("token") if fields.text("recipe") == recipe else None
        except (OSError, ValueError, RecursionError, StorageError):
            return None

    def image(self, dev: str) -> Path:
        """Return the path for an image that is made."""
        return self.path / f"{dev}.qcow2"

    def made(self, dev: str) -> BlocksRecord | None:
        """Return what is recorded of an image that was made completely; else None, and nothing of it is there."""
        path = self.path / (dev + _MADE)
        try:
            fields = _read(path)
            return BlocksRecord(
                fields.text("digest"),
                fields.text("structure"),
                fields.integer("data_blocks"),
                fields.integer("zero_blocks"),
            )
        except (OSError, ValueError, RecursionError, StorageError):
            with storage_errors(f"write to {self.path}"):
                for rest in (path, self.image(dev), self.image(dev).with_suffix(".blocks")):
                    rest.unlink(missing_ok=True)
            return None

    def keep(self, dev: str, blocks: BlocksRecord) -> None:
        """Note that an image is complete. Raises StorageError."""
        with storage_errors(f"write to {self.path}"):
            fsync(self.image(dev).with_suffix(".blocks"))
            replace_text(self.path / (dev + _MADE), json.dumps(manifest.blocks_document(blocks)) + "\n")

    def sent(self, name: str) -> str | None:
        """Return the digest of an object that this attempt has stored; None if that is not known."""
        try:
            return _read(self.path / (name + _SENT)).text("digest")
        except (OSError, ValueError, RecursionError, StorageError):
            return None

    def note_sent(self, name: str, digest: str) -> None:
        """Note that the target has an object. Raises StorageError."""
        with storage_errors(f"write to {self.path}"):
            replace_text(self.path / (name + _SENT), json.dumps({"digest": digest}) + "\n")

    def end(self, target: Target, prefix: str) -> None:
        """Remove what only an unfinished copy needs."""
        target.store.delete(f"{prefix}{UPLOAD}{self.token}")
        shutil.rmtree(self.path, ignore_errors=True)


def clear(target: Target, directory: Path, finished: Mapping[str, Mapping[str, StoredObject]]) -> None:
    """Remove what was kept for points that exist by now: a run was killed after it had stored the manifest."""
    for path in directory.glob(f"*{PARTIAL}"):
        objects = finished.get(path.name[: -len(PARTIAL)])
        if objects is not None:
            for name, each in objects.items():
                if name.startswith(UPLOAD):
                    target.store.delete(each.key)
            shutil.rmtree(path, ignore_errors=True)


def _clear(target: Target, prefix: str, objects: Mapping[str, StoredObject]) -> None:
    for each in objects.values():
        if target.store.delete(each.key) is Deletion.KEPT:
            raise kept_by(target, each.key)


def kept_by(target: Target, key: str) -> StorageError:
    """Return the error for an object of an earlier attempt that the target does not allow to delete."""
    return StorageError(
        f"{target.name} has {key} of an earlier attempt to copy this point, and does not allow to delete it. Run the"
        " same command again when its lock has ended."
    )


def _recipe(copy: PointCopy, target: Target) -> str:
    """Return what the images are made from, and who can read them: the same as long as nobody changes that."""
    disks: dict[str, Any] = {}
    if target.sealed is not None:
        disks["recipients"] = target.sealed.sealed_to
    for disk in copy.disks:
        layers = [[link.backup.id, link.image.file_size_bytes, *_content(link.image)] for link in disk.layers]
        disks[disk.dev] = [disk.base, layers]
    return json.dumps(disks, sort_keys=True)


def _content(image: DiskImage) -> tuple[str | None, ...]:
    return (image.digest,) if image.blocks is None else (image.blocks.digest, image.blocks.structure)


def _read(path: Path) -> Fields:
    return Fields(parse_json(read_regular(path, max_bytes=_MAX_BYTES).decode()), str(path), StorageError)
