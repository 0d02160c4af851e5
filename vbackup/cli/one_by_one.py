"""Do something for each of several domains of the repository: that one fails is a warning, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from vbackup.api import Repository
from vbackup.errors import InterruptedBySignalError, VbackupError
from vbackup.report import Labelling, Reporter

Done = TypeVar("Done")


def run(
    uuids: Sequence[str],
    work: Callable[[str, Reporter], Done],
    *,
    repository: Repository,
    reporter: Labelling,
    is_one: bool,
) -> tuple[list[Done], dict[str, VbackupError]]:
    """Call ``work`` with each domain and its reporter; return what was done, and why others failed, by UUID.

    ``is_one``: the user has named a single domain, so lines need no name, and the caller raises its error. Raises
    InterruptedBySignalError.
    """
    done: list[Done] = []
    failed: dict[str, VbackupError] = {}
    for uuid in uuids:
        of_domain = reporter if is_one else reporter.labelled(repository.name_of(uuid))
        try:
            done.append(work(uuid, of_domain))
        except InterruptedBySignalError:
            raise
        except VbackupError as err:
            failed[uuid] = err
            if not is_one:
                of_domain.warning(str(err))
    return done, failed
