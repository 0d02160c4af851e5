"""The record of a live restore, live.json in its output directory: what ``--resume`` goes on with, ``--abort`` removes.

It is written when all files of the domain are there and before anything runs, and removed when all data is at home.
Whoever works on the restore has a lock. vbackup-repository(5) has the format.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbackup import names
from vbackup.errors import BusyError, StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import fsync, open_regular, read_regular, replace_text, storage_errors

FILE = "live.json"
SOCKET = "live.sock"
#: The file that has the lock: unlike live.json it is never replaced.
LOCKED = "domain.xml"
SCHEMA = "vbackup.live/1"
#: It is no longer than this.
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class LiveDisk:
    """A disk of a domain that is being restored live."""

    dev: str
    backup: str  #: id of the backup that it is of
    path: Path  #: of its image, an overlay above the backup


@dataclass(frozen=True)
class LiveState:
    """A live restore that has begun."""

    output: Path
    repository_id: str
    original: str  #: UUID of the domain that was backed up
    uuid: str  #: of the restored domain, and its name: those of the original, or new ones
    name: str
    backup: str
    disks: Mapping[str, LiveDisk]
    files: tuple[str, ...]  #: names of all other files that the restore has made, in the output directory
    later: tuple[str, ...] = ()  #: names of those that libvirt or QEMU makes there when the domain starts
    protected: tuple[str, ...] = ()  #: ids of backups that are protected because of it
    home: frozenset[str] = frozenset()  #: disks (dev) whose data is at home, and on storage
    uri: str | None = None  #: of libvirt on another host, which has the files; it is not in the file

    @property
    def away(self) -> tuple[str, ...]:
        """The other disks. That the image of one names no backing file any more does not mean that it is complete."""
        return tuple(dev for dev in self.disks if dev not in self.home)

    @property
    def socket(self) -> Path:
        """Where the backup is served."""
        return socket_of(self.output)

    @property
    def is_original(self) -> bool:
        """True if the restored domain is the original, False if it has another identity."""
        return self.uuid == self.original

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that the restore has made and a person looks for: images, and files in the output directory."""
        return tuple(dict.fromkeys((*map(self.image, self.disks), *(self.output / name for name in self.files))))

    def image(self, dev: str) -> Path:
        """Return the path of a disk's image."""
        return self.disks[dev].path

    def text(self) -> str:
        """Return the content of the file."""
        document = {
            "schema": SCHEMA,
            "repository": self.repository_id,
            "original": self.original,
            "domain": {"name": self.name, "uuid": self.uuid},
            "backup": self.backup,
            "disks": [
                {"dev": one.dev, "backup": one.backup, "path": os.fspath(one.path)} for one in self.disks.values()
            ],
            "files": list(self.files),
            "later": list(self.later),
            "protected": list(self.protected),
            "home": sorted(self.home),
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def socket_of(output: Path) -> Path:
    """Return where a backup is served for a domain that is restored to that directory."""
    return output / SOCKET


def read(output: Path) -> LiveState:
    """Return what the directory's live.json says. Raises StorageError if there is none, or it is not valid."""
    path = output / FILE
    with storage_errors(f"read {path}"):
        try:
            content = read_regular(path, max_bytes=MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise missing(output) from None
    return parse(content, output)


def missing(output: Path) -> StorageError:
    """Return the error that a directory has no such file."""
    return StorageError(f"No live restore to {output} is unfinished: it has no {FILE}.")


def parse(content: bytes, output: Path) -> LiveState:
    """Return what the content of a directory's live.json says. Raises StorageError if it is not valid."""
    path = output / FILE
    try:
        fields = Fields(parse_json(content.decode()), os.fspath(path), StorageError)
    except (ValueError, RecursionError) as err:
        raise StorageError(f"{path} is not valid: {err}.") from err
    if fields.text("schema") != SCHEMA:
        raise StorageError(f"{path} has format {fields.text('schema')[:50]}, but this vbackup knows only {SCHEMA}.")
    domain = fields.object("domain")
    disks = [LiveDisk(one.text("dev"), one.text("backup"), Path(one.text("path"))) for one in fields.objects("disks")]
    state = LiveState(
        output=output,
        repository_id=fields.text("repository"),
        original=fields.text("original"),
        uuid=domain.text("uuid"),
        name=domain.text("name"),
        backup=fields.text("backup"),
        disks={one.dev: one for one in disks},
        files=tuple(sorted(fields.strings("files"))),
        later=tuple(sorted(fields.strings("later"))),
        protected=tuple(sorted(fields.strings("protected"))),
        home=fields.strings("home"),
    )
    _check(state, path)
    return state


def _check(state: LiveState, path: Path) -> None:
    """Raise StorageError if a name could lead elsewhere."""
    ids = [state.backup, *state.protected, *(one.backup for one in state.disks.values())]
    is_valid = (
        names.UUID.fullmatch(state.uuid)
        and names.UUID.fullmatch(state.original)
        and all(names.DEV.fullmatch(dev) for dev in state.disks)
        and all(one.path.is_absolute() and "\0" not in os.fspath(one.path) for one in state.disks.values())
        and state.home <= state.disks.keys()
        and all(names.BACKUP_ID.fullmatch(one) for one in ids)
        and all(one == Path(one).name and one not in (".", "..") for one in (*state.files, *state.later))
    )
    if not is_valid:
        raise StorageError(f"{path} is not valid: a name in it is none that vbackup writes.")


@contextmanager
def locked(output: Path) -> Iterator[LiveState]:
    """Yield what live.json says, which nobody else works with during the block. Raises as ``read``, and BusyError."""
    read(output)
    with storage_errors(f"lock {output / LOCKED}"):
        fd = open_regular(output / LOCKED)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy(output) from None
        yield read(output)
    finally:
        os.close(fd)


def busy(output: Path) -> BusyError:
    """Return the error that somebody else works with a live restore."""
    return BusyError(f"Another vbackup works on the live restore to {output}; wait for it to end.")


def write(state: LiveState) -> None:
    """Write live.json again. Raises StorageError, NoSpaceError."""
    with storage_errors(f"write {state.output / FILE}"):
        replace_text(state.output / FILE, state.text())


def remove(output: Path) -> None:
    """Remove live.json: the restore has ended. Raises StorageError."""
    with storage_errors(f"remove {output / FILE}"):
        (output / FILE).unlink(missing_ok=True)
        fsync(output)
