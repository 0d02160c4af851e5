"""Deliver one message to one notifier, in its way, with attempts until its time is over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from uuid import uuid4

from vbackup.config import secrets
from vbackup.config.model import Notifier, Secret
from vbackup.errors import NoticeError, Retry, VbackupError
from vbackup.notices import attempts, document, mail, others, ping, text, webhook
from vbackup.notices.occasion import Occasion, is_bad
from vbackup.notices.ping import Signal

#: So much of the log stands in a mail and in a report; a ping has as much as the server keeps, a chat nothing.
_MAIL_LINES = 60
_WEBHOOK_LINES = 200


class Kind(Enum):
    """How a notifier is told."""

    PING = "ping"
    WEBHOOK = "webhook"
    MAIL = "mail"
    APPRISE = "apprise"


@dataclass(frozen=True)
class Message:
    """What one notifier is told."""

    occasion: Occasion | None  #: None: a run begins, or it is a test
    title: str
    host: str
    time: datetime
    signal: Signal  #: what a ping says
    log_tail: str = ""
    given: tuple[str, ...] = ()  #: the option that names the configuration
    id: str = field(default_factory=lambda: str(uuid4()))

    def text(self, *, log_lines: int | None = None) -> str:
        """Return the text with the last lines of the log; None: with all of them."""
        if self.signal is Signal.START:
            return ""
        if self.occasion is None:
            return (
                f"Nothing to do: 'vbackup notify test' on {self.host} sent this.\n\n"
                "What there is to say of the backups of that machine will come here.\n"
            )
        lines = self.log_tail.splitlines()
        kept = lines if log_lines is None else lines[max(len(lines) - log_lines, 0) :]
        return text.text(self.occasion, self.host, log_tail="\n".join(kept), given=self.given)


def kind(notifier: Notifier) -> Kind:
    """Return how a notifier is told."""
    if notifier.ping is not None:
        return Kind.PING
    if notifier.webhook is not None:
        return Kind.WEBHOOK
    return Kind.APPRISE if notifier.apprise is not None else Kind.MAIL


def deliver(notifier: Notifier, message: Message, timeout_s: float) -> None:
    """Deliver a message. Raises NoticeError, which has nothing of a secret in it."""
    deadline = time.monotonic() + timeout_s
    secret = _secret(notifier, notifier.ping or notifier.webhook or notifier.apprise, timeout_s)
    key = _secret(notifier, notifier.secret, deadline - time.monotonic())
    ways = {Kind.PING: _ping, Kind.WEBHOOK: _webhook, Kind.MAIL: _mail, Kind.APPRISE: _apprise}
    way = ways[kind(notifier)]
    attempts.until_sent(
        lambda limit_s: way(notifier, message, (secret or "", key), limit_s), max(deadline - time.monotonic(), 0.0)
    )


def _secret(notifier: Notifier, secret: Secret | None, timeout_s: float) -> str | None:
    if secret is None:
        return None
    try:
        return secrets.read(secret, timeout_s)
    except VbackupError as err:
        said = str(err)
    raise NoticeError(notifier.name, said, retry=Retry.NEVER)


#: The URL of the notifier, and the key to sign with.
_Secrets = tuple[str, "str | None"]


def _ping(notifier: Notifier, message: Message, hidden: _Secrets, limit_s: float) -> None:
    rid = None if message.occasion is None or message.occasion.run is None else ping.run_id(message.occasion.run)
    ping.send(notifier.name, hidden[0], message.signal, rid=rid, text=message.text(), timeout_s=limit_s)


def _webhook(notifier: Notifier, message: Message, hidden: _Secrets, limit_s: float) -> None:
    said = message.text(log_lines=_WEBHOOK_LINES)
    sent = document.document(
        message.occasion, message=message.id, host=message.host, time=message.time, title=message.title, text=said
    )
    time_s = message.time.timestamp()
    webhook.send(notifier.name, hidden[0], sent, secret=hidden[1], time_s=time_s, timeout_s=limit_s)


def _mail(notifier: Notifier, message: Message, _hidden: _Secrets, limit_s: float) -> None:
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


def _apprise(notifier: Notifier, message: Message, hidden: _Secrets, limit_s: float) -> None:
    others.send(
        notifier.name,
        hidden[0],
        title=message.title,
        text=message.text(log_lines=0),
        kind=_severity(message.occasion),
        timeout_s=limit_s,
    )


def _severity(occasion: Occasion | None) -> str:
    """Return what kind of message it is, in apprise's words."""
    if occasion is None:
        return "info"
    if occasion.run is not None and is_bad(occasion.run):
        return "failure"
    return "warning" if occasion.overdue or occasion.unusual else "success"
