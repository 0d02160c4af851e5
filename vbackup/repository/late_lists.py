"""Make the block lists of backups that were made before there were any: what their images contain is recorded later.

The digest of the image's file was right when its list is made, and stays in the manifest. A list gets its name before
the manifest names it, and both are replaced in one step each: a reader sees the backup with its list, or without.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.fields import parse_json
from vbackup.files import fsync, replace_text, storage_errors
from vbackup.model import BlocksRecord
from vbackup.repository import block_list, block_scan, manifest
from vbackup.repository.catalogue import read_text
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository


@dataclass(frozen=True)
class Made:
    """A list that is complete, but not named in the manifest."""

    link: Link
    path: Path
    blocks: BlocksRecord

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)


def make(image: Path, link: Link, *, check: Callable[[], None]) -> Made | None:
    """Make the list of an image whose digest was found right; None if it is of a kind that lists are not made of.

    ``check`` is called between pieces, and may raise. Raises StorageError, as in a read-only repository, NoSpaceError.
    """
    path = image.with_name(f".{link.image.dev}{block_list.SUFFIX}.{os.getpid()}")
    try:
        blocks = block_scan.make(image, path, algorithm=block_list.best_algorithm(), check=check)
        with storage_errors(f"write {path}"):
            fsync(path)
    except ChainError:
        path.unlink(missing_ok=True)
        return None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Made(link, path, blocks)


def publish(made: Made, repository: Repository) -> None:
    """Give the list its name and record it in the manifest, whose other members stay as they are.

    Raises BusyError if another vbackup works on the domain, StorageError, NoSpaceError, ChainError if the manifest is
    not the one that was read. The list is then discarded.
    """
    backup, image = made.link.backup, made.link.image
    directory = repository.directory(backup.domain_uuid, backup.id)
    try:
        with repository.lock(backup.domain_uuid), storage_errors(f"write to {directory}"):
            text = read_text(directory / manifest.NAME)
            if manifest.load(text, backup_id=backup.id, domain_uuid=backup.domain_uuid).image(image.dev) != image:
                raise ChainError(f"The manifest of backup {backup.id} was changed meanwhile; its lists were not made.")
            document = parse_json(text)
            for disk in document["disks"]:
                if disk["dev"] == image.dev:
                    disk["blocks"] = manifest.blocks_document(made.blocks)
            made.path.replace(directory / f"{image.dev}{block_list.SUFFIX}")
            fsync(directory)
            replace_text(directory / manifest.NAME, manifest.text_of(document))
    finally:
        made.discard()
