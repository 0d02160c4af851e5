"""Read when a domain started and ended, from the log that the hook script writes.

    /var/lib/vbackup/events/<domain uuid>.log    one JSON object per line, the newest last, at most 64 KiB

Without the script, or if this user may not read the log, there are no events. No decision depends on events: they
explain what is found in QEMU, such as a missing bitmap or another process.
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

#: The same as in the hook script.
DIRECTORY = Path("/var/lib/vbackup/events")
#: Twice what the script keeps.
LIMIT_BYTES = 128 * 1024


class Operation(Enum):
    """The operation for which libvirt ran the hook (https://libvirt.org/hooks.html)."""

    RESTORE = "restore"  #: from a file that ``virsh save`` or ``managedsave`` wrote; prepare follows
    MIGRATE = "migrate"  #: from another host; prepare follows
    PREPARE = "prepare"  #: a start begins; libvirt has changed nothing yet
    START = "start"  #: QEMU is about to be started
    STARTED = "started"  #: QEMU runs
    STOPPED = "stopped"  #: QEMU has ended: shut down, destroyed, saved, killed, or never started
    RELEASE = "release"  #: an end is complete
    RECONNECT = "reconnect"  #: libvirtd started and found the domain running
    ATTACH = "attach"  #: libvirt took over a QEMU that it had not started


@dataclass(frozen=True)
class Event:
    """One run of the hook."""

    time: datetime
    operation: Operation
    sub: str  #: begin or end, as libvirt passed it
    extra: str  #: a dash if libvirt passed nothing
    domain_name: str
    boot_id: str  #: /proc/sys/kernel/random/boot_id at that time
    refused: bool  #: the hook refused the start: the disks were in use by vbackup, or half restored


def events(uuid: str) -> tuple[Event, ...]:
    """Return the events of domain ``uuid`` that the log has, the oldest first."""
    assert names.UUID.fullmatch(uuid)  # libvirt made it
    path = DIRECTORY / f"{uuid}.log"
    try:
        lines = _tail(path).split(b"\n")
    except OSError as err:
        log.debug("no events of domain %s: %s", uuid, err)
        return ()
    parsed = (_event(line) for line in lines if line)
    return tuple(event for event in parsed if event is not None)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - LIMIT_BYTES))
        return file.read(LIMIT_BYTES)


def _event(line: bytes) -> Event | None:
    """Return the event, or None for a torn or foreign line, or an operation of a newer libvirt."""
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
        log.debug("a line that is not an event: %s", err)
        return None
