"""What is known of a backup besides its manifest: the last verify, protection, note, and how much its chain takes.

The last boot test, too. It is for people who look at a repository. No backup needs any of it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vbackup.model import Backup
from vbackup.repository import boot_result, fsck_result, notes, protection, verification
from vbackup.repository.boot_result import BootResult
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.fsck_result import FsckResult
from vbackup.repository.protection import Protection
from vbackup.repository.verification import Verdict, Verification


class State(Enum):
    """What a backup can be; several at once."""

    GOOD = "good"  #: verified as a whole, without damage
    PARTIAL = "partial"  #: verified in part, without damage
    DAMAGED = "damaged"  #: a verify has found damage
    UNVERIFIED = "unverified"  #: never verified
    BROKEN = "broken"  #: its manifest or an image that it needs is missing or unusable
    PROTECTED = "protected"
    UNFINISHED = "unfinished"  #: interrupted, and not a backup yet
    RUNNING = "running"  #: being made


@dataclass(frozen=True)
class ChainSize:
    """The images that the image of a disk depends on, and that image."""

    images: int
    size_bytes: int


@dataclass(frozen=True)
class Condition:
    """What is known of a backup."""

    verification: Verification | None
    protection: Protection | None
    note: str | None
    is_broken: bool
    chains: Mapping[str, ChainSize]  #: by dev; without those of which an image is missing
    boot: BootResult | None = None  #: of the last boot test
    fsck: FsckResult | None = None  #: of the last check of its file systems

    @property
    def state(self) -> State:
        """The state in which it is as a backup: the worst that is known."""
        if self.is_broken:
            return State.BROKEN
        if self.verification is None:
            return State.UNVERIFIED
        return _STATES[self.verification.verdict]

    @property
    def states(self) -> list[State]:
        """All states in which it is."""
        return [self.state, *([State.PROTECTED] if self.protection is not None else [])]

    @property
    def chain_images(self) -> int:
        """Length of its longest chain."""
        return max((chain.images for chain in self.chains.values()), default=0)

    @property
    def chain_size_bytes(self) -> int:
        """Total size of the image files that a restore of it reads."""
        return sum(chain.size_bytes for chain in self.chains.values())


_STATES = {Verdict.GOOD: State.GOOD, Verdict.PARTIAL: State.PARTIAL, Verdict.DAMAGED: State.DAMAGED}


def read(catalogue: Catalogue, directory: Path, backups: Sequence[Backup] | None = None) -> dict[str, Condition]:
    """Return the condition of backups of the catalogue's history, by default of all, by id.

    ``directory`` is the domain's.
    """
    broken = {one.id for one in catalogue.broken}
    chains = chain_sizes(catalogue.history.backups)
    return {
        backup.id: _condition(
            f"{directory}/{backup.id}",
            is_broken=backup.id in broken,
            chains={
                image.dev: chains[backup.id, image.dev] for image in backup.disks if (backup.id, image.dev) in chains
            },
        )
        for backup in (catalogue.history.backups if backups is None else backups)
    }


def chain_sizes(backups: Sequence[Backup]) -> dict[tuple[str, str], ChainSize]:
    """Return the size of the chain of each image, by id and dev, without those of which an image is missing.

    ``backups`` in the order of their commits, so that a base comes before what depends on it.
    """
    sizes: dict[tuple[str, str], ChainSize] = {}
    for backup in backups:
        for image in backup.disks:
            base = ChainSize(0, 0) if image.base is None else sizes.get((image.base, image.dev))
            if base is not None:
                sizes[backup.id, image.dev] = ChainSize(base.images + 1, base.size_bytes + image.file_size_bytes)
    return sizes


def _condition(directory: str, *, is_broken: bool, chains: Mapping[str, ChainSize]) -> Condition:
    there: Collection[str]
    try:
        there = os.listdir(directory)  # noqa: PTH208 - one quick call in place of three for what few backups have
    except OSError:
        there = ()
    return Condition(
        verification=verification.read(Path(directory)) if verification.NAME in there else None,
        protection=protection.read(Path(directory)) if protection.PROTECTED in there else None,
        note=notes.read(Path(directory)) if notes.NOTE in there else None,
        boot=boot_result.read(Path(directory)) if boot_result.NAME in there else None,
        fsck=fsck_result.read(Path(directory)) if fsck_result.NAME in there else None,
        is_broken=is_broken,
        chains=chains,
    )
