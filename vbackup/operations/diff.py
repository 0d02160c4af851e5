"""Find what has changed between two backups of a domain, from their block lists: ``vbackup diff``.

Reads no image and asks no libvirt. vbackup.repository.comparison compares the lists of one disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import ChainError, DiskError, UsageError, domain_argument
from vbackup.model import Backup
from vbackup.repository import readers, verify
from vbackup.repository.block_list import BlockList
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.comparison import Comparison
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class DiffRequest:
    """What is compared."""

    domain: str  #: UUID
    before: str  #: id of a backup
    after: str | None = None  #: None: the newest
    disks: tuple[str, ...] = ()  #: only these; empty: all


@dataclass(frozen=True)
class Disk:
    """A disk of one of the two backups, or of both: its chain in each, None where it is not there."""

    dev: str
    before: tuple[Link, ...] | None
    after: tuple[Link, ...] | None

    @property
    def size_bytes(self) -> tuple[int | None, int | None]:
        """Its size in both backups, None where it is not there."""
        before, after = (None if links is None else links[0].image for links in (self.before, self.after))
        return (
            None if before is None else before.virtual_size_bytes,
            None if after is None else after.virtual_size_bytes,
        )


@dataclass(frozen=True)
class Difference:
    """Two backups of a domain, and the disks to compare."""

    repository: Repository
    before: Backup
    after: Backup
    disks: tuple[Disk, ...]

    def directories(self) -> set[Path]:
        """Return the directories of all backups that the disks depend on."""
        chains = (links for disk in self.disks for links in (disk.before, disk.after) if links is not None)
        return {
            self.repository.directory(link.backup.domain_uuid, link.backup.id) for links in chains for link in links
        }

    @contextmanager
    def comparison(self, disk: Disk) -> Iterator[Comparison]:
        """Open the lists of a disk that both backups have.

        Raises ChainError if one is missing, damaged, or was never made.
        """
        assert disk.before is not None
        assert disk.after is not None
        with ExitStack() as stack:
            opened: dict[str, BlockList] = {}
            for link in (*disk.before, *disk.after):
                if link.backup.id not in opened:
                    opened[link.backup.id] = stack.enter_context(_open(self.repository, link))
            yield Comparison(*([opened[link.backup.id] for link in links] for links in (disk.before, disk.after)))


@contextmanager
def run(request: DiffRequest, *, repository: Repository, stop: Stop) -> Iterator[Difference]:
    """Yield the two backups, and the disks that one of them has. They stay as they are during the block.

    Raises ChainError if a backup is unknown or its chain is incomplete, DiskError for a disk that neither has,
    UsageError if the newest backup is to be compared with the newest, BusyError if a merge takes too long.
    """
    with readers.unchanged(lambda: _find(request, repository), Difference.directories, stop=stop) as difference:
        yield difference


def _find(request: DiffRequest, repository: Repository) -> Difference:
    catalogue = repository.catalogue(request.domain)
    before = catalogue.find(request.before)
    after = catalogue.find(request.after)
    if request.after is None and before.id == after.id:
        raise UsageError(f"{before.id} is the newest backup, so nothing has changed since.{_one_before(catalogue)}")
    devs = list(dict.fromkeys(image.dev for backup in (after, before) for image in backup.disks))
    for dev in request.disks:
        if dev not in devs:
            raise DiskError(dev, f"neither {before.id} nor {after.id} has such a disk; they have {', '.join(devs)}")
    wanted = dict.fromkeys(request.disks) or devs
    disks = (Disk(dev, *(_links(catalogue, backup, dev) for backup in (before, after))) for dev in wanted)
    return Difference(repository, before, after, tuple(disks))


def _links(catalogue: Catalogue, backup: Backup, dev: str) -> tuple[Link, ...] | None:
    return None if backup.image(dev) is None else catalogue.history.links(backup.id, dev)


def _one_before(catalogue: Catalogue) -> str:
    backups: Sequence[Backup] = catalogue.history.backups[-2:]
    return f" What is in it, but not in the one before it: give {backups[0].id} {backups[1].id}." if backups[1:] else ""


def _open(repository: Repository, link: Link) -> BlockList:
    if link.image.blocks is None:
        raise ChainError(
            f"Disk {link.image.dev}: backup {link.backup.id} has no block list, as it was made by an older vbackup;"
            f" 'vbackup verify {domain_argument(link.backup.domain_name)} --backup {link.backup.id}' makes one."
        )
    return verify.opened_list(verify.image_path(repository, link), link)
