"""Gather the facts about an image that QEMU may not write; vbackup.images.denied draws the conclusion.

The facts are those of this host. If QEMU runs on another host, the same storage usually has the same modes there.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vbackup.domain import qemu_user
from vbackup.errors import MalformedError
from vbackup.images.denied import Facts, Place, User
from vbackup.model import SecurityLabel
from vbackup.repository.repository import MARKER

_ACL = "system.posix_acl_access"
_SELINUX = "security.selinux"


def gather(path: Path, labels: Sequence[SecurityLabel], *, by_descriptor: bool) -> Facts:
    """Return the facts about the image at ``path``; what cannot be determined stays None or empty.

    ``labels`` are the security labels of the domain's QEMU. ``by_descriptor`` says that QEMU got the open file.
    """
    by_model = {label.model: label.label for label in labels}
    return Facts(
        path=os.fspath(path),
        repository=os.fspath(next((parent for parent in path.parents if (parent / MARKER).exists()), path.parent)),
        by_descriptor=by_descriptor,
        places=_places(path),
        user=_user(by_model["dac"]) if "dac" in by_model else None,
        apparmor_profile=by_model.get("apparmor"),
        selinux_context=by_model.get("selinux"),
        file_context=_attribute(path, _SELINUX),
    )


def _places(path: Path) -> tuple[Place, ...]:
    places = []
    for place in (*reversed(path.parents), path):
        try:
            status = place.stat()
        except OSError:
            break
        places.append(
            Place(
                path=os.fspath(place),
                mode=status.st_mode,
                uid=status.st_uid,
                gid=status.st_gid,
                owner=_user_name(status.st_uid),
                has_acl=_attribute(place, _ACL) is not None,
            )
        )
    return tuple(places)


def _user(label: str) -> User | None:
    """Return the user in libvirt's DAC label, None if this host does not have it."""
    try:
        found = qemu_user.parse(label)
    except MalformedError:
        return None  # a user of another host
    groups = {found.gid}
    with suppress(KeyError, OSError):
        # libvirt does the same when it starts QEMU (virGetGroupList).
        groups.update(os.getgrouplist(pwd.getpwuid(found.uid).pw_name, found.gid))
    return User(_user_name(found.uid), found.uid, frozenset(groups))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _attribute(path: Path, name: str) -> str | None:
    try:
        return os.getxattr(path, name).rstrip(b"\0").decode(errors="replace")
    except OSError:
        return None  # not set, or not supported by the filesystem
