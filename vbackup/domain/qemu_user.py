"""Tell as which user a domain's QEMU runs: sockets and images have to be given to it."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbackup.errors import MalformedError, RemoteError
from vbackup.model import SecurityLabel

if TYPE_CHECKING:
    from vbackup.remote.link import Link


@dataclass(frozen=True)
class QemuUser:
    """Whom a QEMU process runs as."""

    uid: int
    gid: int


def of(labels: Iterable[SecurityLabel]) -> QemuUser:
    """Return whom the QEMU of a domain runs as.

    ``labels``: of the domain's definition, and then those of the host (vbackup.domain.defining.of); the first of the
    DAC driver decides. A driver without the DAC model runs QEMU as its own user, which is this process's. Raises
    MalformedError if this host has no such user.
    """
    label = next((one.label for one in labels if one.model == "dac" and one.label.strip()), None)
    return QemuUser(os.geteuid(), os.getegid()) if label is None else parse(label)


def parse(label: str) -> QemuUser:
    """Return the user in libvirt's DAC label: ``+64055:+109``, or names instead of the numbers.

    Raises MalformedError if this host has no such user or group.
    """
    user, _, group = label.strip().partition(":")
    try:
        uid = int(user) if is_number(user) else pwd.getpwnam(user).pw_uid
        gid = int(group) if is_number(group) else grp.getgrnam(group).gr_gid
    except KeyError as err:
        raise MalformedError(f"libvirt runs QEMU as {label!r}, but this host has no such user or group.") from err
    return QemuUser(uid, gid)


def is_number(word: str) -> bool:
    """Return True if a label has a number in the place of a name."""
    return word.removeprefix("+").isdecimal()


def there(link: Link, labels: Iterable[SecurityLabel]) -> QemuUser:
    """Return whom the QEMU of a domain runs as, on another host: as ``of``, by the names that host has.

    Without a label, QEMU runs as the user of the link. Raises MalformedError, RemoteError, LinkLostError.
    """
    label = next((one.label.strip() for one in labels if one.model == "dac" and one.label.strip()), None)
    if label is None:
        return QemuUser(_link_uid(link), -1)
    user, _, group = label.partition(":")
    uid, gid = (_number_of(link, database, name) for database, name in (("passwd", user), ("group", group)))
    return QemuUser(uid, gid)


def _link_uid(link: Link) -> int:
    """Return the id of the user of the link. Raises RemoteError."""
    uid = link.hello.get("uid")
    if type(uid) is not int:
        raise RemoteError(link.host, "find out its user", f"it says {uid!r:.100}")
    return uid


def _number_of(link: Link, database: str, name: str) -> int:
    number = number_there(link, database, name)
    if number is None:
        raise MalformedError(f"libvirt runs QEMU as {name!r}, which {link.host} does not know ({database}).")
    return number


def number_there(link: Link, database: str, name: str) -> int | None:
    """Return the id of a user or group (``passwd`` or ``group``) of another host, or the number that the name is.

    None if that host has none of that name. Raises RemoteError, LinkLostError.
    """
    if is_number(name):
        return int(name)
    found = link.try_run(["getent", database, name]).stdout.decode(errors="replace")
    number = ":".join(found.split(":")[2:3])
    return int(number) if number.isdecimal() else None
