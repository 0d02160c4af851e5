"""Who is told what: the notifiers of the configuration, and what each was told last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from vbackup import names as words
from vbackup.config.model import Config, When
from vbackup.errors import UsageError
from vbackup.notices.delivery import Kind, kind
from vbackup.notices.memory import Memory
from vbackup.notices.sending import jobs_of


@dataclass(frozen=True)
class NotifierState:
    """A notifier."""

    name: str
    kind: Kind
    when: tuple[When, ...]  #: what it is told, in the order of When; a ping is told of every run
    jobs: tuple[str, ...]  #: names of the jobs that it is told about
    last: datetime | None  #: when the newest message was sent; None: none yet
    title: str | None  #: of that message
    problem: str | None  #: why the newest attempt to send one failed, as a sentence; None: it did not


def states(config: Config, memory: Memory, names: Sequence[str] = ()) -> tuple[NotifierState, ...]:
    """Return the notifiers of these names, or all, in the order of the configuration. Raises UsageError."""
    return tuple(_state(config, memory, name) for name in chosen(config, names))


def chosen(config: Config, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, each once, or those of all notifiers. Raises UsageError for one that there is not."""
    for name in names:
        if name not in config.notifiers:
            raise UsageError(f"No notifier {name!r} in the configuration{words.closest(name, config.notifiers)}.")
    return tuple(dict.fromkeys(names or config.notifiers))


def _state(config: Config, memory: Memory, name: str) -> NotifierState:
    notifier = config.notifiers[name]
    told = memory.read(name)
    when = (When.ALWAYS,) if notifier.ping is not None else tuple(one for one in When if one in notifier.when)
    jobs = tuple(job for job in config.jobs if job in jobs_of(notifier, config))
    return NotifierState(name, kind(notifier), when, jobs, told.last_time, told.title, told.problem)
