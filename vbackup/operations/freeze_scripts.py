"""The user's scripts while a guest is frozen, and after its thaw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vbackup.domain.freeze import Freeze
from vbackup.scripts.finding import ScriptPhase
from vbackup.scripts.runner import DomainScripts

#: How much of --freeze-limit the scripts may take, so that the moment comes before the limit.
SHARE = 0.5


@contextmanager
def around(
    scripts: DomainScripts, document: Mapping[str, Any], *, limit_s: float
) -> Iterator[Callable[[Freeze], None]]:
    """Yield what runs the post-freeze scripts of a guest that vbackup has frozen; after the block, begin post-thaw.

    ``document``: what they get; ``limit_s``: how long the guest may be frozen, in seconds. The scripts of the thaw also
    run if the block fails, as they undo what the others have done, and beside what the caller goes on to do: a job
    whose target is full stops the guest until somebody ends it. ``scripts.attended`` waits for them.
    """
    was_frozen = False

    def frozen(freeze: Freeze) -> None:
        nonlocal was_frozen
        if freeze.begun is not None and scripts.has(ScriptPhase.POST_FREEZE, ScriptPhase.POST_THAW):
            was_frozen = True
            scripts.while_frozen(ScriptPhase.POST_FREEZE, document, deadline=freeze.begun + limit_s * SHARE)

    try:
        yield frozen
    finally:
        scripts.report()  # before the others, which run beside: in the log, post-freeze comes first
        if was_frozen:
            scripts.begin(ScriptPhase.POST_THAW, document)
