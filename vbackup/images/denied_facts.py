"""Gather what tells why QEMU may not write an image; vbackup.images.denied draws the conclusion.

Seen from this host: where QEMU runs on another one, the same storage has the same modes as a rule.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vbackup.images.denied import Facts, Place, User
from vbackup.model import SecurityLabel
from vbackup.repository.repository import MARKER

_ACL = "system.posix_acl_access"
_SELINUX = "security.selinux"


def gather(path: Path, labels: Sequence[SecurityLabel], *, by_descriptor: bool) -> Facts:
    """The facts of a refused image; what cannot be found out is left open."""
    by_model = {one.model: one.label for one in labels}
    return Facts(
        path=os.fspath(path),
        repository=os.fspath(next((one for one in path.parents if (one / MARKER).exists()), path.parent)),
        by_descriptor=by_descriptor,
        places=_places(path),
        user=_user(by_model["dac"]) if "dac" in by_model else None,
        apparmor_profile=by_model.get("apparmor"),
        selinux_context=by_model.get("selinux"),
        file_context=_attribute(path, _SELINUX),
    )


def _places(path: Path) -> tuple[Place, ...]:
    found = []
    for one in (*reversed(path.parents), path):
        try:
            seen = one.stat()
        except OSError:
            break
        found.append(
            Place(
                path=os.fspath(one),
                mode=seen.st_mode,
                uid=seen.st_uid,
                gid=seen.st_gid,
                owner=_user_name(seen.st_uid),
                has_acl=_attribute(one, _ACL) is not None,
            )
        )
    return tuple(found)


def _user(label: str) -> User | None:
    """Of libvirt's DAC label: ``+64055:+109``, or names in place of the numbers."""
    user, _, group = label.partition(":")
    try:
        uid = int(user) if user.startswith("+") else pwd.getpwnam(user).pw_uid
        gid = int(group) if group.startswith("+") else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        return None  # a user of another host
    groups = {gid}
    with suppress(KeyError, OSError):
        # As libvirt does when it starts QEMU (virGetGroupList).
        groups.update(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    return User(_user_name(uid), uid, frozenset(groups))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _attribute(path: Path, name: str) -> str | None:
    try:
        return os.getxattr(path, name).rstrip(b"\0").decode(errors="replace")
    except OSError:
        return None  # there is none, or the file system has none
