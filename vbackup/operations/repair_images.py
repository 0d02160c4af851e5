"""Repair: images and their block lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from vbackup.errors import ChainError, NoSpaceError, StorageError
from vbackup.files import fsync, storage_errors
from vbackup.operations import repair_merges
from vbackup.operations.repair_work import Work
from vbackup.repository import (
    block_list,
    block_scan,
    image_check,
    image_repair,
    merge_journal,
    quarantine,
    verification,
    verify,
)
from vbackup.repository.block_list import algorithm_of
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.history import Link
from vbackup.repository.image_check import Watch
from vbackup.repository.image_repair import ImageRepair
from vbackup.repository.inspection import REPAIRED, Inspected, Kind
from vbackup.repository.verification import Verdict


def repair(work: Work, found: Inspected) -> None:
    """Repair the block lists and images that an inspection or a verify has found damaged."""
    read = work.repository.catalogue(work.uuid)
    suspect = {
        (trouble.backup, trouble.dev)
        for trouble in found.troubles
        if trouble.kind in (Kind.IMAGE, Kind.STRUCTURE, Kind.LIST)
    }
    suspect |= {*_damaged_by_verify(work, read)}
    written = _written(work, read) if work.lost_journal is not None else {}
    suspect |= {(link.backup.id, link.image.dev) for link in written.values()}
    for backup in read.history.backups:
        for image in backup.disks:
            if (backup.id, image.dev) in suspect:
                work.stop.check()
                link = Link(backup, image)
                path = verify.image_path(work.repository, link)
                try:
                    if _list(work, path, link):
                        _image(work, path, link)
                except NoSpaceError:
                    raise
                except (ChainError, StorageError) as err:
                    work.fail(str(err))
    if work.lost_journal is not None:
        _put_journal_away(work, [name for name in written if name not in work.good])


def _written(work: Work, read: Catalogue) -> dict[str, Link]:
    """Read the images on which others depend: a merge in place may have written into one. Return those that differ.

    By the names that verified.json has for them.
    """
    bases = {(image.base, image.dev) for backup in read.history.backups for image in backup.disks}
    differing = {}
    for backup in read.history.backups:
        for image in backup.disks:
            link = Link(backup, image)
            if (backup.id, image.dev) in bases:
                path = verify.image_path(work.repository, link)
                if image_check.check(path, link, Watch(lambda _read_bytes: work.stop.check())).findings:
                    differing[f"{backup.id}/{image.file}"] = link
    return differing


def _put_journal_away(work: Work, differing: Sequence[str]) -> None:
    """Put a damaged journal of merges away if no image has to be finished; then undo what was only staged."""
    path = work.directory / merge_journal.NAME
    if differing:
        work.fail(f"{work.lost_journal} Not as they were: {', '.join(differing)}.")
        return
    kept = quarantine.put(work.repository, path) if not work.is_dry else None
    why = "it is damaged, and all images on which others depend are as they were"
    work.note(f"{path} was moved to {kept}: {why}.", f"{path} would be moved to the quarantine: {why}.")
    work.is_merging, work.lost_journal = False, None
    if not work.is_dry:
        repair_merges.end(work)


def _damaged_by_verify(work: Work, read: Catalogue) -> Iterator[tuple[str, str]]:
    for backup in read.history.backups:
        result = verification.read(work.repository.directory(work.uuid, backup.id))
        for damage in result.damage if result is not None else ():
            backup_id, _, name = damage.file.partition("/")
            yield backup_id, Path(name).stem


def _list(work: Work, path: Path, link: Link) -> bool:
    """Put the recorded block list in place, made from the image or taken from a copy.

    Return False if it is not there, as in a dry run: the image cannot be compared. Raises ChainError.
    """
    blocks = link.image.blocks
    if blocks is None:
        return True
    with suppress(ChainError), verify.opened_list(path, link):
        return True
    target = path.with_suffix(block_list.SUFFIX)
    staged = path.with_name(f"{REPAIRED}{target.name}")
    algorithm = algorithm_of(blocks.digest, where=f"The manifest of backup {link.backup.id}")
    source = None
    try:
        with suppress(ChainError):
            made = block_scan.make(path, staged, algorithm=algorithm, check=work.stop.check)
            if (made.digest, made.structure) == (blocks.digest, blocks.structure):
                source = path
        for twin in work.sources.twins(path) if source is None else ():
            with suppress(ChainError):
                verify.opened_list(twin, link).close()
                with storage_errors(f"write {staged}"):
                    staged.unlink(missing_ok=True)
                    image_repair.copy(twin.with_suffix(block_list.SUFFIX), staged, check=work.stop.check)
                verify.opened_list(staged, link).close()
                source = twin.with_suffix(block_list.SUFFIX)
                break
        if source is None:
            raise ChainError(
                f"Disk {link.image.dev}: the block list {target} of backup {link.backup.id} cannot be repaired: the"
                " image is not the one that it was made of. Give a copy of the repository with --from."
            )
        if not work.is_dry:
            with storage_errors(f"write {staged}"):
                fsync(staged)
            quarantine.replace(work.repository, target, staged)
    finally:
        with suppress(OSError):
            staged.unlink()
    work.note(
        f"The block list {target} was made again from {source}.",
        f"The block list {target} would be made again from {source}.",
    )
    return not work.is_dry


def _image(work: Work, path: Path, link: Link) -> None:
    one = ImageRepair(path, link, work.sources, check=work.stop.check)
    repaired = one.run(is_dry=work.is_dry)
    name = f"{link.backup.id}/{link.image.file}"
    if not repaired.repaired and repaired.source is None:
        if repaired.left:
            work.fail(
                f"Disk {link.image.dev}: {repaired.left} blocks of {path} are damaged, and no image has the same."
                " Give a copy of the repository with --from."
            )
        else:
            work.good.add(name)
        return
    kept = None
    if repaired.staged is not None:
        with ExitStack() as stack:
            stack.callback(lambda: one.staged.unlink(missing_ok=True))
            kept = quarantine.replace(work.repository, path, repaired.staged)
    whole = f", made from {repaired.source}" if repaired.source is not None else ""
    still = f"; {repaired.left} are still damaged" if repaired.left else ""
    was = f" What was there is {kept}." if kept is not None else ""
    blocks = f"{repaired.repaired} block{'s' * (repaired.repaired != 1)}"
    work.note(
        f"The image {path} was repaired ({blocks}{whole}{still}).{was}",
        f"The image {path} would be repaired ({blocks}{whole}{still}).",
    )
    if repaired.left:
        work.fail(f"Disk {link.image.dev}: {repaired.left} blocks of {path} are damaged, and no image has the same.")
    else:
        work.good.add(name)


def forget_damage(work: Work) -> None:
    """Take what was repaired out of the results of verifies: all of these images was read again."""
    if work.is_dry or not work.good:
        return
    for backup in work.repository.catalogue(work.uuid).history.backups:
        directory = work.repository.directory(work.uuid, backup.id)
        result = verification.read(directory)
        if result is None or not any(damage.file in work.good for damage in result.damage):
            continue
        left = tuple(damage for damage in result.damage if damage.file not in work.good)
        whole = Verdict.GOOD if result.percent >= 100 else Verdict.PARTIAL  # noqa: PLR2004
        verification.write(directory, replace(result, damage=left, verdict=Verdict.DAMAGED if left else whole))
