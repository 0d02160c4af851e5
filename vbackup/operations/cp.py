"""Copy files and directories of a guest out of a backup, as files or as a tar archive: ``vbackup cp``.

A copy is made under a temporary name beside its place and gets its name at the end, so that what has the name is whole,
and nothing that exists is overwritten.
"""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbackup import files
from vbackup.errors import (
    InterruptedBySignalError,
    PartlyCopiedError,
    Retry,
    StorageError,
    UnsuitableError,
    UsageError,
    VbackupError,
)
from vbackup.files import storage_errors
from vbackup.images import guest_files, unpacking
from vbackup.images.guest import Keys
from vbackup.images.guest_address import Address
from vbackup.images.guest_files import Entry
from vbackup.images.unpacking import Keep
from vbackup.model import Backup
from vbackup.operations import inside
from vbackup.operations.inside import Inside
from vbackup.report import Reporter
from vbackup.repository import filesystem
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class CpRequest:
    """The options of ``vbackup cp``."""

    domain: str  #: name or UUID
    wanted: Wanted
    sources: tuple[Address, ...]  #: all with the same ``where``
    target: Path | None = None  #: a new name, or an existing directory; None: a tar archive
    keeps_everything: bool = False  #: owner, mode and times

    @property
    def where(self) -> str | None:
        """The file system that all sources are in."""
        return self.sources[0].where


@dataclass(frozen=True)
class Copied:
    """A source that was copied."""

    source: Address
    path: Path | None  #: None: in the archive
    files: int
    size_bytes: int
    left_out: tuple[str, ...]  #: names, each with the reason


@dataclass(frozen=True)
class Copies:
    """The answer of ``vbackup cp``."""

    backup: Backup
    copied: tuple[Copied, ...]


def run(
    request: CpRequest,
    output: io.RawIOBase | None = None,
    *,
    keys: Keys,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> Copies:
    """Copy, to the target or as a tar archive to ``output``.

    Raises UsageError, StorageError before anything is opened if the target cannot be used, what
    vbackup.operations.inside.opened raises, UnsuitableError if there is no such file.
    """
    places = _places(request)
    repository.refuse_inside(*places)
    with inside.opened(
        request.domain,
        request.wanted,
        where=request.where,
        keys=keys,
        repository=repository,
        reporter=reporter,
        stop=stop,
    ) as there:
        there.guest.mount(request.where)
        keeps_links = output is not None or request.keeps_everything
        found = [there.files.find(source.path, follow=not keeps_links) for source in request.sources]
        if output is not None:
            copied = _archive(there, request.sources, found, output, stop)
        else:
            keep = Keep(request.keeps_everything, unpacking.current_umask())
            copied = _copy_all(there, list(zip(request.sources, found, places)), keep, stop)
        return Copies(there.backup, tuple(copied))


def _places(request: CpRequest) -> list[Path]:
    """Return the path of each copy: nothing has it yet. Raises UsageError, StorageError."""
    target = request.target
    if target is None:
        return []
    is_into = target.is_dir()
    if not is_into and len(request.sources) > 1:
        raise UsageError(f"{target} is no directory; several files are copied into an existing one.")
    places = [target / _name(source) if is_into else target for source in request.sources]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"Two of the files would be {place}; copy them one by one.")
        unpacking.refuse_taken(place)
    parent = places[0].parent
    if not parent.is_dir():
        raise StorageError(f"The directory {parent} is missing; create it first.")
    files.refuse_unwritable(parent)
    return places


def _name(source: Address) -> str:
    """Return the name of a copy in a directory."""
    name = source.path.rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        raise UsageError(f"{source} has no name that a copy could get: give a new path as the target.")
    return name


#: What is copied, what that is, and the path of the copy.
_Work = tuple[Address, Entry, Path]


def _copy_all(there: Inside, works: Sequence[_Work], keep: Keep, stop: Stop) -> list[Copied]:
    """Copy each to its place. An error says which copies were made before: they are whole, and stay."""
    copied: list[Copied] = []
    for work in works:
        try:
            copied.append(_copy(there, work, keep, stop))
        except VbackupError as err:
            if not copied:
                raise
            made = f"{len(copied)} of {len(works)} were copied before: {', '.join(str(one.path) for one in copied)}"
            if isinstance(err, InterruptedBySignalError):
                raise InterruptedBySignalError(err.signum, state=made, retry=Retry.NEVER) from err
            raise PartlyCopiedError(err, made) from err
    return copied


