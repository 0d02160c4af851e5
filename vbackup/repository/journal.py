"""The write-ahead journal of an unfinished backup: what vbackup may leave outside the repository when it dies.

One JSON object per line, in the backup's stage; each is on the disk before the step that it names begins. The format is
known only here. vbackup.operations.backup writes the journal, vbackup.operations.recovery reads it and finishes or
undoes the backup. A committed backup has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from vbackup import files
from vbackup.errors import ChainError, NewerJournalError
from vbackup.fields import Fields
from vbackup.files import storage_errors
from vbackup.model import Backup, Consistency, FreezeMark
from vbackup.repository import manifest
from vbackup.repository.writer import Pulse, Writer

#: Its name in the stage.
JOURNAL = "journal"
SCHEMA = "vbackup.journal/1"
#: The step of a line that only names another writer: the run that finishes the backup of a dead one.
TAKEN_OVER = "taken over"
#: The first line is as large as a manifest, the others are short.
MAX_SIZE_BYTES = manifest.MAX_SIZE_BYTES + 65536


class Step(Enum):
    """What begins, in this order. A step that is recorded may have been carried out or not."""

    BEGIN = "begin"  #: the images in the stage; nothing outside it
    TARGETS = "targets"  #: descriptors and nodes of the ``images`` in QEMU
    MOMENT = "moment"  #: at ``time``: the filesystems are frozen, bitmaps and jobs made, the filesystems thawed
    STARTED = "started"  #: the jobs run; ``time``, ``consistency`` and ``frozen_ms`` are known
    COPIED = "copied"  #: all jobs have ended well, with ``copied_bytes`` by dev, and are dismissed
    FLUSHED = "flushed"  #: the images are complete; QEMU lets go of them
    STREAMED = "streamed"  #: a stream has all of it, and its images are gone here (vbackup.engine.delivery)


@dataclass(frozen=True)
class Entry:
    """What a journal says: the backup as planned, and the last step that is certain."""

    draft: Backup  #: with time, consistency and copied bytes as far as they are known
    writer: Writer
    step: Step
    guest_was_stopped: bool = False  #: an I/O error had stopped the guest before the jobs began
    freeze_mark: FreezeMark = FreezeMark.UNMARKED  #: how to tell whether the guest was frozen
    images: Mapping[str, str] = field(default_factory=dict)  #: identity, by file, of the images that QEMU got
    stage: str | None = None  #: the same of the stage; None in a journal of an older version
    directory: str | None = None  #: path of the stage when it was begun
    is_served: bool = False  #: a server that ended with the writer had the images open

    def is_of(self, directory: Path) -> bool:
        """Return True if the stage and its images are those that were begun, not copies.

        A repository that is copied in the middle of a backup contains the journal too; if files are copied as hard
        links, the directory still is another. The device number of the filesystem may change when the host reboots, or
        when a network filesystem is mounted again at the same path.
        """
        given = {**self.images, **({".": self.stage} if self.stage is not None else {})}
        try:
            now = {file: _identity(directory / file) for file in given}
        except OSError:
            return False
        if now == given:
            return True
        is_same_path = self.directory == os.fspath(directory)
        return (not self.writer.is_of_this_boot or is_same_path) and _inodes(now) == _inodes(given)


class Journal:
    """The journal of a stage, open for writing. A context manager.

    Raises StorageError and NoSpaceError if it cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / JOURNAL

    def __enter__(self) -> Journal:
        with storage_errors(f"write {self._path}"):
            self._fd = files.open_regular(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._is_open = True
        self._pulse = Pulse(self._fd)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, so that its directory can be renamed or removed; closing twice is fine.

        An SMB server renames no directory in which a file is open. Every step is on the disk already: closing changes
        nothing that a recovery would read.
        """
        if self._is_open:
            self._is_open = False
            self._pulse.stop()
            os.close(self._fd)

    def begin(self, draft: Backup) -> None:
        """Record the plan, as the first line."""
        where = {"identity": _identity(self._path.parent), "directory": os.fspath(self._path.parent)}
        self._write(
            Step.BEGIN,
            {"schema": SCHEMA, "writer": Writer.this().document(), **where, "backup": manifest.document(draft)},
        )

    def take_over(self) -> None:
        """Record that this process goes on with the backup of a dead one, whose last line may be incomplete."""
        with storage_errors(f"write {self._path}"):
            data = files.read_regular(self._path, max_bytes=MAX_SIZE_BYTES)
            os.ftruncate(self._fd, data.rfind(b"\n") + 1)
        self._append({"step": TAKEN_OVER, "writer": Writer.this().document()})

    def targets(self, files: Sequence[str], *, served: bool = False) -> None:
        """Record that QEMU is about to get these images; they are in the journal's directory.

        ``served``: it writes them through a server that ends with this process.
        """
        images = {file: _identity(self._path.parent / file) for file in files}
        self._write(Step.TARGETS, {"images": images, **({"served": True} if served else {})})

    def moment(self, time: datetime, *, guest_was_stopped: bool, freeze_mark: FreezeMark = FreezeMark.UNMARKED) -> None:
        """Record that the freeze and the transaction are about to begin."""
        self._write(
            Step.MOMENT,
            {"time": manifest.iso(time), "guest_was_stopped": guest_was_stopped, "freeze": freeze_mark.value},
        )

    def started(self, draft: Backup) -> None:
        """Record that the jobs run, and what the moment has made of the draft."""
        members: dict[str, Any] = {
            "time": manifest.iso(draft.time),
            "consistency": draft.consistency.value,
            "frozen_ms": draft.frozen_ms,
        }
        if draft.group is not None:
            members["spread_ms"] = draft.group.spread_ms
        self._write(Step.STARTED, members)

    def copied(self, copied_bytes: Mapping[str, int]) -> None:
        """Record that all jobs have ended well; ``copied_bytes`` by dev."""
        self._write(Step.COPIED, {"copied_bytes": dict(copied_bytes)})

    def flushed(self) -> None:
        """Record that the images are complete."""
        self._write(Step.FLUSHED, {})

    def streamed(self) -> None:
        """Record that a stream has all of the backup: only a commit, or an undo, is missing."""
        self._write(Step.STREAMED, {})

    def _write(self, step: Step, members: Mapping[str, Any]) -> None:
        """Append the line of a step and put it on the disk."""
        self._append({"step": step.value, **members})

    def _append(self, line: Mapping[str, Any]) -> None:
        # ASCII only, so that a lone surrogate in a name is not an error.
        data = (json.dumps(line) + "\n").encode("ascii")
        with storage_errors(f"write {self._path}"):
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)


def _identity(path: Path) -> str:
    """Return what distinguishes a file from a copy of it until the host reboots."""
    status = path.lstat()
    return f"{status.st_dev}:{status.st_ino}"


def _inodes(identities: Mapping[str, str]) -> Mapping[str, str]:
    return {file: identity.rpartition(":")[2] for file, identity in identities.items()}


def touched(directory: Path) -> float | None:
    """Return the time of the filesystem's clock at which the stage's journal was last touched; None without one.

    The file is opened for it, which makes a client of NFS ask the server.
    """
    try:
        fd = files.open_regular(directory / JOURNAL)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def read(directory: Path, *, backup_id: str, domain_uuid: str) -> Entry | None:
    """Return what the journal of that stage says; None if there is none, or its first line is incomplete.

    An incomplete last line is ignored: its step never began. Raises ChainError if it is not a journal of that backup,
    NewerJournalError if a newer vbackup wrote it.
    """
    where = f"the journal of backup {backup_id}"
    try:
        data = files.read_regular(directory / JOURNAL, max_bytes=MAX_SIZE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise ChainError(f"In {where}: it cannot be read: {err.strerror or err}.") from err
    lines = data.split(b"\n")[:-1]  # what follows the last newline is empty or incomplete
    if not lines:
        return None
    return _read(lines, where, backup_id, domain_uuid)


def _read(lines: list[bytes], where: str, backup_id: str, domain_uuid: str) -> Entry:
    first = _first(lines[0], where, backup_id, domain_uuid)
    draft = manifest.parse(first.object("backup"), where, backup_id=backup_id, domain_uuid=domain_uuid)
    step, guest_was_stopped, freeze_mark = Step.BEGIN, False, FreezeMark.UNMARKED
    images: Mapping[str, str] = {}
    is_served = False
    writer = Writer.read(first.object("writer"))
    for line in lines[1:]:
        fields = _line(line, where)
        if fields.text("step") == TAKEN_OVER:
            writer = Writer.read(fields.object("writer"))
            continue
        try:
            step = Step(fields.text("step"))
            if step is Step.TARGETS:
                images = {image.file: fields.object("images").text(image.file) for image in draft.disks}
                is_served = fields.optional_boolean("served")
            elif step is Step.MOMENT:
                draft = replace(draft, time=manifest.time(fields.text("time"), where))
                guest_was_stopped = fields.boolean("guest_was_stopped")
                freeze_mark = FreezeMark(fields.optional_text("freeze") or FreezeMark.UNMARKED.value)
            elif step is Step.STARTED:
                draft = replace(
                    draft,
                    time=manifest.time(fields.text("time"), where),
                    consistency=Consistency(fields.text("consistency")),
                    frozen_ms=fields.integer("frozen_ms"),
                )
                if draft.group is not None:
                    draft = replace(draft, group=replace(draft.group, spread_ms=fields.number("spread_ms")))
            elif step is Step.COPIED:
                draft = with_copied(
                    draft, {image.dev: fields.object("copied_bytes").integer(image.dev) for image in draft.disks}
                )
            elif step is Step.STREAMED:
                images = {}  # they were streamed, and are gone
        except ValueError as err:
            raise ChainError(f"In {where}: {err}.") from err
    return Entry(
        draft,
        writer,
        step,
        guest_was_stopped=guest_was_stopped,
        freeze_mark=freeze_mark,
        images=images,
        stage=first.optional_text("identity"),
        directory=first.optional_text("directory"),
        is_served=is_served,
    )


def _first(line: bytes, where: str, backup_id: str, domain_uuid: str) -> Fields:
    first = _line(line, where)
    schema = first.text("schema")
    if schema != SCHEMA and schema.startswith(SCHEMA.rstrip("1")):
        raise NewerJournalError(backup_id, domain_uuid, schema=schema, known=SCHEMA)
    if first.text("step") != Step.BEGIN.value or schema != SCHEMA:
        raise ChainError(f"In {where}: it does not begin as a journal that this vbackup reads ({SCHEMA}).")
    return first


def with_copied(draft: Backup, copied_bytes: Mapping[str, int]) -> Backup:
    """Return the draft with the bytes that its jobs copied, by dev."""
    return replace(draft, disks=tuple(replace(image, copied_bytes=copied_bytes[image.dev]) for image in draft.disks))


def _line(line: bytes, where: str) -> Fields:
    try:
        return Fields(json.loads(line), where, ChainError)
    except (ValueError, RecursionError) as err:
        raise ChainError(f"In {where}: a line cannot be read ({err}).") from err
