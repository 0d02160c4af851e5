"""Repair the backups of a domain: ``vbackup check --repair``.

Nothing is believed that the manifest does not prove: lists and files have exactly the digest that it records, or are
not put in place. Nothing is removed: what is replaced or cannot be used goes to the quarantine. Every step ends in one
rename, so a repair that is killed leaves the repository as it was, or repaired further; the next one goes on.

    repair           the order of the steps
    repair_work      what they have in common
    repair_merges    merges and removals that a dead run began
    repair_files     modes, manifests, and what is no image
    repair_backups   whole backups that are missing, or cannot be used
    repair_images    images and their block lists
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from vbackup.files import storage_errors
from vbackup.operations import repair_backups, repair_files, repair_images, repair_merges
from vbackup.operations.repair_work import Repair, Work
from vbackup.report import Reporter
from vbackup.repository import merge_journal
from vbackup.repository.inspection import Kind
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

__all__ = ["Repair", "run", "top"]


def run(
    uuid: str,
    *,
    repository: Repository,
    copies: Sequence[Repository],
    reporter: Reporter,
    stop: Stop,
    dry_run: bool = False,
) -> list[Repair]:
    """Repair what can be repaired of a domain, under its lock; with ``dry_run`` only find out what that is.

    Raises BusyError, StorageError, NoSpaceError, InterruptedBySignalError: what was repaired until then stays.
    """
    with repository.lock(uuid):
        return _repaired(Work(uuid, repository, copies, reporter=reporter, stop=stop, is_dry=dry_run))


def top(repository: Repository, *, dry_run: bool) -> list[Repair]:
    """Set the mode of the repository's directory, and remove what dead runs left there. Raises StorageError."""
    done = []
    verb = "would be" if dry_run else "was"
    if repository.path.stat().st_mode & 0o077:
        if not dry_run:
            with storage_errors(f"change the mode of {repository.path}"):
                repository.path.chmod(0o700)
        done.append(Repair(f"The mode of {repository.path} {verb} set to 0700.", ""))
    for probe in sorted(repository.path.glob(f"{merge_journal.PROBE}*")):
        if Path(f"/proc/{probe.name[len(merge_journal.PROBE) :]}").exists():
            continue  # another check is asking the filesystem now
        if not dry_run:
            with storage_errors(f"remove {probe}"):
                shutil.rmtree(probe)
        done.append(Repair(f"{probe} {verb} removed.", ""))
    return done


def _repaired(work: Work) -> list[Repair]:
    """Do it, and return what was done."""
    repair_merges.end(work)
    repair_backups.take_back(work)
    found = work.inspect()
    for kind, repair in (
        (Kind.LEFTOVER, repair_files.remove_leftovers),
        (Kind.MODE, repair_files.set_rights),
        (Kind.OWNER, repair_files.set_rights),
        (Kind.MANIFEST, repair_files.take_manifests),
    ):
        if any(trouble.kind is kind for trouble in found.troubles):
            work.stop.check()
            repair(work)
    repair_backups.bring_back_missing(work)
    found = work.inspect()
    repair_images.repair(work, found)
    repair_files.take_others(work, found)
    repair_images.forget_damage(work)
    if any(trouble.kind is Kind.NAMES for trouble in found.troubles):
        repair_files.make_domain_json(work)
    if any(trouble.kind is Kind.AUDITS for trouble in found.troubles):
        repair_files.renew_audits(work)
    repair_backups.put_away(work)
    return work.done
