"""Repair: finish or undo the merges and removals that a dead run began."""

from __future__ import annotations

from vbackup.errors import ChainError, InterruptedBySignalError, StorageError, VbackupError
from vbackup.operations import consolidation
from vbackup.operations.repair_work import Repair, Work
from vbackup.repository import merge_journal


def end(work: Work) -> None:
    """Finish or undo the merges and removals that a dead run began."""
    if not merge_journal.leftovers(work.directory):
        return
    try:
        merge_journal.read(work.directory)
    except ChainError as err:
        work.is_merging = True
        work.lost_journal = str(err)  # repair_images finds out whether it is needed
        return
    except StorageError:
        pass  # a newer one: it is reported below
    if work.is_dry:
        work.is_merging = True
        work.note("", "An interrupted merge or removal of backups would be finished or undone.")
        return
    try:
        done = consolidation.recover(work.repository, work.uuid, reporter=work.reporter, stop=work.stop)
    except InterruptedBySignalError:
        raise
    except VbackupError as err:
        work.is_merging = True
        work.fail(f"An interrupted merge of backups cannot be finished: {err}")
        return
    work.done += [Repair(what, work.uuid) for what in done]
