"""Verify points at a target: read every object, and compare it with the digest that its manifest has of it.

What was sent had been compared with the block lists before the manifest was stored. So a point whose objects are as
they were sent can be restored as it was, and nothing of it has to be understood, nor kept on this machine.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vbackup.copies import point as points
from vbackup.copies.download import PARALLEL_OBJECTS, Wanted, Work
from vbackup.copies.view import View
from vbackup.errors import ChainError, IdentityError


@dataclass(frozen=True)
class CopyVerifyRequest:
    """The options of ``vbackup verify --from`` for one domain."""

    uuid: str
    backup_id: str | None = None  #: only this point
    parallel: int = PARALLEL_OBJECTS  #: objects that are read at a time
    bytes_s: int | None = None  #: limit of all together
    sample_percent: float | None = None  #: read random objects until this part of the bytes is read; None: all


@dataclass(frozen=True)
class CopiesVerified:
    """What was read, and what is damaged."""

    uuid: str
    domain_name: str
    points: tuple[str, ...]  #: ids of those that were read
    objects: int
    read_bytes: int
    damage: Mapping[str, Sequence[str]]  #: sentences, by the id of the point; also what its chain needs of others

    @property
    def damaged(self) -> tuple[str, ...]:
        """The points that cannot be restored as they were."""
        return tuple(self.damage)


def run(request: CopyVerifyRequest, view: View) -> CopiesVerified:
    """Read the points. Damage is no error, but in the answer.

    Raises ChainError for an unknown point, StorageError if the target cannot be read, InterruptedBySignalError.
    """
    there = view.there[request.uuid]
    if request.backup_id is not None and request.backup_id not in there.unreadable:
        view.point(request.uuid, request.backup_id)
    asked = [one for one in there.points if request.backup_id in (None, one)]
    damage: dict[str, list[str]] = {
        one: [str(err)] for one, err in there.unreadable.items() if request.backup_id in (None, one)
    }
    wanted = [
        (one, Wanted(f"{request.uuid}/{one}/{name}", record, points.dev_of(there.points[one].backup, name)))
        for one in asked
        for name, record in there.points[one].objects.items()
    ]
    wanted = _sampled(wanted, request.sample_percent)
    read = {one for one, _ in wanted}
    means = view.means(bytes_s=request.bytes_s, parallel=request.parallel)
    work = Work(means, [each for _, each in wanted])

    def trouble(each: Wanted) -> str | None:
        try:
            work.fetch(each)
        except IdentityError:
            raise
        except ChainError as err:
            return str(err)
        return None

    with ThreadPoolExecutor(max_workers=request.parallel) as pool:
        futures = [(one, pool.submit(trouble, each)) for one, each in wanted]
        try:
            for one, future in futures:
                found = future.result()
                if found is not None:
                    damage.setdefault(one, []).append(found)
        except BaseException:
            work.ended.set()
            raise
    _add_heirs(request.uuid, asked, view, damage)
    return CopiesVerified(
        request.uuid,
        view.repository.name_of(request.uuid),
        tuple(one for one in asked if one in read) if request.sample_percent is not None else tuple(asked),
        len(wanted),
        sum(each.record.size_bytes for _, each in wanted),
        damage,
    )


def _sampled(wanted: list[tuple[str, Wanted]], percent: float | None) -> list[tuple[str, Wanted]]:
    """Return objects chosen at random that have this part of all bytes; at least one.

    An object is read as a whole, because its digest is of all of it. The large ones are as likely as the small ones.
    """
    if percent is None:
        return wanted
    rest = sum(each.record.size_bytes for _, each in wanted) * percent / 100
    chosen: list[tuple[str, Wanted]] = []
    for one, each in random.sample(wanted, len(wanted)):
        if chosen and rest <= 0:
            break
        chosen.append((one, each))
        rest -= each.record.size_bytes
    return chosen


def _add_heirs(uuid: str, asked: Sequence[str], view: View, damage: dict[str, list[str]]) -> None:
    """Add the points that need an image of a damaged one, or one that is missing."""
    history = view.repository.catalogue(uuid).history
    own = dict(damage)
    for one in asked:
        for image in view.point(uuid, one).backup.disks:
            try:
                links = history.links(one, image.dev)
            except ChainError as err:
                damage.setdefault(one, []).append(str(err))
                continue
            for link in links[1:]:
                if link.backup.id in own:
                    damage.setdefault(one, []).append(
                        f"Disk {image.dev}: it depends on backup {link.backup.id}, which is damaged."
                    )
