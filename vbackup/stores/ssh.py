"""A directory on another host as a store, over one connection of the user's own ssh and the host's SFTP server.

It is laid out as vbackup.stores.directory is, so a directory can be used in both ways. The other host needs no vbackup
and no Python; an account that is limited to SFTP will do (ForceCommand internal-sftp, also with ChrootDirectory).
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import unquote, urlsplit

from vbackup.errors import NoSpaceError, StorageError, StoreUnreachableError, UsageError
from vbackup.stores.sftp import Attributes, Fault, Sftp, SftpError
from vbackup.stores.store import (
    MAX_DEPTH,
    PIECE_BYTES,
    Deletion,
    Seen,
    Source,
    StoredObject,
    refuse_key,
    refuse_prefix,
    refuse_replaced,
    wrong_size,
)

_INCOMING = ".incoming"
#: A file in .incoming that has not been written to for so long belongs to a process that is gone.
_ABANDONED_S = 24 * 3600
#: With less room than this, a write that failed without a reason failed for want of room.
_FULL_BYTES = 4 * 1024 * 1024
#: Pause between two attempts to connect again.
_PAUSE_S = 5.0
#: A host that is silent for 45 s is gone, and none is waited for longer than 20 s.
_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=20",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
)
_USER_OR_HOST = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")


@dataclass(frozen=True)
class Place:
    """Where the directory is. ``port``: None leaves it to ssh_config."""

    host: str
    user: str | None
    port: int | None
    path: str  #: absolute, or relative to the directory in which the server begins

    def argv(self) -> list[str]:
        """Return the command that connects to the SFTP server there."""
        port = ["-p", str(self.port)] if self.port is not None else []
        user = ["-l", self.user] if self.user is not None else []
        options = [argument for option in _OPTIONS for argument in ("-o", option)]
        return ["ssh", "-T", "-a", "-x", *options, *port, *user, "-s", "--", self.host, "sftp"]


def place(url: str) -> Place:
    """Return what an URL ssh://[user@]host[:port]/path means; /~/path begins in the user's home. Raises UsageError."""
    try:
        parts = urlsplit(url)
        if parts.password is not None:  # nothing of the address is shown then
            raise UsageError("An address must have no password, which every user of this host could read: use a key.")
        port = parts.port
    except ValueError as err:
        raise UsageError(f"{url!r} is not an address: {err}.") from None
    host, user = parts.hostname or "", parts.username
    path = unquote(parts.path).rstrip("/")
    if not _USER_OR_HOST.fullmatch(host) or (user is not None and not _USER_OR_HOST.fullmatch(unquote(user))):
        raise UsageError(f"{url!r} is not an address: it should be like ssh://backup@host.example.org/srv/copies.")
    if not path or "\0" in path or parts.query or parts.fragment:
        raise UsageError(f"{url!r} names no directory: it should be like ssh://host/srv/copies.")
    # urlsplit makes names of hosts small, as ssh does; those in ssh_config are compared as they were typed.
    at = parts.netloc.rpartition("@")[2]
    typed = at[: len(host)] if at.lower().startswith(host) else host
    home = path[3:] if path.startswith("/~/") else "." if path == "/~" else path
    return Place(typed, unquote(user) if user is not None else None, port, home)


