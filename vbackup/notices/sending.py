"""Tell everybody who wants to know, once, and never let that change what has become of a run.

``announce`` decides for each notifier (vbackup.notices.occasion), sends what there is to say, all at once and each
within its time, and remembers what was told (vbackup.notices.memory). It raises nothing: what was not sent is a
sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Literal

from vbackup import machine
from vbackup.config.model import Config, Notifier, When
from vbackup.errors import NoticeError, VbackupError
from vbackup.notices import delivery, occasion, text
from vbackup.notices.delivery import Message
from vbackup.notices.memory import Memory, NotKept
from vbackup.notices.occasion import Occasion, is_bad
from vbackup.notices.ping import Signal
from vbackup.notices.told import Told
from vbackup.overview.state import Overview
from vbackup.report import Reporter
from vbackup.runs.record import Run

log = logging.getLogger(__name__)

#: A backup does not wait longer than this for somebody to hear that it begins.
START_S = 10.0


def jobs_of(notifier: Notifier, config: Config) -> frozenset[str]:
    """Return the names of the jobs that a notifier is told about."""
    return frozenset(job.name for job in config.jobs.values() if job.notify is None or notifier.name in job.notify)


def announce(
    run: Run | None,
    overview: Overview | None,
    config: Config,
    memory: Memory,
    *,
    phase: Literal["start", "end"],
    log_tail: str,
    reporter: Reporter,
) -> tuple[str, ...]:
    """Tell the notifiers of a run that begins or has ended, and of what is overdue; return what was not sent.

    ``run``: None: there was none, and only what is overdue is told. ``log_tail``: the newest lines of its log. Each
    sentence is also a warning to the reporter. It takes as long as the longest time of a notifier, and once more where
    another run is telling the same one; at the start of a run at most START_S. It raises nothing.
    """
    told = _Announcement(run, overview, config, memory, log_tail, reporter)
    found = _all(config.notifiers.values(), told.begin if phase == "start" else told.end)
    for sentence in found:
        reporter.warning(sentence)
    return found


def send_test(config: Config, names: Sequence[str] = ()) -> dict[str, NoticeError | None]:
    """Send a test message to the notifiers of these names, or to all; return for each why it was not sent, or None.

    A ping goes to URL/log, which changes nothing at the server. The names have to be in the configuration, and nobody
    counts as told by a test.
    """
    errors: dict[str, NoticeError] = {}
    host = machine.this_host().name

    def one(notifier: Notifier) -> str | None:
        try:
            delivery.deliver(
                notifier, Message(None, f"vbackup on {host}: test", host, _now(), Signal.LOG), notifier.timeout_s
            )
        except NoticeError as err:
            errors[notifier.name] = err
        return None

    chosen = {name: config.notifiers[name] for name in names or config.notifiers}
    _all(chosen.values(), one)
    return {name: errors.get(name) for name in chosen}


def _all(notifiers: Collection[Notifier], tell: Callable[[Notifier], str | None]) -> tuple[str, ...]:
    """Tell all notifiers at once; return the sentences that came back."""

    def safely(notifier: Notifier) -> str | None:
        try:
            return tell(notifier)
        except Exception as err:  # noqa: BLE001 - a bug here must not change what becomes of the run
            # Without the text, and without the traceback: either could have a secret.
            return f"The message to notifier {notifier.name} was not sent: {type(err).__name__}, a bug in vbackup."

    if not notifiers:
        return ()
    with ThreadPoolExecutor(max_workers=len(notifiers), thread_name_prefix="notifier") as pool:
        return tuple(one for one in pool.map(safely, notifiers) if one is not None)


@dataclass(frozen=True)
class _Announcement:
    """What there is to say, before it is decided who is told what."""

    run: Run | None
    overview: Overview | None
    config: Config
    memory: Memory
    log_tail: str
    reporter: Reporter

    def begin(self, notifier: Notifier) -> str | None:
        """Send the ping at the start of a run; return why that failed."""
        run = self.run
        if run is None or notifier.ping is None or run.job not in self._jobs(notifier):
            return None
        begun = Occasion((), run, (), (), (), None, was_told=True, if_sent=Told(), if_not=Told())
        try:
            delivery.deliver(
                notifier, Message(begun, "", run.host, _now(), Signal.START), min(notifier.timeout_s, START_S)
            )
        except NoticeError as err:
            return str(err)
        return None

    def end(self, notifier: Notifier) -> str | None:
        """Tell a notifier what it has not been told; return why that failed."""
        with self.memory.locked(notifier.name, wait_s=notifier.timeout_s):
            before = self.memory.read(notifier.name)
            # The server of pings has to hear of every run, to notice the one that does not come.
            wanted = frozenset((When.ALWAYS,)) if notifier.ping is not None else notifier.when
            found = occasion.decide(wanted, before, run=self.run, overview=self.overview, jobs=self._jobs(notifier))
            is_ping_without_run = notifier.ping is not None and found.run is None
            if not found.reasons or is_ping_without_run:
                return self._keep(notifier, found.if_sent, before)
            message = self._message(found)
            try:
                delivery.deliver(notifier, message, notifier.timeout_s)
            except NoticeError as err:
                self._keep(notifier, replace(found.if_not, problem=str(err)), before)
                return str(err)
            self.reporter.step(f"Notifier {notifier.name} was told: {message.title}")
            last = message.time.isoformat(timespec="seconds")
            return self._keep(notifier, replace(found.if_sent, last=last, title=message.title, problem=None), before)

    def _message(self, found: Occasion) -> Message:
        run = found.run
        host = machine.this_host().name if run is None else run.host
        signal = Signal.FAIL if run is not None and is_bad(run) else Signal.SUCCESS
        return Message(
            found,
            text.title(found, host),
            host,
            _now(),
            signal,
            self.log_tail if run is not None else "",
            self.config.given,
        )

    def _jobs(self, notifier: Notifier) -> frozenset[str]:
        jobs = jobs_of(notifier, self.config)
        # A job that left the configuration while it ran is everybody's.
        return jobs if self.run is None or self.run.job in self.config.jobs else jobs | {self.run.job}

    def _keep(self, notifier: Notifier, told: Told, before: Told) -> str | None:
        if told == before:
            return None
        try:
            self.memory.keep(notifier.name, told)
        except (OSError, VbackupError) as err:
            why = err.strerror if isinstance(err, OSError) else str(err)
            path = self.memory.path(notifier.name)
            return NotKept(f"What notifier {notifier.name} was told cannot be kept in {path}: {why}.")
        return None


def _now() -> datetime:
    return datetime.now(timezone.utc)
