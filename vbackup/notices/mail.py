"""Mail through sendmail: the message is written to the program's standard input, and its recipients are in the header.

Any MTA has a program of this name (Postfix, Exim, msmtp, nullmailer, dma). email makes the header, and refuses a line
end in it, so nothing that a guest or another program says can add a recipient.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import default as policy
from email.utils import make_msgid
from pathlib import Path

from vbackup.errors import NoticeError, Retry, VbackupError
from vbackup.notices.text import plain
from vbackup.process import refuse_lost_ends

#: Where it is by convention; cron's PATH does not have it.
USUAL = Path("/usr/sbin/sendmail")
#: The MTA may be able to do it later (sysexits.h).
_EX_TEMPFAIL = 75
#: No quotes, comments, lists or characters beyond ASCII, which nobody's address needs; no option of a program.
_ADDRESS = re.compile(
    r"([A-Za-z0-9.!#$%&'*+/=?^_`{|}~][A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]*)(?:@([A-Za-z0-9][A-Za-z0-9.-]*))?"
)
_NOT_FOUND = "there is no program sendmail: install an MTA such as Postfix or msmtp-mta, or set 'sendmail' to its path"


def message(
    notifier: str, to: tuple[str, ...], sender: str | None, *, title: str, text: str, host: str, time: datetime
) -> EmailMessage:
    """Return the mail. Raises NoticeError for an address that is none."""
    mail = EmailMessage(policy=policy)
    mail["From"] = check_address(notifier, sender) if sender else Address("vbackup", _user(), _domain(host))
    mail["To"] = [check_address(notifier, one) for one in to]
    mail["Subject"] = plain(title)
    mail["Date"] = time
    mail["Message-ID"] = make_msgid("vbackup", _domain(host))
    # No answer of a machine, such as one from a holiday (RFC 3834).
    mail["Auto-Submitted"] = "auto-generated"
    # A lone surrogate, of a name that is not UTF-8, cannot be encoded.
    mail.set_content(text.encode("utf-8", "replace").decode(), cte="quoted-printable")
    return mail


def send(notifier: str, mail: EmailMessage, *, program: Path | None, sender: str | None, timeout_s: float) -> None:
    """Give the mail to sendmail, which may only put it into a queue. Raises NoticeError."""
    found = _program(notifier, program)
    # -t: recipients from the header; -i: a line with a dot does not end it. Without a sender it is the user.
    argv = [found, "-t", "-i", *(("-f", check_address(notifier, sender).addr_spec) if sender else ())]
    try:
        refuse_lost_ends()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # it can be ended with all that it starts
        )
    except (OSError, VbackupError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        raise NoticeError(notifier, f"{found} cannot be started: {why}", retry=Retry.NEVER) from None
    try:
        _, said = process.communicate(mail.as_bytes(), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise NoticeError(notifier, f"{found} did not end within {timeout_s:.3g} s") from None
    finally:
        # Whatever it has left: its own children too, which may have its standard error open.
        with suppress(ProcessLookupError, PermissionError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines()
        why = f": {plain(lines[-1].strip())[:300]}" if lines else ""
        retry = Retry.LATER if process.returncode == _EX_TEMPFAIL else Retry.NEVER
        raise NoticeError(notifier, f"{found} ended with exit status {process.returncode}{why}", retry=retry)


def _program(notifier: str, program: Path | None) -> str:
    if program is not None:
        return os.fspath(program)
    found = os.fspath(USUAL) if USUAL.exists() else shutil.which("sendmail")
    if found is None:
        raise NoticeError(notifier, _NOT_FOUND, retry=Retry.NEVER)
    return found


def check_address(notifier: str, text: str) -> Address:
    """Return an address as RFC 5322 has it, "ops@example.org" or a local user's name such as "root".

    Raises NoticeError.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise NoticeError(
            notifier, f"{plain(text)!r} is not a mail address, such as ops@example.org", retry=Retry.NEVER
        )
    return Address("", match[1], match[2] or "")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "vbackup"


def _domain(host: str) -> str:
    kept = "".join(one for one in host if one.isascii() and (one.isalnum() or one in "-."))
    return kept.strip("-.") or "localhost"