class SshStore:
    """A directory on another host, which exists.

    A read that finds the connection lost connects again, once; what writes fails, and is run again as a whole.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = False,
        is_dry_run: bool = False,
        command: Callable[[Place], list[str]] = Place.argv,
    ) -> None:
        """Connect. ``command``: what connects to the server.

        ``create``: make the directory if it does not exist, but not those above it. ``is_dry_run``: do not make it; it
        counts as empty.

        Raises StoreUnreachableError with ssh's words, StorageError if there is no such directory, UsageError.
        """
        self._place = place(url)
        self._name = url.rstrip("/")
        self._argv = command(self._place)
        self._sftp = Sftp(self._argv, self._place.host)
        self._connecting = threading.Lock()  #: to connect again
        self._next_s = 0.0  #: when that may be tried, by the clock that never goes back
        self._changing = threading.Lock()  #: ``_sftp`` and ``_is_closed``
        self._is_closed = False
        self._is_tidy = False
        self._is_there = True
        try:
            with self._errors("open the directory"):
                path = self._place.path
                self._root = path if path.startswith("/") else f"{self._sftp.real_path('.')}/{path}"
                found = self._sftp.status(self._root)
                if found is None and create:
                    self._refuse_no_parent()
                    if is_dry_run:
                        self._is_there = False
                        return
                    self._make_directory(self._root)
                    found = self._sftp.status(self._root)
            if found is None or not _is(found, stat.S_IFDIR):
                raise StorageError(f"There is no directory {self._place.path} on {self._place.host}: make it first.")
        except BaseException:
            self._sftp.close()
            raise

    @property
    def name(self) -> str:
        """As Store."""
        return self._name

    def put_new(self, key: str, source: Source, size_bytes: int) -> bool:
        """As Store."""
        path = self._path_of(key)
        with self._errors(f"write {key}"):
            if self._sftp.status(path) is not None:
                return False
            incoming = f"{self._root}/{_INCOMING}"
            self._make_directory(incoming)
            self._tidy(incoming)
            temporary = f"{incoming}/{uuid.uuid4().hex}"
            try:
                self._sftp.write_new(temporary, _pieces(source, key, size_bytes))
                return self._give_name(temporary, path)
            finally:
                with suppress(SftpError, StorageError):
                    self._sftp.remove(temporary)

    def get(self, key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None) -> Iterator[bytes]:
        """As Store."""
        path = self._path_of(key)
        done_bytes = 0

        def check(found: Attributes) -> None:
            nonlocal mark
            refuse_replaced(self._name, key, mark, _mark(found))
            mark = _mark(found)

        with self._errors(f"read {key}"):
            for has_failed in (False, True):
                sftp = self._sftp
                try:
                    left_bytes = None if length is None else length - done_bytes
                    for piece in sftp.read(path, offset + done_bytes, left_bytes, check=check):
                        done_bytes += len(piece)
                        yield piece
                    return
                except StoreUnreachableError as err:
                    if has_failed:
                        raise
                    self._connect_again(sftp, err)
                except SftpError as err:
                    if err.fault == Fault.MISSING:
                        raise FileNotFoundError(
                            errno.ENOENT, os.strerror(errno.ENOENT), f"{self._name}/{key}"
                        ) from None
                    raise

    def size(self, key: str) -> int | None:
        """As Store."""
        found = self.look(key)
        return None if found is None else found.size_bytes

    def look(self, key: str) -> Seen | None:
        """As Store."""
        path = self._path_of(key)
        with self._errors(f"look for {key}"):
            sftp = self._sftp
            try:
                found = sftp.status(path)
            except StoreUnreachableError as err:
                self._connect_again(sftp, err)
                found = self._sftp.status(path)
        if found is None or found.size_bytes is None or not _is(found, stat.S_IFREG):
            return None
        return Seen(found.size_bytes, _mark(found))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As Store."""
        refuse_prefix(prefix)
        if not self._is_there:
            return
        with self._errors("list what is there"):
            found = list(self._walk(f"{self._root}/{prefix}".rstrip("/"), prefix))
        yield from sorted(found, key=lambda each: each.key)

    def delete(self, key: str) -> Deletion:
        """As Store. Directories that become empty are removed."""
        path = self._path_of(key)
        with self._errors(f"remove {key}"):
            try:
                self._sftp.remove(path)
            except SftpError as err:
                if err.fault == Fault.MISSING:
                    return Deletion.ABSENT
                if err.fault == Fault.DENIED:
                    return Deletion.KEPT
                raise
        parent = posixpath.dirname(path)
        with suppress(SftpError):
            while parent != self._root:
                self._sftp.remove_directory(parent)
                parent = posixpath.dirname(parent)
        return Deletion.DELETED

    def lock_days(self) -> int | None:
        """As Store: a directory keeps nothing that its owner removes."""
        return None

    def close(self) -> None:
        """As Store."""
        with self._changing:
            self._is_closed = True
            sftp = self._sftp
        sftp.close()

    def _connect_again(self, lost: Sftp, error: StoreUnreachableError) -> None:
        """Replace a connection that was lost, unless another thread has.

        Raises ``error`` if that was tried a moment ago, or the store is closed; StoreUnreachableError.
        """
        with self._connecting:
            if self._sftp is not lost:
                return
            if self._is_closed or time.monotonic() < self._next_s:
                raise error
            try:
                made = Sftp(self._argv, self._place.host)
            finally:
                self._next_s = time.monotonic() + _PAUSE_S
            with self._changing:
                if not self._is_closed:
                    self._sftp, made = made, lost
            made.close()
        if self._sftp is lost:
            raise error

    def _path_of(self, key: str) -> str:
        refuse_key(key)
        return f"{self._root}/{key}"

    def _give_name(self, temporary: str, path: str) -> bool:
        """Give a file its name unless that is taken; return True if it has it now."""
        give = self._sftp.link if self._sftp.can_link else self._sftp.rename
        parent = posixpath.dirname(path)
        self._make_directory(parent)
        try:
            give(temporary, path)
        except SftpError as err:
            if self._sftp.status(path) is not None:
                return False
            if err.fault == Fault.MISSING:  # a delete has just removed the directory, which had become empty
                self._make_directory(parent)
            elif give == self._sftp.rename:
                raise
            self._sftp.rename(temporary, path)  # also on a filesystem without hard links
        self._sftp.fsync(parent)
        return True

    def _refuse_no_parent(self) -> None:
        parent = posixpath.dirname(self._root.rstrip("/"))
        if self._sftp.status(parent) is None:
            raise StorageError(
                f"There is no directory {parent} on {self._place.host} in which"
                f" {posixpath.basename(self._root.rstrip('/'))} could be made; is the disk mounted? If it should be"
                " there, make it first."
            )

    def _make_directory(self, path: str) -> None:
        """Make a directory and those above it, and put their names on the disk."""
        found = self._sftp.status(path)
        if found is not None:
            if not _is(found, stat.S_IFDIR):
                raise StorageError(f"{path} on {self._place.host} is not a directory.")
            return
        self._make_directory(posixpath.dirname(path))
        try:
            self._sftp.make_directory(path)
        except SftpError:
            if self._sftp.status(path) is None:  # else another copy was faster
                raise
        self._sftp.fsync(posixpath.dirname(path))

    def _tidy(self, incoming: str) -> None:
        """Once a connection, remove what processes have left that were killed long ago."""
        if self._is_tidy:
            return
        self._is_tidy = True
        with suppress(SftpError):
            for name, attributes in list(self._sftp.names(incoming)):
                if attributes.modified is not None and attributes.modified < time.time() - _ABANDONED_S:
                    self._sftp.remove(f"{incoming}/{name}")

    def _walk(self, path: str, prefix: str) -> Iterator[StoredObject]:
        if prefix.count("/") > MAX_DEPTH:
            return
        try:
            found = list(self._sftp.names(path))
        except SftpError as err:
            # Removed meanwhile; a server can also say so little of what is no directory.
            if err.fault in (Fault.MISSING, Fault.FAILURE) and path != self._root:
                return
            raise
        for name, attributes in found:
            if name.startswith("."):
                continue
            if _is(attributes, stat.S_IFDIR):
                yield from self._walk(f"{path}/{name}", f"{prefix}{name}/")
            elif _is(attributes, stat.S_IFREG):
                modified = datetime.fromtimestamp(attributes.modified or 0, tz=timezone.utc)
                yield StoredObject(prefix + name, attributes.size_bytes or 0, modified)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except SftpError as err:
            with suppress(SftpError):
                room_bytes = self._sftp.room_bytes(self._root) if err.fault == Fault.FAILURE else None
                if room_bytes is not None and room_bytes < _FULL_BYTES:
                    raise NoSpaceError(f"Cannot {what} in {self._name}: its filesystem is full.") from err
            raise StorageError(f"Cannot {what} in {self._name}: the SFTP server says {str(err).rstrip('.')}.") from err


def _mark(attributes: Attributes) -> str:
    return f"{attributes.size_bytes} {attributes.modified}"


def _is(attributes: Attributes, kind: int) -> bool:
    return attributes.mode is not None and stat.S_IFMT(attributes.mode) == kind


def _pieces(source: Source, key: str, size_bytes: int) -> Iterator[bytes]:
    done_bytes = 0
    while piece := source.read(PIECE_BYTES):
        done_bytes += len(piece)
        if done_bytes > size_bytes:
            break
        yield piece
    if done_bytes != size_bytes:
        raise wrong_size(key, size_bytes, done_bytes)
