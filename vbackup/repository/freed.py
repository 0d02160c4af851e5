"""Tell how much room is free when backups have given their data to those that depend on them, before it is done.

What an image holds goes to the images above it, except for the blocks that all of these hold themselves: that room is
free afterwards. The block lists tell, and no image is read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.repository.block_list import SUFFIX, BlockList, count
from vbackup.repository.history import History
from vbackup.repository.removal import allocated_bytes
from vbackup.repository.repository import Repository


def by_merging(repository: Repository, uuid: str, history: History, removed: Collection[str]) -> int:
    """Return the room in bytes that is free when these backups are merged into others; at least, if lists are missing.

    Blocks that files share with each other by reflink count in each of them.
    """
    above: dict[tuple[str, str], list[Path]] = {}
    for backup in history.backups:
        for image in backup.disks:
            if image.base in removed:
                path = repository.directory(uuid, backup.id) / image.file
                above.setdefault((image.base or "", image.dev), []).append(path)
    freed = 0
    for backup in history.backups:
        if backup.id not in removed:
            continue
        directory = repository.directory(uuid, backup.id)
        freed += allocated_bytes(directory)
        for image in backup.disks:
            heirs = above.get((backup.id, image.dev))
            if heirs:
                path = directory / image.file
                freed -= round(_file_bytes(path) * (1 - unneeded_share(path, heirs)))
    return freed


def unneeded_share(image: Path, heirs: Sequence[Path]) -> float:
    """Return which part of an image's data, from 0 to 1, the images directly above all hold; 0 if it is not known."""
    try:
        with ExitStack() as stack:
            own, *others = (stack.enter_context(BlockList.open(path.with_suffix(SUFFIX))) for path in (image, *heirs))
            unneeded = 0
            for number in sorted(set(own.numbers).intersection(*(other.numbers for other in others))):
                mask = own.segment(number).data
                for other in others:
                    mask &= other.segment(number).held
                unneeded += count(mask)
            return unneeded / own.data_blocks if own.data_blocks else 1.0
    except (ChainError, OSError):
        return 0.0


def _file_bytes(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0
