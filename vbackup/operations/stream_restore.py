"""Read streams back: into a repository, each when all of it is there and right, or into a directory as whole disks.

A stream may come from anywhere. Every member has to be the one that the manifest, which comes first, leads to expect;
it is written to a stage, compared with the digests, the image also with its block list, and becomes visible by a rename
when the stream has its end. Whatever is wrong, nothing of that stream is kept.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vbackup.errors import BusyError, ChainError, StorageError, StreamError
from vbackup.files import storage_errors
from vbackup.images import destination
from vbackup.model import Backup, DiskImage
from vbackup.operations import restore
from vbackup.operations.restore import Restored, RestoreRequest
from vbackup.report import Reporter
from vbackup.repository import image_check, manifest, stream_members, stream_tar, verify
from vbackup.repository.history import Link
from vbackup.repository.image_check import Watch
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import MARKER, Repository, Stage
from vbackup.repository.stream_members import Origin
from vbackup.repository.stream_tar import SUMS, Read, Reader
from vbackup.stop import Stop

#: The repository of a restore to a directory, until the disks are whole.
_CHAIN = ".vbackup-streams"


@dataclass(frozen=True)
class Received:
    """A backup that came in a stream."""

    backup: Backup
    is_new: bool  #: False if the repository had it already


@dataclass(frozen=True)
class _Work:
    repository: Repository
    reporter: Reporter
    stop: Stop
    domain: str | None


def run(
    read: Read, *, repository: Repository, domain: str | None = None, reporter: Reporter, stop: Stop
) -> list[Received]:
    """Read all streams that follow each other, and commit each of them; return what came, in order.

    Only streams of ``domain``, a name or UUID, are accepted. Raises StreamError if a stream is cut, damaged or of
    another domain, ChainError if a backup that it depends on is not there, StorageError, NoSpaceError, BusyError:
    streams before it stay.
    """
    work = _Work(repository, reporter, stop, domain)
    reader = Reader(_watched(read, stop))
    received = []
    while (first := reader.first()) is not None:
        origin = stream_members.origin(first)
        text = reader.small(first, max_bytes=manifest.MAX_SIZE_BYTES)
        backup = _loaded(text, origin, domain=domain)
        received.append(_receive(backup, origin, reader, work))
    if not received:
        raise StreamError("There is no stream on standard input.")
    return received


def run_to_directory(
    read: Read, output: Path, *, domain: str | None = None, reporter: Reporter, stop: Stop
) -> tuple[Restored, list[Received]]:
    """Read the streams of one domain, and write its disks as they are in the last one; nothing else is kept.

    Raises what ``run`` and operations.restore.run raise; nothing is left then.
    """
    with _claimed(output) as path:
        repository = Repository.create(path / _CHAIN)
        received = run(read, repository=repository, domain=domain, reporter=reporter, stop=stop)
        uuids = {one.backup.domain_uuid for one in received}
        if len(uuids) > 1:
            raise StreamError(f"The streams are of {len(uuids)} domains: {', '.join(sorted(uuids))}.")
        request = RestoreRequest(uuids.pop(), path, checkpoint=False)
        return restore.run(request, repository=repository, reporter=reporter, stop=stop), received


@contextmanager
def _claimed(output: Path) -> Iterator[Path]:
    """Yield the directory, made if it does not exist, without what an earlier restore has left; clean up at the end."""
    path = output.absolute()
    _refuse_inside(path)
    is_new = not path.exists()
    with storage_errors(f"write to {path}"):
        destination.make(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(fd)  # what is there belongs to the other
        raise BusyError(f"Another vbackup restores streams to {path}; wait for it to end.") from err
    try:
        _remove(path / _CHAIN)
        if any(path.iterdir()):  # before hours of reading
            raise StorageError(f"{path} is not empty; give a new or empty directory.")
        yield path
    finally:
        _remove(path / _CHAIN)
        os.close(fd)
        if is_new and not any(path.iterdir()):
            path.rmdir()


def _refuse_inside(path: Path) -> None:
    """Refuse a directory in a repository or a stage, where only backups belong."""
    around = path.resolve()
    for directory in (around, *around.parents):
        if (directory / MARKER).exists():
            raise StorageError(
                f"{path} is in the repository {directory}, where only backups belong: nothing was written. Give another"
                " directory."
            )


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _watched(read: Read, stop: Stop) -> Read:
    def watched(size_bytes: int) -> bytes:
        stop.check()
        return read(size_bytes)

    return watched


def _loaded(text: bytes, origin: Origin, *, domain: str | None) -> Backup:
    try:
        backup = manifest.load(text.decode(), backup_id=origin.backup_id, domain_uuid=origin.domain_uuid)
    except UnicodeDecodeError as err:
        raise StreamError(f"The manifest of backup {origin.backup_id} is damaged in the stream: no UTF-8.") from err
    if domain is not None and domain != backup.domain_name and domain.lower() != backup.domain_uuid:
        raise StreamError(
            f"The stream is of domain {backup.domain_name} ({backup.domain_uuid}) and not of {domain}; nothing was"
            " kept of it."
        )
    return backup


def _receive(backup: Backup, origin: Origin, reader: Reader, work: _Work) -> Received:
    repository, uuid = work.repository, backup.domain_uuid
    wait = LockWait(0.0, work.reporter, work.stop, name=backup.domain_name)
    with repository.lock(uuid, wait=wait):
        history = repository.catalogue(uuid).history
        known = next((one for one in history.backups if one.id == backup.id), None)
        if known is None and backup.id in repository.taken_ids(uuid):
            raise ChainError(f"{repository.directory(uuid, backup.id)} is in the way: its manifest cannot be read.")
        if known is not None and replace(known, sequence=backup.sequence) != backup:
            raise ChainError(f"The repository has another backup {backup.id} of domain {backup.domain_name}.")
        if known is not None:
            _drain(backup, origin, reader)
            work.reporter.step(f"Backup {backup.id} was there already.")
            return Received(known, is_new=False)
        # In this repository it is the newest: another stage would count from 1 again.
        arrived = replace(backup, sequence=history.next_sequence)
        for image in backup.disks:
            if image.base is not None:
                history.with_committed(arrived).links(arrived.id, image.dev)
        _clear(repository, uuid, backup.id)
        with repository.stage(uuid, backup.id) as stage:
            _write(backup, origin, reader, stage, work)
            for image in backup.disks:
                _check(Link(arrived, image), stage, work)
            repository.remember_name(uuid, backup.domain_name, backup.host)
            work.stop.check()
            stage.commit(arrived)
    work.reporter.step(f"Backup {backup.id} of domain {backup.domain_name} has arrived, and is as it was sent.")
    return Received(arrived, is_new=True)


def _clear(repository: Repository, uuid: str, backup_id: str) -> None:
    """Remove what a dead restore has left of the backup; its stage has no journal, and the lock is held."""
    path = repository.stage_path(uuid, backup_id)
    if path.exists():
        with repository.stage(uuid, backup_id, existing=True):
            pass


def _write(backup: Backup, origin: Origin, reader: Reader, stage: Stage, work: _Work) -> None:
    """Write the members to the stage, each with the name that was expected; compare them with the digests."""
    digests = backup.digests
    for expected in stream_members.expected(backup):
        member = _next(reader, origin, expected)
        digest, _ = stage.write_pieces(expected.file, reader.content(member), check=work.stop.check)
        if digest != digests.get(expected.file, digest):
            raise StreamError(f"{expected.file} of backup {backup.id} is damaged in the stream: its digest differs.")
    _end(reader, origin)


def _drain(backup: Backup, origin: Origin, reader: Reader) -> None:
    for expected in stream_members.expected(backup):
        for _ in reader.content(_next(reader, origin, expected)):
            pass
    _end(reader, origin)


def _next(reader: Reader, origin: Origin, expected: stream_members.Expected) -> stream_tar.Member:
    member = reader.next()
    if member.name != f"{origin.prefix}/{expected.file}":
        raise StreamError(
            f"The stream of backup {origin.backup_id} should have {expected.file} next, but has {member.name[:200]!r}:"
            " a part of it is missing, or in another order."
        )
    if member.size_bytes > expected.max_bytes or (expected.is_exact and member.size_bytes != expected.max_bytes):
        raise StreamError(
            f"{expected.file} of backup {origin.backup_id} has {member.size_bytes} bytes in the stream; its manifest"
            f" says {'' if expected.is_exact else 'at most '}{expected.max_bytes}."
        )
    return member


def _end(reader: Reader, origin: Origin) -> None:
    last = reader.next()
    if last.name != f"{origin.prefix}/{SUMS}":
        raise StreamError(f"The stream of backup {origin.backup_id} has {last.name[:200]!r}, where it should end.")
    reader.check_sums(last)
    reader.end()


def _check(link: Link, stage: Stage, work: _Work) -> None:
    """Read an image that has arrived, and compare it with its block list. Raises ChainError."""
    image: DiskImage = link.image
    path = stage.path / image.file
    verify.check_header(path, link)
    found = image_check.check(path, link, Watch(before=lambda _bytes: work.stop.check()))
    if found.findings:
        raise StreamError(f"The stream of backup {link.backup.id} is damaged: {found.findings[0].reason}")
