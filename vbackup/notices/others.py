"""Everything else, through apprise: chats, telephones, and a hundred services more, by one URL each.

apprise is an extra (vbackup[apprise], or Debian's package apprise) and runs as a separate process
(vbackup.notices.apprise_program says why).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vbackup.errors import NoticeError, Retry, VbackupError
from vbackup.notices import apprise_program
from vbackup.process import refuse_lost_ends

PROGRAM = Path(__file__).with_name("apprise_program.py")
_WHY = {
    apprise_program.MISSING: (
        "apprise is not installed here: install Debian's package apprise, or 'pip install vbackup[apprise]'",
        Retry.NEVER,
    ),
    apprise_program.UNKNOWN: (
        "apprise does not know the service of its URL, or misses a part of it; see 'apprise --details'",
        Retry.NEVER,
    ),
    apprise_program.FAILED: ("the service did not accept it; 'apprise -vv' with the URL shows why", Retry.LATER),
}


def send(notifier: str, url: str, *, title: str, text: str, kind: str, timeout_s: float) -> None:
    """Send a message; ``kind``: info, success, warning or failure. Raises NoticeError, without the URL in it."""
    _order(notifier, {"url": url, "title": title, "text": text, "type": kind}, apprise_program.SENT, timeout_s)


def check_url(notifier: str, url: str, timeout_s: float) -> None:
    """Let apprise read the URL and send nothing. Raises NoticeError, without the URL in it."""
    _order(notifier, {"url": url}, apprise_program.KNOWN, timeout_s)


def _order(notifier: str, orders: Mapping[str, object], wanted: str, timeout_s: float) -> None:
    """Run the program. Raises NoticeError for another answer than the one that is wanted."""
    given = {"sys_path": [os.fspath(Path(path).absolute()) for path in sys.path], **orders}
    try:
        refuse_lost_ends()
        process = subprocess.Popen(
            [sys.executable, "-I", os.fspath(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, VbackupError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        raise NoticeError(notifier, f"Python cannot be started: {why}", retry=Retry.NEVER) from None
    try:
        said, _ = process.communicate(json.dumps(given).encode(), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise NoticeError(notifier, f"apprise did not end within {timeout_s:.3g} s") from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    answer = said.decode(errors="replace")
    if answer != wanted:
        why, retry = _WHY.get(answer, (f"apprise ended with exit status {process.returncode}", Retry.LATER))
        raise NoticeError(notifier, why, retry=retry)
