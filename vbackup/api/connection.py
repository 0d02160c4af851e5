"""What ``vbackup.api.connect`` returns: one flat class for its callers, one module a subject for its readers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vbackup.api.attached import Attached
from vbackup.api.backups import Backups
from vbackup.api.contents import Contents
from vbackup.api.copies import Copies
from vbackup.api.records import Records
from vbackup.api.restores import Restores
from vbackup.api.sessions import Sessions
from vbackup.api.standbys import Standbys
from vbackup.api.streams import Streams
from vbackup.api.upkeep import Upkeep
from vbackup.report import Reporter
from vbackup.stop import Stop

if TYPE_CHECKING:
    from vbackup.repository.repository import Repository


class Connection(Backups, Restores, Records, Upkeep, Contents, Copies, Attached, Sessions, Streams, Standbys):
    """A host and a repository. A context manager that closes the connections to libvirt; see ``connect``.

    Its calls take a frozen request and return a frozen answer; they block until the work is done, and may be made from
    several threads at once. Each takes a ``reporter`` and a ``stop`` in place of those of the connection.
    """

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def connect(
    uri: str | None = None,
    *,
    repository: str | os.PathLike[str] | Repository | None = None,
    reporter: Reporter | None = None,
    stop: Stop | None = None,
) -> Connection:
    """Return a connection to a libvirt host and a repository, each of which not all calls need.

    ``uri``: of libvirt, such as "qemu:///system"; None: LIBVIRT_DEFAULT_URI, or what libvirt finds. libvirt is reached
    when a call first needs it: restoring and listing do without. ``repository``: its directory, which is opened now;
    ``create_repository`` makes one. ``reporter``: receives steps, warnings and progress of all calls that have no other
    (default: nobody does). ``stop``: ends all calls that have no other, when it is requested.

    Raises StorageError if there is no repository at that path, or it cannot be read. Nothing is printed, no handler of
    a signal is set, and the process goes on whatever happens. The first call that needs libvirt starts a thread that
    runs libvirt's event loop; a program that uses libvirt itself need not run another.
    """
    connection = Connection(uri, repository=repository, reporter=reporter, stop=stop)
    if connection.has_repository:
        _ = connection.repository
    return connection


def create_repository(path: str | os.PathLike[str], *, reporter: Reporter | None = None) -> Repository:
    """Create a repository in a directory that is empty or does not exist, and return it.

    A warning says if its filesystem does not lock files. Raises StorageError; nothing was changed then.
    """
    from pathlib import Path

    from vbackup.repository.repository import Repository

    made = Repository.create(Path(path))
    if reporter is not None and not made.locks():
        reporter.warning(
            f"The filesystem of {made.path} does not lock files (flock): two backups of one domain at the same time can"
            " go unnoticed until one of them fails. Another filesystem, or mounting this one with locks, is safer."
        )
    return made


def is_encrypted(path: str | os.PathLike[str]) -> bool | None:
    """Return whether the filesystem of a directory, or a device below it, encrypts; None if that is not known.

    A drive that encrypts by itself, and what is behind a network filesystem, is not seen.
    """
    from pathlib import Path

    from vbackup.repository import place

    return place.is_encrypted(Path(path).resolve())
