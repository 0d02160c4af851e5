"""Words as units of systemd and lines of cron read them. Does no I/O.

A name or path comes from the configuration and from the command line: whatever it is, it stays one word, and nothing in
it is a specifier, a variable or another line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from vbackup.errors import UsageError

#: What systemd allows in the name of an instance as it is, and the configuration in that of a job.
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_BARE = re.compile(r"[A-Za-z0-9_@+=:,./-]+")


def job(name: str) -> str:
    """Return the name of a job, which stands in names of units and files. Raises UsageError if it cannot."""
    if not _JOB.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a job: it should have 1 to 63 letters, digits, '_' and '-', and begin with"
            " a letter or digit."
        )
    return name


def unit_word(text: str) -> str:
    """Return a word of a setting in a unit, such as ExecStart=: (with the colon, so that "$" is no variable).

    Raises UsageError for a line end or another control character.
    """
    if not text.isprintable():
        raise UsageError(f"{text!r} cannot stand in a unit of systemd: it has a control character.")
    if _BARE.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def cron_command(argv: Sequence[str]) -> str:
    """Return a command as a line of cron has it: for the shell, and with each "%" escaped, which is cron's line end.

    Raises UsageError for a line end or another control character.
    """
    for word in argv:
        if not word.isprintable():
            raise UsageError(f"{word!r} cannot stand in a line of cron: it has a control character.")
    return shlex.join(argv).replace("%", "\\%")
