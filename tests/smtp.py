"""A real SMTP server on loopback (aiosmtpd), and a real sendmail (msmtp) that brings mail to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP


@dataclass
class Mailbox:
    """What the server got; ``reply``: what it says to the data of a mail."""

    sendmail: Path
    mails: list[tuple[str, list[str], bytes]] = field(default_factory=list)  #: sender, recipients, content
    reply: str = "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """Take a mail, as aiosmtpd calls it."""
        if self.reply.startswith("250"):
            self.mails.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return self.reply


class _AnyPort(Controller):
    """A server whose port the kernel chooses."""

    def _trigger_server(self) -> None:
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def smtp(directory: Path) -> Iterator[Mailbox]:
    """Yield a mailbox with its server; ``directory`` gets the program that brings mail to it."""
    box = Mailbox(directory / "sendmail")
    controller = _AnyPort(box, hostname="127.0.0.1", port=0)
    controller.start()
    try:
        configuration = directory / "msmtprc"
        configuration.write_text(f"account default\nhost 127.0.0.1\nport {controller.port}\nfrom vbackup@example.org\n")
        configuration.chmod(0o600)
        box.sendmail.write_text(f'#!/bin/sh\nexec msmtp -C "{configuration}" "$@"\n')
        box.sendmail.chmod(0o755)
        yield box
    finally:
        controller.stop()
