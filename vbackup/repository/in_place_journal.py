"""The journal of a restore that replaces images of a domain (in-place.json in its directory): what has to be ended.

It is there from before the first new image until all are in their places. As long as no disk was changed, a dead run is
undone: the new images are removed. From then on it has to be finished, since some disks are as in the backup already.

A repository may be hostile, and whoever finishes removes and renames files: so the journal names images only, no other
files, and vbackup.operations.in_place_end heeds none that is not a disk of the domain, or not as it was recorded.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from vbackup import files, names
from vbackup.errors import ChainError, StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import storage_errors
from vbackup.repository.writer import Writer

NAME = "in-place.json"
SCHEMA = "vbackup.replacing/1"
_MAX_BYTES = 1024 * 1024


class Step(Enum):
    """How far the restore has come."""

    WRITING = "writing"  #: new images are made; all disks are as they were
    ROLLING = "rolling"  #: other disks are rolled back; the old images are in their places
    EXCHANGING = "exchanging"  #: all new images are complete, and are put into their places


@dataclass(frozen=True)
class Seen:
    """What tells an image from another one, and from itself before it was written to."""

    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Seen | None:
        """Return what a file is like, None if there is none. Raises OSError."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)  # st_dev can be another after a reboot


@dataclass(frozen=True)
class Replaced:
    """An image that is being replaced."""

    dev: str
    path: Path
    backup: str  #: id of the backup that the new one is of
    is_kept: bool  #: the old image is kept
    old: Seen | None = None  #: the old image; None if there was none
    new: Seen | None = None  #: the new image; None while it is made


@dataclass(frozen=True)
class Entry:
    """What a journal says."""

    step: Step
    backup: str  #: id of the backup that the domain is restored to
    disks: tuple[Replaced, ...]
    writer: Writer
    inode: int  #: of the domain's directory: a copy of the repository has another
    rolled: frozenset[str] = frozenset()  #: disks (dev) that are rolled back
    host: str | None = None  #: name of the host that has the images, if the process is on another one
    uri: str | None = None  #: of its libvirt

    @property
    def is_begun(self) -> bool:
        """True if some disks may be as in the backup, and others as before."""
        return self.step is not Step.WRITING

    @property
    def devs(self) -> frozenset[str]:
        """All disks that the restore writes."""
        return frozenset({*self.rolled, *(one.dev for one in self.disks)})

    @property
    def option(self) -> str:
        """The option of a command that names the libvirt, with a blank in front; "" if it is that of this host."""
        return "" if self.uri is None else f" -c {shlex.quote(self.uri)}"

    def is_of(self, directory: Path) -> bool:
        """Return False if the restore ran on another host, or the repository is a copy of the one that it was from."""
        try:
            return self.writer.is_of_this_host and self.inode == directory.lstat().st_ino
        except OSError:
            return False


def read(directory: Path) -> Entry | None:
    """Return what the journal in a domain's directory says; None if there is none.

    Raises ChainError if it cannot be read, StorageError if a newer vbackup wrote it.
    """
    path = directory / NAME
    try:
        fields = Fields(parse_json(files.read_regular(path, max_bytes=_MAX_BYTES).decode()), f"{path}", ChainError)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as err:
        raise ChainError(
            f"{path} is damaged ({err}), so which images of the domain were being replaced is not known. Look for files"
            " named *.before-ID and .*.vbackup-ID beside its images: the former are the old images. Then remove the"
            " journal."
        ) from err
    if fields.text("schema") != SCHEMA:
        raise StorageError(
            f"{path} has format {fields.text('schema')[:50]}, but this vbackup only knows {SCHEMA}; use the newer"
            " vbackup that began the restore. Nothing was changed."
        )
    try:
        step = Step(fields.text("step"))
    except ValueError as err:
        raise ChainError(f"{path} has an unknown step, {fields.text('step')[:50]!r}.") from err
    disks = tuple(_disk(each) for each in fields.objects("disks"))
    backup, writer = _id(fields, "backup"), Writer.read(fields.object("writer"))
    host, uri = (fields.optional_text(member) for member in ("host", "uri"))
    return Entry(step, backup, disks, writer, fields.integer("inode"), fields.strings("rolled"), host, uri)


def write(
    directory: Path,
    step: Step,
    *,
    backup: str,
    disks: Sequence[Replaced],
    rolled: Collection[str] = (),
    host: str | None = None,
    uri: str | None = None,
) -> None:
    """Record, durably, that this process is at that step. Raises StorageError, NoSpaceError.

    ``host`` and ``uri``: of the libvirt that has the images, if it is not on this host.
    """
    path = directory / NAME
    with storage_errors(f"write {path}"):
        document = {
            "schema": SCHEMA,
            "step": step.value,
            "backup": backup,
            "disks": [
                {
                    "dev": one.dev,
                    "path": str(one.path),
                    "backup": one.backup,
                    "kept": one.is_kept,
                    "old": None if one.old is None else asdict(one.old),
                    "new": None if one.new is None else asdict(one.new),
                }
                for one in disks
            ],
            "rolled": sorted(rolled),
            "writer": Writer.this().document(),
            "inode": directory.lstat().st_ino,  # st_dev can be another after a reboot
            "host": host,
            "uri": uri,
        }
        files.replace_text(path, json.dumps(document, indent=2) + "\n")


def remove(directory: Path) -> None:
    """Remove the journal: all is in its place. Raises StorageError."""
    with storage_errors(f"remove {directory / NAME}"):
        (directory / NAME).unlink(missing_ok=True)
        files.fsync(directory)


def _disk(fields: Fields) -> Replaced:
    return Replaced(
        fields.text("dev"),
        Path(fields.text("path")),
        _id(fields, "backup"),
        fields.boolean("kept"),
        _seen(fields, "old"),
        _seen(fields, "new"),
    )


def _seen(fields: Fields, member: str) -> Seen | None:
    if member not in fields:
        return None
    found = fields.object(member)
    return Seen(found.integer("inode"), found.integer("size_bytes"), found.integer("mtime_ns"))


def _id(fields: Fields, member: str) -> str:
    found = fields.text(member)
    if not names.BACKUP_ID.fullmatch(found):
        raise ChainError(f"In the journal of a restore in place: {found[:50]!r} is not a backup id.")
    return found
