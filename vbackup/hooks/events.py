"""Read when a domain started and ended, from the log that the hook script keeps of it.

    /var/lib/vbackup/events/<domain uuid>.log    one JSON object a line, the newest last, 64 KiB at most

Where the script is not installed, or this user may not read the log, there are no events. Nothing is decided by them:
they give the reason for what is found in QEMU, a bitmap that is gone or a process that is another.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

from vbackup import names
from vbackup.errors import MalformedError
from vbackup.fields import Fields

log = logging.getLogger(__name__)

#: As in the hook script.
DIRECTORY = Path("/var/lib/vbackup/events")
#: Twice as much as the script keeps.
LIMIT_BYTES = 128 * 1024


class Operation(Enum):
    """What libvirt called its hook for (https://libvirt.org/hooks.html)."""

    RESTORE = "restore"  #: from a file that ``virsh save`` or ``managedsave`` wrote; prepare follows
    MIGRATE = "migrate"  #: from another host; prepare follows
    PREPARE = "prepare"  #: first of a start; libvirt has touched nothing yet
    START = "start"  #: QEMU is about to be started
    STARTED = "started"  #: QEMU runs
    STOPPED = "stopped"  #: QEMU has ended: shut down, destroyed, saved, killed or not even started
    RELEASE = "release"  #: last of an end
    RECONNECT = "reconnect"  #: libvirtd was started and found the domain running
    ATTACH = "attach"  #: libvirt took over a QEMU that somebody else had started


@dataclass(frozen=True)
class Event:
    """One call of the hook."""

    time: datetime
    operation: Operation
    sub: str  #: begin or end, as libvirt says it
    extra: str  #: a dash where libvirt had nothing to add
    domain_name: str
    boot_id: str  #: /proc/sys/kernel/random/boot_id at that time
    refused: bool  #: the hook refused the start, because of an offline backup


def events(uuid: str) -> tuple[Event, ...]:
    """What is known of domain ``uuid``, the oldest first."""
    assert names.UUID.fullmatch(uuid)  # it is libvirt's own
    path = DIRECTORY / f"{uuid}.log"
    try:
        lines = _tail(path).split(b"\n")
    except OSError as err:
        log.debug("no events of domain %s: %s", uuid, err)
        return ()
    found = (_event(line) for line in lines if line)
    return tuple(event for event in found if event is not None)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - LIMIT_BYTES))
        return file.read(LIMIT_BYTES)


def _event(line: bytes) -> Event | None:
    """None for a line that was torn, that somebody else wrote, or of an operation that libvirt has got since."""
    try:
        fields = Fields(json.loads(line), "event", MalformedError)
        return Event(
            time=datetime.fromtimestamp(fields.number("time"), timezone.utc),
            operation=Operation(fields.text("operation")),
            sub=fields.text("sub"),
            extra=fields.text("extra"),
            domain_name=fields.text("name"),
            boot_id=fields.text("boot_id"),
            refused=fields.boolean("refused"),
        )
    except (ValueError, RecursionError, OverflowError, OSError, MalformedError) as err:
        log.debug("a line that is no event: %s", err)
        return None
