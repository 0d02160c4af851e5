"""List a directory of a guest in a backup, or the file systems that there are: ``vbackup ls``."""

from __future__ import annotations

from dataclasses import dataclass

from vbackup.images.guest import FileSystem, Keys
from vbackup.images.guest_address import Address
from vbackup.images.guest_files import Entry
from vbackup.model import Backup
from vbackup.operations import inside
from vbackup.operations.inside import Inside
from vbackup.report import Reporter
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class LsRequest:
    """The options of ``vbackup ls``."""

    domain: str  #: name or UUID
    wanted: Wanted
    address: Address | None  #: None: the file systems
    is_recursive: bool = False


@dataclass(frozen=True)
class Listing:
    """What is at an address, or in it."""

    backup: Backup
    entries: tuple[Entry, ...] = ()  #: with full paths
    file_systems: tuple[tuple[FileSystem, int], ...] = ()  #: with sizes in bytes; if no address was given


def run(request: LsRequest, *, keys: Keys, repository: Repository, reporter: Reporter, stop: Stop) -> Listing:
    """Return the listing. Raises what vbackup.operations.inside.opened raises, UnsuitableError for an unknown path."""
    where = None if request.address is None else request.address.where
    with inside.opened(
        request.domain,
        request.wanted,
        where=where,
        keys=keys,
        repository=repository,
        reporter=reporter,
        stop=stop,
    ) as there:
        if request.address is None:
            found = [(each, there.guest.size_bytes(each)) for each in there.guest.file_systems()]
            return Listing(there.backup, file_systems=tuple(found))
        there.guest.mount(where)
        return Listing(there.backup, _entries(there, request.address.path, is_recursive=request.is_recursive))


def _entries(there: Inside, path: str, *, is_recursive: bool) -> tuple[Entry, ...]:
    """Return a file, or what is in a directory. A link to a directory is one with a slash at the end of its path."""
    found = there.files.find(path, follow=path.endswith("/"))
    if not found.is_directory:
        return (found,)
    names = there.files.below(path) if is_recursive else there.files.names(path)
    return tuple(there.files.entries(path, names, with_targets=True))
