"""Read files of a guest whose file systems are mounted in libguestfs's appliance: what they are, and their content.

Names are those of the guest: any bytes but NUL and slash, with those that are no UTF-8 as surrogates (os.fsencode).
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import PurePosixPath

from vbackup.errors import ApplianceRefusedError, UnsuitableError
from vbackup.images import appliance
from vbackup.images.appliance import Session, word_list

#: Room for the names in one command of guestfish, quoted as it wants them.
_LIST_BYTES = appliance.MAX_LINE_BYTES // 2
#: How many directories above a missing path are looked at, and how many of the names there are shown and compared.
_MAX_PARENTS, _NAMED, _MAX_COMPARED, _SHOWN_CHARACTERS = 64, 8, 1000, 64
_FIELD = re.compile(r"^ *st_(\w+): (-?\d+)$", re.MULTILINE)
_STRUCT = re.compile(r"^\[\d+\] = \{$", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """A file of any kind."""

    path: str  #: as it was asked for, or below that
    mode: int  #: st_mode
    uid: int
    gid: int
    links: int
    size_bytes: int
    mtime_ns: int
    rdev: int = 0
    target: str | None = None  #: of a symbolic link, if it was read

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2] or "/"

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """True for a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_regular(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def mtime(self) -> datetime:
        """When it was changed last; a time that no calendar has is the nearest one that has a year of four digits."""
        limits = (-62135596800 + 86400, 253402300799 - 86400)
        second = min(max(self.mtime_ns // 10**9, limits[0]), limits[1])
        return datetime.fromtimestamp(second, timezone.utc)


class GuestFiles:
    """The files in the file systems that a session has mounted."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, path: str, *, follow: bool = False) -> Entry:
        """Return what is at ``path``; ``follow``: at the end of symbolic links.

        Raises UnsuitableError, which names what there is if there is no such path.
        """
        with _named(path):
            try:
                text = self._session.run("statns" if follow else "lstatns", path)
            except ApplianceRefusedError as err:
                if err.is_not_found:
                    raise UnsuitableError(f"There is no {path} in the guest{self._nearest(path)}.") from err
                raise
        found = _entry(path, text)
        if found.is_link:
            with _named(path):
                return replace(found, target=self._session.run("readlink", path).removesuffix("\n"))
        return found

    def _nearest(self, path: str) -> str:
        """Return what the nearest directory above a missing path has, as a part of a sentence, "" if it is unknown."""
        wanted = PurePosixPath(path).name
        for parent in list(PurePosixPath(path).parents)[:_MAX_PARENTS]:
            try:
                found = _entry(str(parent), self._session.run("statns", str(parent)))
                if not found.is_directory:
                    return f": {parent} is no directory"
                names = sorted(self.names(str(parent)), key=os.fsencode)
            except ApplianceRefusedError as err:
                if err.is_not_found:
                    wanted = parent.name
                    continue
                return ""
            except UnsuitableError:
                return ""
            similar = difflib.get_close_matches(wanted, names[:_MAX_COMPARED], n=_NAMED)
            shown = [name[:_SHOWN_CHARACTERS] for name in dict.fromkeys((*similar, *names))][:_NAMED]
            more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
            return f": {parent} has {', '.join(shown)}{more}" if names else f": {parent} is empty"
        return ""

    def real_path(self, path: str) -> str:
        """Return the path without symbolic links. Raises UnsuitableError."""
        with _named(path):
            return self._session.run("realpath", path).removesuffix("\n")

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory. Raises UnsuitableError."""
        with _named(directory), self._session.reading("ls0", directory, "-") as stream:
            return _names(stream)

    def below(self, directory: str) -> list[str]:
        """Return the paths of all that is below a directory, relative to it. Raises UnsuitableError."""
        with _named(directory), self._session.reading("find0", self.real_path(directory), "-") as stream:
            return _names(stream)

    def entries(self, directory: str, rpaths: Iterable[str], *, with_targets: bool = False) -> Iterator[Entry]:
        """Yield what is at these paths below a directory, by path, without those that are not there.

        It takes a command for each directory. Raises UnsuitableError.
        """
        by_parent: dict[str, list[str]] = {}
        for rpath in rpaths:
            parent, _, name = rpath.rpartition("/")
            by_parent.setdefault(f"{directory.rstrip('/')}/{parent}".rstrip("/") or "/", []).append(name)
        found = [
            one for parent, names in by_parent.items() for one in self._in(parent, names, with_targets=with_targets)
        ]
        yield from sorted(found, key=lambda one: os.fsencode(one.path))

    def _in(self, directory: str, all_names: Sequence[str], *, with_targets: bool) -> Iterator[Entry]:
        for names in _batches(all_names):
            with _named(directory):
                text = self._session.run("lstatnslist", directory, word_list(names))
            found = {
                name: _entry(f"{directory.rstrip('/')}/{name}", part)
                for name, part in zip(names, _STRUCT.split(text)[1:])
            }
            targets = {}
            if with_targets:
                targets = self._targets(directory, [name for name, each in found.items() if each.is_link])
            for name, each in found.items():
                if each.mode:
                    yield replace(each, target=targets.get(name))

    def _targets(self, directory: str, names: Sequence[str]) -> dict[str, str]:
        """Return the targets of symbolic links: a line for each, unless one has a line break in it."""
        if not names:
            return {}
        with _named(directory):
            lines = self._session.run("readlinklist", directory, word_list(names)).split("\n")[:-1]
            if len(lines) == len(names):
                return dict(zip(names, lines))
            paths = {name: f"{directory.rstrip('/')}/{name}" for name in names}
            return {name: self._session.run("readlink", path).removesuffix("\n") for name, path in paths.items()}

    @contextlib.contextmanager
    def content(self, path: str) -> Iterator[io.BufferedReader]:
        """Yield the content of a regular file, at the end of symbolic links. Raises UnsuitableError."""
        found = self.find(path, follow=True)
        if found.is_directory:
            raise UnsuitableError(f"{path} is a directory; 'vbackup ls' lists it, and 'vbackup cp' copies it.")
        if not found.is_regular:
            raise UnsuitableError(f"{path} is {kind(found.mode)}, which has no content in a backup.")
        with _named(path), self._session.reading("download", path, "-") as stream:
            yield stream

    @contextlib.contextmanager
    def archive(self, directory: str) -> Iterator[io.BufferedReader]:
        """Yield a tar archive of all that is below a directory, with ".", owners as numbers. Raises UnsuitableError."""
        real = self.real_path(directory)
        with _named(directory), self._session.reading("tar-out", real, "-", "numericowner:true") as stream:
            yield stream


def kind(mode: int) -> str:
    """Return what a file is that is neither a regular one nor a directory."""
    return {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFBLK: "a block device",
        stat.S_IFCHR: "a character device",
    }.get(stat.S_IFMT(mode), "no regular file")


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Translate libguestfs's refusal to read a path."""
    try:
        yield
    except ApplianceRefusedError as err:
        if err.is_not_found:
            raise UnsuitableError(f"There is no {path} in the guest; 'vbackup ls' lists a directory.") from err
        raise UnsuitableError(f"{path} of the guest cannot be read: {err.reason}.") from err


def _entry(path: str, text: str) -> Entry:
    """Return the entry of what guestfish prints of a file; mode 0: there is no such file."""
    fields = {name: int(number) for name, number in _FIELD.findall(text)}
    return Entry(
        path,
        fields.get("mode", 0),
        fields.get("uid", 0),
        fields.get("gid", 0),
        fields.get("nlink", 0),
        fields.get("size", 0),
        fields.get("mtime_sec", 0) * 10**9 + fields.get("mtime_nsec", 0),
        fields.get("rdev", 0),
    )


def _names(stream: io.BufferedReader) -> list[str]:
    return [os.fsdecode(name) for name in stream.read().split(b"\0") if name]


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield the names in lists that each fit into a command."""
    batch: list[str] = []
    room = _LIST_BYTES
    for name in names:
        needed = len(appliance.command_line(["x", word_list([name])]))
        if batch and needed > room:
            yield batch
            batch, room = [], _LIST_BYTES
        batch.append(name)
        room -= needed
    if batch:
        yield batch
