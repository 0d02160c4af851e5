"""Tell everybody who wants to know, once, and never let that change what has become of a run.

``announce`` decides for each notifier (vbackup.notices.occasion), sends what there is to say, all at once and each within
its time, and remembers what was told (vbackup.notices.memory). It raises nothing: what was not sent is a sentence.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from typing import Literal

from vbackup import machine
from vbackup.config import secrets
from vbackup.config.model import Config, Notifier, Secret, When
from vbackup.errors import NoticeError, Retry, VbackupError
from vbackup.notices import attempts, document, mail, occasion, others, ping, text, webhook
from vbackup.notices.memory import Memory
from vbackup.notices.occasion import Occasion, is_bad
from vbackup.notices.ping import Signal
from vbackup.overview.state import Overview
from vbackup.report import Reporter
from vbackup.runs.record import Run

log = logging.getLogger(__name__)

#: A backup does not wait longer than this for somebody to hear that it begins.
START_S = 10.0
#: So much of the log stands in a mail and in a report; a ping has as much as the server keeps.
_MAIL_LINES = 60
_WEBHOOK_LINES = 200


class Kind(Enum):
    """How a notifier is told."""

    PING = "ping"
    WEBHOOK = "webhook"
    MAIL = "mail"
    APPRISE = "apprise"


@dataclass(frozen=True)
class _Message:
    """What is sent to one notifier."""

    id: str
    time: datetime
    host: str
    title: str
    occasion: Occasion | None  #: None: a test
    log_tail: str = ""

    def text(self, *, log_lines: int | None = None) -> str:
        """Return the text with the last lines of the log; None: with all of them."""
        if self.occasion is None:
            return (
                f"Nothing to do: this is the test that 'vbackup notify test' sent from {self.host}.\n\n"
                "Messages on backups of this machine come here.\n"
            )
        lines = self.log_tail.splitlines()
        kept = lines if log_lines is None else lines[max(len(lines) - log_lines, 0) :]
        return text.text(self.occasion, self.host, log_tail="\n".join(kept))


def kind(notifier: Notifier) -> Kind:
    """Return how a notifier is told."""
    if notifier.ping is not None:
        return Kind.PING
    if notifier.webhook is not None:
        return Kind.WEBHOOK
    return Kind.APPRISE if notifier.apprise is not None else Kind.MAIL


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
    sentence is also a warning to the reporter. It takes as long as the longest time of a notifier, at the start of a
    run at most START_S, and raises nothing.
    """
    if phase == "start":
        return _all(config.notifiers.values(), lambda one: _begin(one, run, config), reporter)
    return _all(
        config.notifiers.values(), lambda one: _end(one, run, overview, config, memory, log_tail, reporter), reporter
    )


def send_test(
    config: Config, memory: Memory, names: Sequence[str] = (), *, now: Callable[[], datetime] | None = None
) -> dict[str, NoticeError | None]:
    """Send a test message to the notifiers of these names, or to all; return for each why it was not sent, or None.

    Each is asked for once more than usual if it fails, as with any message. A ping goes to URL/log, which changes
    nothing at the server. The names have to be of the configuration.
    """
    del memory  # a test is no message that anybody was told
    time_now = _now() if now is None else now()

    def one(notifier: Notifier) -> NoticeError | None:
        host = machine.this_host().name
        title = f"vbackup on {host}: test"
        try:
            _send(notifier, _Message(str(uuid.uuid4()), time_now, host, title, None), Signal.LOG, notifier.timeout_s)
        except NoticeError as err:
            return err
        return None

    chosen = [config.notifiers[name] for name in names or config.notifiers]
    if not chosen:
        return {}
    with ThreadPoolExecutor(max_workers=len(chosen), thread_name_prefix="notifier") as pool:
        return dict(zip((each.name for each in chosen), pool.map(one, chosen)))


def _all(notifiers: Collection[Notifier], tell: Callable[[Notifier], str | None], reporter: Reporter) -> tuple[str, ...]:
    def safely(notifier: Notifier) -> str | None:
        try:
            return tell(notifier)
        except Exception as err:  # a bug must not change what becomes of the run; its text could have a secret
            log.error("notifier %s: %s", notifier.name, type(err).__name__)
            return f"The message to notifier {notifier.name} was not sent: {type(err).__name__}, a bug in vbackup."

    if not notifiers:
        return ()
    with ThreadPoolExecutor(max_workers=len(notifiers), thread_name_prefix="notifier") as pool:
        found = tuple(one for one in pool.map(safely, notifiers) if one is not None)
    for sentence in found:
        reporter.warning(sentence)
    return found


def _begin(notifier: Notifier, run: Run | None, config: Config) -> str | None:
    if run is None or notifier.ping is None or run.job not in jobs_of(notifier, config):
        return None
    message = _Message(str(uuid.uuid4()), run.started, run.host, "", None)
    try:
        _send(notifier, message, Signal.START, min(notifier.timeout_s, START_S), run=run)
    except NoticeError as err:
        return str(err)
    return None


