"""The line of cron that runs a job where there is no systemd. Does no I/O.

It asks four times an hour whether the job is due, so that a run that was missed, or killed, is made up for without
anything that remembers it: vbackup run --due does nothing if nothing is due.
"""

from __future__ import annotations

import zlib

from vbackup.schedule import quoting
from vbackup.schedule.units import Needs, argv

MARKER = "# Written by 'vbackup schedule install', which replaces it.\n"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_EVERY_MIN = 15
_HOUR_MIN = 60


def name(job: str) -> str:
    """Return the name of the file in /etc/cron.d: cron reads none with other characters than a job's name has."""
    return f"vbackup-{quoting.job(job)}"


def text(needs: Needs, *, host: str) -> str:
    """Return the file of a job; ``host``: its name, so that not all hosts and jobs ask at the same minute."""
    # What a run has to say is in its record and in its messages; cron would send a mail for each line of its log.
    return f'{MARKER}SHELL=/bin/sh\nPATH={_PATH}\nMAILTO=""\n{cron_line(needs, host=host, is_user=False)}\n'


def cron_line(needs: Needs, *, host: str, is_user: bool) -> str:
    """Return the line of a job: with the user root, or as it stands in a user's own table."""
    first = zlib.crc32(f"{host}/{needs.job}".encode()) % _EVERY_MIN
    minutes = ",".join(str(minute) for minute in range(first, _HOUR_MIN, _EVERY_MIN))
    words = argv(needs)
    if needs.environment:
        words = ("env", *(f"{name}={value}" for name, value in needs.environment), *words)
    user = "" if is_user else " root"
    return f"{minutes} * * * *{user} {quoting.cron_command(words)} >/dev/null 2>&1"
