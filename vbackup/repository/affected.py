"""Find the backups that damage of one image affects: those that depend on it and do not hold the blocks themselves.

Does no I/O: the caller knows which blocks an image holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vbackup.repository.history import History

#: Blocks by the number of their segment: masks as in vbackup.repository.block_list.
Blocks = Mapping[int, int]


def heirs(history: History, dev: str) -> dict[str, list[str]]:
    """Return the ids of the backups whose image of the disk has an image as its backing file, by the id of that one."""
    found: dict[str, list[str]] = {}
    for backup in history.backups:
        image = backup.image(dev)
        if image is not None and image.base is not None:
            found.setdefault(image.base, []).append(backup.id)
    return found


def dependents(backup_id: str, heirs_of: Mapping[str, list[str]]) -> set[str]:
    """Return a backup and all that depend on it."""
    return set(affected(backup_id, {0: 1}, heirs_of, held=lambda _id, _number: 0))


def affected(
    backup_id: str, blocks: Blocks, heirs_of: Mapping[str, list[str]], *, held: Callable[[str, int], int]
) -> dict[str, dict[int, int]]:
    """Return the backups that show these blocks of the image of ``backup_id``, with the blocks that they show.

    ``held`` returns the mask of the blocks of a segment that the image of a backup holds itself.
    """
    found: dict[str, dict[int, int]] = {}
    waiting = [(backup_id, dict(blocks))]
    while waiting:
        one, shown = waiting.pop()
        if one in found or not shown:
            continue
        found[one] = shown
        for heir in heirs_of.get(one, ()):
            left = {number: mask & ~held(heir, number) for number, mask in shown.items()}
            # Hundreds that show all of it share it: the masks of a large disk take megabytes.
            waiting.append((heir, shown if left == shown else {number: mask for number, mask in left.items() if mask}))
    return found
