"""Domains of several hosts that have the same UUID: one that has migrated, or two machines of which one is a copy.

libvirt keeps the definition of a domain on the host that it left unless the migration was asked to undefine it. What
runs is the machine then, and what is off is a leftover. Two that run are two machines, since a QEMU that has migrated
ends. Of several that are off nothing tells which is the machine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from vbackup.domain import standby_xml
from vbackup.domain.host import Host
from vbackup.errors import DomainNotFoundError, MigratingError, SameUuidError, VbackupError

log = logging.getLogger(__name__)


class State(Enum):
    """What a host does with its domain of that UUID."""

    RUNNING = auto()
    ARRIVING = auto()  #: it waits for the end of a migration to this host
    OFF = auto()
    GONE = auto()  #: since the domains were listed
    STANDBY = auto()  #: it is a standby of the machine, and has not taken over


@dataclass(frozen=True)
class Twin:
    """A domain whose UUID other hosts have, too."""

    name: str
    uuid: str
    host: str  #: what people call the host
    state: State
    has_taken_over: bool = False  #: it is a standby of the machine, which 'vbackup failover' has let take over


@dataclass(frozen=True)
class Verdict:
    """What is done about a twin: it is backed up if there is neither a reason to leave it out nor an error."""

    left_out: str | None = None  #: the reason
    error: SameUuidError | None = None


def state(host: Host, uuid: str) -> State:
    """Return the state of a domain. One that cannot be examined counts as running: its backup says what is wrong."""
    try:
        handle = host.domain(uuid)
        if standby_xml.waits(handle.live_xml()):
            return State.STANDBY
        if not handle.is_active():
            return State.OFF
        handle.refuse_migration()
    except DomainNotFoundError:
        return State.GONE
    except MigratingError as err:
        return State.ARRIVING if err.incoming else State.RUNNING
    except VbackupError as err:
        log.debug("%s", err)
    return State.RUNNING


def has_taken_over(host: Host, uuid: str) -> bool:
    """Return True if a domain is a standby that has taken over; False also if it cannot be examined."""
    try:
        mark = standby_xml.read(host.domain(uuid).live_xml())
    except VbackupError as err:
        log.debug("%s", err)
        return False
    return mark is not None and mark.state is standby_xml.State.ACTIVE


def judge(twins: Sequence[Twin]) -> list[Verdict]:
    """Return what is done about each of the domains that have one UUID."""
    present = [twin for twin in twins if twin.state not in (State.GONE, State.STANDBY)]
    running = [twin for twin in present if twin.state is State.RUNNING]
    running = running or [twin for twin in present if twin.state is State.ARRIVING]
    if len(present) < 2:  # noqa: PLR2004
        return [Verdict(left_out=_reason(twin, [])) for twin in twins]
    if not running:
        standby = next((twin.host for twin in present if twin.has_taken_over), None)
        error = SameUuidError(twins[0].name, twins[0].uuid, [twin.host for twin in present], standby=standby)
        return [Verdict(error=error) if twin in present else Verdict(left_out=_reason(twin, [])) for twin in twins]
    return [Verdict(left_out=_reason(twin, running)) for twin in twins]


def _reason(twin: Twin, running: Sequence[Twin]) -> str | None:
    if twin.state is State.STANDBY:
        return "it is a standby here, and has not taken over"
    if twin in running or twin.state is State.GONE or not running:
        return None
    where = " and ".join(other.host for other in running)
    if twin.state is State.ARRIVING:
        return f"it is migrating to this host from {where}"
    if twin.has_taken_over:
        return f"it is a standby that has taken over, but is off here, and the original runs on {where}"
    if any(other.has_taken_over for other in running):
        return f"it is off here, and its standby on {where} has taken over"
    return (
        f"it is off here and runs on {where}: a migration has left this definition, or it is a copy, which needs a new"
        " UUID to be backed up"
    )


def remark(twins: Sequence[Twin]) -> str | None:
    """Return what the user should know of several machines that run with one UUID; None if it is one machine."""
    running = [twin.host for twin in twins if twin.state is State.RUNNING]
    if len(running) < 2:  # noqa: PLR2004
        return None
    standby = next((twin.host for twin in twins if twin.state is State.RUNNING and twin.has_taken_over), None)
    if standby is not None:
        return (
            f"Domain {twins[0].name} runs on {' and '.join(running)}: its standby on {standby} has taken over, but the"
            " original runs, too. Each is backed up, one after the other; 'vbackup restore' needs --host to tell them"
            " apart. Shut one of them down: what the original writes is lost with 'vbackup failback'."
        )
    return (
        f"Domain {twins[0].name} runs on {' and '.join(running)} with the same UUID, {twins[0].uuid}: these are"
        f" {len(running)} machines. Each is backed up, one after the other, and starts from the backups of its own host"
        " only; 'vbackup restore' needs --host to tell them apart. It is better to give the copy a new UUID."
    )
