"""The journal of merges of a domain's backups (merge.json in its directory): who merges, and what has to be finished.

It is there while backups are merged or removed. What a dead run has only staged is removed again, so it needs no entry.
But once blocks are written into a published image in place, the backup that the image was of cannot be restored any
more, and the merge has to be finished: such backups are listed under ``in_place``, before the first write.
vbackup.repository.catalogue leaves them out, except as a part of other backups' chains: what is written is what those
show there anyway.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vbackup import files, names
from vbackup.errors import ChainError, NoSpaceError, StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import storage_errors
from vbackup.repository.writer import Pulse, Writer

NAME = "merge.json"
SCHEMA = "vbackup.merge/1"
#: Prefixes of what a run has in the domain's directory for a while: the stage of a merge, what is being removed, and
#: the directory in which the filesystem is asked what it can do.
MERGE, REMOVED, PROBE = ".merge-", ".removed-", ".probe-"
#: The marker in a stage: every file in it is complete, and takes the place of the one that the backup has.
PUBLISH = "publish"
_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """What a journal says."""

    writer: Writer
    identity: str | None  #: of the domain's directory: a copy of the repository has another
    removed: tuple[str, ...]  #: the backups that are to be removed
    in_place: tuple[str, ...]  #: those of them into whose images others are being merged: they cannot be restored

    def is_of(self, directory: Path) -> bool:
        """Return False if the repository is a copy of the one in which the merge was begun."""
        try:
            return self.identity in (None, _identity(directory))
        except OSError:
            return False


def read(directory: Path) -> Entry | None:
    """Return what the journal in a domain's directory says; None if there is none.

    Raises ChainError if it cannot be read, StorageError if a newer vbackup wrote it.
    """
    path = directory / NAME
    try:
        fields = Fields(parse_json(files.read_regular(path, max_bytes=_MAX_BYTES).decode()), "it", ChainError)
        schema = fields.text("schema")
        if schema == SCHEMA:
            return Entry(
                Writer.read(fields.object("writer")),
                fields.optional_text("identity"),
                removed=_ids(fields, "removed"),
                in_place=_ids(fields, "in_place"),
            )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError, ChainError) as err:
        raise ChainError(
            f"{path} is damaged ({str(err).rstrip('.')}), so it is not known which images were being written to."
            " 'vbackup check --repair' reads the images, and puts the file away if all of them are as they were; with"
            " --from it takes back from a copy of the repository what is not."
        ) from err
    raise StorageError(
        f"{path} has format {schema[:50]}, but this vbackup only knows {SCHEMA}; use the newer vbackup that began the"
        " merge. Nothing was changed."
    )


def leftovers(directory: Path) -> list[Path]:
    """Return what dead runs left in a domain's directory, if its lock is held; the journal among it."""
    try:
        entries = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    return [path for path in entries if path.name == NAME or path.name.startswith((MERGE, REMOVED, PROBE, f".{NAME}."))]


def in_place(directory: Path) -> frozenset[str]:
    """Return the backups that cannot be restored because their images are being merged in place.

    None if the journal cannot be read: their images then differ from their block lists, which a restore finds.
    """
    try:
        entry = read(directory)
    except (ChainError, StorageError):
        return frozenset()
    return frozenset(entry.in_place) if entry is not None else frozenset()


class MergeJournal:
    """The journal of this process. A context manager; the domain's lock is held.

    At the end of the block it is removed, unless a merge in place has to be finished. Raises StorageError.
    """

    def __init__(self, directory: Path, removed: Sequence[str], *, in_place: Collection[str] = ()) -> None:
        """``in_place``: those that a dead run has recorded."""
        self._directory = directory
        self._removed = removed
        self.in_place = frozenset(in_place)  #: the backups that cannot be restored any more
        self._pulse: Pulse | None = None

    def __enter__(self) -> MergeJournal:
        # On a full filesystem, what no other backup needs can be removed without a journal.
        with suppress(NoSpaceError):
            self._write(self.in_place)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop_pulse()
        if not self.in_place:
            with storage_errors(f"remove {self._directory / NAME}"):
                (self._directory / NAME).unlink(missing_ok=True)
                files.fsync(self._directory)

    def set_in_place(self, backup_ids: Collection[str]) -> None:
        """Record, durably, which backups cannot be restored from now on."""
        if self.in_place != frozenset(backup_ids):
            self._write(backup_ids)
            self.in_place = frozenset(backup_ids)

    def _write(self, backup_ids: Collection[str]) -> None:
        document = {
            "schema": SCHEMA,
            "writer": Writer.this().document(),
            "identity": _identity(self._directory),
            "removed": list(self._removed),
            "in_place": sorted(backup_ids),
        }
        path = self._directory / NAME
        with storage_errors(f"write {path}"):
            files.replace_text(path, json.dumps(document, indent=2) + "\n")
            self._stop_pulse()
            fd = files.open_regular(path, os.O_RDWR)
            try:
                self._pulse = Pulse(fd)
            finally:
                os.close(fd)

    def _stop_pulse(self) -> None:
        if self._pulse is not None:
            self._pulse.stop()
            self._pulse = None


def _identity(directory: Path) -> str:
    status = directory.lstat()
    return f"{status.st_dev}:{status.st_ino}"


def _ids(fields: Fields, member: str) -> tuple[str, ...]:
    found = sorted(fields.strings(member))
    for one in found:
        if not names.BACKUP_ID.fullmatch(one):
            raise ChainError(f"In the journal of merges: {one!r} is not a backup id.")
    return tuple(found)