def _end(
    notifier: Notifier,
    run: Run | None,
    overview: Overview | None,
    config: Config,
    memory: Memory,
    log_tail: str,
    reporter: Reporter,
) -> str | None:
    """Tell one notifier what it has not been told; return why that failed, as a sentence."""
    with memory.locked(notifier.name, wait_s=notifier.timeout_s):
        before = memory.read(notifier.name)
        wanted = frozenset((When.ALWAYS,)) if notifier.ping is not None else notifier.when
        jobs = jobs_of(notifier, config)
        # A job that left the configuration while it ran is everybody's.
        heard = jobs if run is None or run.job in config.jobs else jobs | {run.job}
        found = occasion.decide(wanted, before, run=run, overview=overview, jobs=heard)
        has_ping = notifier.ping is not None and found.run is None  # a ping is of a run
        if not found.reasons or has_ping:
            return _kept(memory, notifier, replace(found.if_sent, problem=before.problem), before)
        time_now = _now()
        host = run.host if run is not None else machine.this_host().name
        title = text.title(found, host)
        message = _Message(str(uuid.uuid4()), time_now, host, title, found, log_tail)
        signal = Signal.FAIL if found.run is not None and is_bad(found.run) else Signal.SUCCESS
        try:
            _send(notifier, message, signal, notifier.timeout_s, run=found.run)
        except NoticeError as err:
            _kept(memory, notifier, replace(found.if_not, problem=str(err)), before)
            return str(err)
        reporter.step(f"Told notifier {notifier.name}: {title}")
        sent = replace(found.if_sent, last=time_now.isoformat(timespec="seconds"), title=title, problem=None)
        return _kept(memory, notifier, sent, before)


def _kept(memory: Memory, notifier: Notifier, told: occasion.Told, before: occasion.Told) -> str | None:
    if told == before:
        return None
    try:
        memory.keep(notifier.name, told)
    except (OSError, VbackupError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        return f"What notifier {notifier.name} was told cannot be kept in {memory.path(notifier.name)}: {why}."
    return None


def _send(notifier: Notifier, message: _Message, signal: Signal, timeout_s: float, *, run: Run | None = None) -> None:
    """Send a message in one of the ways, with attempts until the time is over. Raises NoticeError."""
    deadline = time.monotonic() + timeout_s
    kept_secret = _secret(notifier, notifier.ping or notifier.webhook or notifier.apprise, timeout_s)
    key = _secret(notifier, notifier.secret, deadline - time.monotonic())

    def attempt(limit_s: float) -> None:
        if kept_secret is None:
            _mail(notifier, message, limit_s)
        elif notifier.ping is not None:
            rid = None if run is None else ping.run_id(run)
            body = "" if signal is Signal.START else message.text()
            ping.send(notifier.name, kept_secret, signal, rid=rid, text=body, timeout_s=limit_s)
        elif notifier.webhook is not None:
            sent = _document(message)
            time_s = message.time.timestamp()
            webhook.send(notifier.name, kept_secret, sent, secret=key, time_s=time_s, timeout_s=limit_s)
        else:
            _other(notifier, message, kept_secret, limit_s)

    attempts.until_sent(attempt, max(deadline - time.monotonic(), 0.0))


def _secret(notifier: Notifier, secret: Secret | None, timeout_s: float) -> str | None:
    if secret is None:
        return None
    try:
        return secrets.read(secret, timeout_s)
    except VbackupError as err:
        said = str(err)
    raise NoticeError(notifier.name, said, retry=Retry.NEVER)


def _mail(notifier: Notifier, message: _Message, limit_s: float) -> None:
    made = mail.message(
        notifier.name,
        notifier.mail_to,
        notifier.mail_from,
        title=message.title,
        text=message.text(log_lines=_MAIL_LINES),
        host=message.host,
        time=message.time,
    )
    mail.send(notifier.name, made, program=notifier.sendmail, sender=notifier.mail_from, timeout_s=limit_s)


def _document(message: _Message) -> dict[str, object]:
    facts = {"message": message.id, "host": message.host, "time": message.time, "title": message.title}
    if message.occasion is None:
        return document.document_of_test(**facts, text=message.text())  # type: ignore[arg-type]
    return document.document(message.occasion, **facts, text=message.text(log_lines=_WEBHOOK_LINES))  # type: ignore[arg-type]


def _other(notifier: Notifier, message: _Message, url: str, limit_s: float) -> None:
    found = message.occasion
    worst = (
        "info"
        if found is None
        else document.worst(found, is_bad=found.run is not None and is_bad(found.run))
    )
    said = message.text(log_lines=0)
    others.send(notifier.name, url, title=message.title, text=said, kind=worst, timeout_s=limit_s)


def _now() -> datetime:
    return datetime.now(timezone.utc)
