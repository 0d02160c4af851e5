"""Collect the damage that a verify finds, and tell which backups of the domain it affects and which not.

A backup that depends on a damaged image but holds the damaged blocks itself, or depends on an image in between that
does, is restored as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.model import Backup
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.repository import affected, block_list, history, image_check, verify
from vbackup.repository.block_list import BlockList, mask_of
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.history import Link
from vbackup.repository.image_check import Finding
from vbackup.repository.repository import Repository
from vbackup.repository.verification import MAX_DAMAGE, Damage, Kind

#: How many ids or ranges a sentence has at most.
_MAX_NAMED = 6


@dataclass(frozen=True)
class Found:
    """Damage of a file, and the backups that it affects."""

    backup_id: str  #: whose file it is
    dev: str | None  #: None: a file that is of no disk
    path: Path
    kind: Kind
    reason: str  #: a sentence
    ranges: tuple[tuple[int, int], ...]  #: start and length in bytes of the parts of the disk; at most MAX_DAMAGE
    affected: tuple[str, ...]  #: ids of the backups that cannot be restored as they were
    unaffected: tuple[str, ...]  #: ids of the other backups of the disk
    damage: Mapping[str, Sequence[Damage]] = field(repr=False, default_factory=dict)  #: by id of the affected backup

    @property
    def sentence(self) -> str:
        """All of it, for people."""
        parts = [self.reason]
        if self.kind is Kind.CONTENT:
            shown = [f"{start} to {start + length - 1}" for start, length in self.ranges[:_MAX_NAMED]]
            parts.append(f"Damaged bytes of the disk: {_listed(shown, len(self.ranges))}.")
        parts.append(f"Affected: {_listed(self.affected[:_MAX_NAMED], len(self.affected))}.")
        if self.unaffected:
            parts.append(f"Not affected: {_listed(self.unaffected[-_MAX_NAMED:], len(self.unaffected))}.")
        return " ".join(parts)


def _listed(some: Sequence[str], total: int) -> str:
    return ", ".join(some) + (f" and {total - len(some)} more" if total > len(some) else "")


class Findings:
    """What was found in the backups of a domain."""

    def __init__(self, repository: Repository, catalogue: Catalogue) -> None:
        self.found: list[Found] = []
        self._repository, self._history = repository, catalogue.history
        self._counts: Counter[str] = Counter()
        self._heirs: dict[str, dict[str, list[str]]] = {}
        self._held: dict[tuple[str, str], Callable[[int], int]] = {}
        self._open = ExitStack()

    def close(self) -> None:
        """Close the lists that were looked at."""
        self._open.close()

    def add(self, link: Link, finding: Finding) -> Found:
        """Add damage of an image."""
        dev, backup_id, size_bytes = link.image.dev, link.backup.id, link.image.virtual_size_bytes
        heirs = self._heirs.setdefault(dev, affected.heirs(self._history, dev))
        file = f"{backup_id}/{link.image.file}"
        damage: dict[str, Sequence[Damage]]
        ranges: list[tuple[int, int]] = []
        if finding.blocks:
            shown = affected.affected(
                backup_id, finding.blocks, heirs, held=lambda one, number: self._held_of(one, dev)(number)
            )
            ranges = _ranges(finding.blocks, size_bytes)
            shared: dict[tuple[int, int], Damage] = {}
            damage = {}
            for one, blocks in shown.items():
                parts = _ranges(blocks, size_bytes)[: self._left(one)]
                for part in parts:
                    if part not in shared:
                        shared[part] = Damage(dev, file, *part, kind=finding.kind.value)
                damage[one] = tuple(shared[part] for part in parts)
        else:
            whole = (Damage(dev, file, 0, size_bytes, finding.kind.value),)
            damage = {one: whole[: self._left(one)] for one in affected.dependents(backup_id, heirs)}
        return self._add(link.backup, link.image.file, finding, dev=dev, ranges=ranges, damage=damage)

    def add_file(self, backup: Backup, name: str, reason: str) -> Found:
        """Add damage of a file that is no image."""
        damage = {backup.id: [Damage(None, f"{backup.id}/{name}", 0, 0, Kind.FILE.value)]}
        return self._add(backup, name, Finding(Kind.FILE, reason), dev=None, ranges=(), damage=damage)

    def of(self, backup_id: str) -> list[Damage]:
        """Return the damage that affects a backup; at most MAX_DAMAGE ranges, and those of its further files."""
        return [damage for found in self.found for damage in found.damage.get(backup_id, ())]

    @property
    def affected(self) -> set[str]:
        """Ids of all backups that are affected by something."""
        return {backup_id for found in self.found for backup_id in found.affected}

    def _add(
        self,
        backup: Backup,
        name: str,
        finding: Finding,
        *,
        dev: str | None,
        ranges: Sequence[tuple[int, int]],
        damage: Mapping[str, Sequence[Damage]],
    ) -> Found:
        of_disk = [one.id for one in self._history.backups if dev is None or one.image(dev) is not None]
        found = Found(
            backup.id,
            dev,
            self._repository.directory(backup.domain_uuid, backup.id) / name,
            finding.kind,
            finding.reason,
            tuple(ranges),
            affected=tuple(one for one in of_disk if one in damage),
            unaffected=tuple(one for one in of_disk if one not in damage),
            damage=damage,
        )
        self.found.append(found)
        self._counts.update({one: len(parts) for one, parts in damage.items()})
        return found

    def _left(self, backup_id: str) -> int:
        """Return how many more ranges of a backup are remembered: no more than are kept with it."""
        return max(0, MAX_DAMAGE - self._counts[backup_id])

    def _held_of(self, backup_id: str, dev: str) -> Callable[[int], int]:
        """Return a function that returns the mask of the blocks of a segment which the image holds.

        What cannot be read counts as not held: that is found on its own if the image is verified.
        """
        key = (backup_id, dev)
        if key not in self._held:
            backup = self._history.get(backup_id)
            link = Link(backup, history.image_of(backup, dev))
            try:
                self._held[key] = _unless_damaged(self._opened(verify.image_path(self._repository, link), link))
            except ChainError:
                self._held[key] = lambda _number: 0
        return self._held[key]

    def _opened(self, path: Path, link: Link) -> Callable[[int], int]:
        if link.image.blocks is not None:
            listed = self._open.enter_context(BlockList.open(path.with_suffix(block_list.SUFFIX)))
            return lambda number: listed.masks(number)[0]
        layer = self._open.enter_context(Qcow2Layer(path))

        def held(number: int) -> int:
            mask = 0
            for extent in layer.extents(number):
                mask |= mask_of(extent.start, extent.start + extent.clusters)
            return mask

        return held


def _unless_damaged(held: Callable[[int], int]) -> Callable[[int], int]:
    def known(number: int) -> int:
        try:
            return held(number)
        except ChainError:
            return 0

    return known


def _ranges(blocks: Mapping[int, int], size_bytes: int) -> list[tuple[int, int]]:
    parts = image_check.ranges(blocks, virtual_size_bytes=size_bytes)
    return [part for part, _ in zip(parts, range(MAX_DAMAGE))]