def _copy(there: Inside, work: _Work, keep: Keep, stop: Stop) -> Copied:
    """Copy a file or a directory to its place."""
    source, found, place = work
    with _temporary(place, is_directory=found.is_directory) as path:
        if found.is_directory:
            with there.files.archive(source.path) as stream:
                done = unpacking.unpack(stream, path, keep=keep, check=stop.check)
            return Copied(source, place, done.files, done.size_bytes, tuple(done.left_out))
        if found.is_link:
            with storage_errors(f"write {place}"):
                unpacking.make_link(path, found, found.mtime_ns, found.target or "", keep)
            return Copied(source, place, 1, 0, ())
        with there.files.content(source.path) as stream, storage_errors(f"write {place}"):
            size_bytes = unpacking.write_file(stream, path, check=stop.check)
        with storage_errors(f"write {place}"):
            unpacking.set_attributes(path, found, found.mtime_ns, keep)
        return Copied(source, place, 1, size_bytes, ())


@contextmanager
def _temporary(place: Path, *, is_directory: bool) -> Iterator[Path]:
    """Yield a new path beside ``place``, of an empty directory or of nothing, that gets its name at the end."""
    with storage_errors(f"write to {place.parent}"):
        path = Path(tempfile.mkdtemp(prefix=".vbackup-cp-", dir=place.parent))
    try:
        if not is_directory:
            path.rmdir()
        yield path
        with storage_errors(f"create {place}"):
            filesystem.move(path, place)
    finally:
        if is_directory:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# as an archive


def _archive(
    there: Inside, sources: Sequence[Address], found: Sequence[Entry], output: io.RawIOBase, stop: Stop
) -> list[Copied]:
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        return [_add(there, source, one, archive, stop) for source, one in zip(sources, found)]


def _add(there: Inside, source: Address, found: Entry, archive: tarfile.TarFile, stop: Stop) -> Copied:
    prefix = unpacking.parts_of(source.path.lstrip("/"))
    name = prefix[-1] if prefix else ""
    if not found.is_directory:
        return _add_file(there, source, found, name, archive)
    count, size_bytes, left_out = 0, 0, []
    with there.files.archive(source.path) as stream, unpacking.archive_errors():
        for member, content in unpacking.members(stream):
            stop.check()
            new = _renamed(member, name)
            if new is None:
                left_out.append(f"{member.name}: its name is no path in this directory")
                continue
            archive.addfile(new, content)
            count, size_bytes = count + 1, size_bytes + (new.size if content is not None else 0)
    return Copied(source, None, count, size_bytes, tuple(left_out))


def _add_file(there: Inside, source: Address, found: Entry, name: str, archive: tarfile.TarFile) -> Copied:
    info = tarfile.TarInfo(name)
    info.mode, info.uid, info.gid = stat.S_IMODE(found.mode), found.uid, found.gid
    info.mtime = found.mtime_ns / 10**9
    if found.is_link:
        info.type, info.linkname = tarfile.SYMTYPE, found.target or ""
        archive.addfile(info)
    elif found.is_regular:
        info.size = found.size_bytes
        is_whole = False
        with there.files.content(source.path) as stream:
            try:
                archive.addfile(info, stream)
                is_whole = True
            except OSError as err:
                if err.errno is not None:  # of the output; tarfile's own, that the content ends early, has no number
                    raise
        if not is_whole:  # and libguestfs has not said why
            raise UnsuitableError(
                f"{source.path} of the guest cannot be read: it ends before its {info.size} bytes do."
            )
    else:
        return Copied(source, None, 0, 0, (f"{source}: it is {guest_files.kind(found.mode)}",))
    return Copied(source, None, 1, info.size, ())


def _renamed(member: tarfile.TarInfo, directory: str) -> tarfile.TarInfo | None:
    """Return the member below a directory, with nothing of its header that could override that; None: it has no place.

    A name that leads out of the directory is none that libguestfs's tar writes.
    """
    parts = unpacking.parts_of(member.name)
    if parts is None:
        return None
    new = tarfile.TarInfo("/".join((directory, *parts)).strip("/") or ".")
    for attribute in ("mode", "uid", "gid", "mtime", "type", "devmajor", "devminor"):
        setattr(new, attribute, getattr(member, attribute))
    if member.issym():
        new.linkname = member.linkname
    if member.isreg():
        new.type, new.size = tarfile.REGTYPE, member.size
    if member.islnk():
        first = unpacking.parts_of(member.linkname)
        if first is None:
            return None
        new.linkname = "/".join((directory, *first)).strip("/")
    return new
