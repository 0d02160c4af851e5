"""A chosen backup with the chain of each disk, kept as it is while somebody reads it: a restore, a mount, a boot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbackup.model import Backup
from vbackup.report import Reporter
from vbackup.repository import choice, readers, standbys, verification, verify
from vbackup.repository.choice import Choice, Wanted
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verdict
from vbackup.stop import Stop


@dataclass(frozen=True)
class Chosen:
    """What is read of a repository for one point in time."""

    choice: Choice
    chains: Mapping[str, Sequence[Link]]  #: of each disk (dev), the newest image first

    @property
    def backup(self) -> Backup:
        """The backup that gives everything but the disks, and most often them too."""
        return self.choice.backup

    @property
    def needed(self) -> frozenset[str]:
        """Ids of all backups that it depends on."""
        return frozenset({self.backup.id, *(link.backup.id for links in self.chains.values() for link in links)})

    def paths(self, repository: Repository, dev: str) -> list[tuple[Link, Path]]:
        """Return the chain of a disk with the path of each image, the newest first."""
        return [(link, verify.image_path(repository, link)) for link in self.chains[dev]]

    def doubts(self, repository: Repository) -> list[str]:
        """Return sentences on what the backup is not, for whoever looks into it without comparing it with its lists."""
        backup, choice = self.backup, self.choice
        found = []
        if choice.missing:
            without = ", ".join(choice.missing)
            found.append(f"Backup {backup.id} was made without {without}: it is not the whole domain.")
        found += choice.remarks
        for one in {one.id: one for one in choice.disks.values()}.values():
            known = verification.read(repository.directory(one.domain_uuid, one.id))
            if known is not None and known.verdict is Verdict.DAMAGED:
                found.append(
                    f"A verify has found damage in backup {one.id}, and what is damaged is read as it is:"
                    f" 'vbackup show {one.domain_uuid} {one.id}' names it."
                )
        return found


@contextmanager
def held(repository: Repository, uuid: str, wanted: Wanted, *, stop: Stop) -> Iterator[Chosen]:
    """Choose a backup of a domain; nobody removes or changes what it depends on during the block.

    Raises what vbackup.repository.choice.choose and vbackup.repository.readers.unchanged raise.
    """
    with readers.unchanged(
        lambda: _choose(repository, uuid, wanted),
        lambda chosen: [repository.directory(uuid, backup_id) for backup_id in chosen.needed],
        stop=stop,
    ) as chosen:
        yield chosen


@contextmanager
def shown(repository: Repository, uuid: str, wanted: Wanted, *, reporter: Reporter, stop: Stop) -> Iterator[Chosen]:
    """Hold a backup that somebody is about to look into as it is: with the headers checked, and doubts as warnings.

    Raises what ``held`` raises, and ChainError if the header of an image is not as it was.
    """
    with held(repository, uuid, wanted, stop=stop) as found:
        verify.check_headers(found.chains, repository, stop=stop)
        for doubt in found.doubts(repository):
            reporter.warning(doubt)
        yield found


def _choose(repository: Repository, uuid: str, wanted: Wanted) -> Chosen:
    catalogue = repository.catalogue(uuid)
    found = choice.choose(catalogue, wanted, failed_back=standbys.failed_back(repository.path / uuid))
    return Chosen(found, {dev: catalogue.history.links(one.id, dev) for dev, one in found.disks.items()})
