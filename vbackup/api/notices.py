"""Who is told what becomes of the backups; these calls need no connection."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbackup.config.model import Config
    from vbackup.errors import NoticeError
    from vbackup.notices.listing import NotifierState
    from vbackup.notices.memory import Memory
    from vbackup.overview.state import Overview
    from vbackup.report import Reporter


def notifiers(
    config: Config, names: Sequence[str] = (), *, state: str | os.PathLike[str] | None = None
) -> tuple[NotifierState, ...]:
    """Return the notifiers of these names, or all, and what each was told last.

    ``state``: the directory of the record of runs (default: VBACKUP_STATE, or the system's). Raises UsageError for a
    name that the configuration does not have.
    """
    from vbackup.notices import listing

    return listing.states(config, _memory(state), names)


def send_test_notices(config: Config, names: Sequence[str] = ()) -> dict[str, NoticeError | None]:
    """Send a test message to the notifiers of these names, or all; return for each why it was not sent, or None.

    Nobody counts as told by it. Raises UsageError for a name that the configuration does not have.
    """
    from vbackup.notices import listing, sending

    return sending.send_test(config, listing.chosen(config, names))


def tell_overdue(
    overview: Overview,
    config: Config,
    *,
    reporter: Reporter | None = None,
    state: str | os.PathLike[str] | None = None,
) -> tuple[str, ...]:
    """Tell the notifiers of domains that are overdue and that they were not told about; return what was not sent.

    Runs do that too; this is for a time in which there is none. Raises nothing.
    """
    from vbackup.notices import sending
    from vbackup.report import Silent

    return sending.announce(
        None,
        overview,
        config,
        _memory(state),
        phase="end",
        log_tail="",
        reporter=Silent() if reporter is None else reporter,
    )


def _memory(state: str | os.PathLike[str] | None) -> Memory:
    from vbackup.notices.memory import Memory
    from vbackup.runs import store

    return Memory(store.default_directory() if state is None else Path(state))
