"""Say why QEMU may not write an image: file modes, SELinux or AppArmor, and what to do about it.

All three end in the same "Permission denied". What is known of the file and of QEMU's process tells them
apart; vbackup.images.denied_facts gathers it.
"""

from __future__ import annotations

import shlex
import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class User:
    """Whom QEMU runs as."""

    name: str
    uid: int
    groups: frozenset[int]  #: the main one included

    def may(self, place: Place, wanted: int) -> bool:
        """True if the mode grants ``wanted`` (4 read, 2 write, 1 enter): the first class that fits decides."""
        shift = 6 if place.uid == self.uid else 3 if place.gid in self.groups else 0
        return place.mode >> shift & wanted == wanted


@dataclass(frozen=True)
class Place:
    """The image, or a directory on the way to it."""

    path: str
    mode: int  #: st_mode
    uid: int
    gid: int
    owner: str
    has_acl: bool = False  #: then the mode alone decides nothing


@dataclass(frozen=True)
class Facts:
    """What is known of a refusal."""

    path: str
    repository: str
    by_descriptor: bool  #: QEMU was handed the open file; modes and owners play no part then
    places: tuple[Place, ...] = ()  #: from the root down to the image, as far as they can be seen here
    user: User | None = None
    apparmor_profile: str | None = None  #: that confines QEMU
    selinux_context: str | None = None  #: that confines QEMU
    file_context: str | None = None  #: SELinux' label of the image


def explain(facts: Facts) -> str:
    """Who refused, by what is known, and the way out: one message for the administrator."""
    how = (
        "although it was handed the open file"
        if facts.by_descriptor
        else "descriptors cannot be passed over this connection, so QEMU opens the image by its path as its own user"
    )
    barrier = None if facts.by_descriptor or facts.user is None else _barrier(facts.places, facts.user)
    if barrier is not None:
        assert facts.user is not None
        why = _by_mode(barrier, facts.user)
    elif facts.selinux_context is not None:
        why = _by_selinux(facts, facts.selinux_context)
    elif facts.apparmor_profile is not None:
        why = _by_apparmor(facts, facts.apparmor_profile)
    else:
        why = _by_somebody(facts)
    return f"QEMU may not write {facts.path}: {how}. {why}"


def _barrier(places: tuple[Place, ...], user: User) -> Place | None:
    """The first place that the user cannot pass by its mode."""
    for place in places:
        wanted = 1 if stat.S_ISDIR(place.mode) else 6
        if not place.has_acl and not user.may(place, wanted):
            return place
    return None


#: Every new image is its maker's alone (mode 0600), so letting the user into the directories is not enough.
_WITHOUT_RIGHTS = "Run vbackup on the host itself, where QEMU gets a descriptor and needs no rights"


def _by_mode(barrier: Place, user: User) -> str:
    what = "enter the directory" if stat.S_ISDIR(barrier.mode) else "read and write"
    mode = stat.S_IMODE(barrier.mode)
    return (
        f"It runs as user {user.name}, who may not {what} {barrier.path} (owner {barrier.owner}, mode {mode:04o})."
        f" {_WITHOUT_RIGHTS}, or as {user.name} with a repository of that user's own."
    )


def _by_selinux(facts: Facts, context: str) -> str:
    label = f"has the label {facts.file_context}" if facts.file_context else "has no label that can be read here"
    pattern = shlex.quote(f"{facts.repository}(/.*)?")
    return (
        f"SELinux refuses it, as far as can be told: QEMU runs as {context}, and the image {label}. Give the repository"
        f" a label that QEMU may write: semanage fcontext -a -t svirt_image_t {pattern} && restorecon -R"
        f" {shlex.quote(facts.repository)}. 'ausearch -m avc -ts recent' shows what was refused."
    )


def _by_apparmor(facts: Facts, profile: str) -> str:
    return (
        f"AppArmor refuses it, as far as can be told: the profile {profile} of the domain does not allow it. Add the"
        f' line "{facts.repository}/**" rwk, to /etc/apparmor.d/local/abstractions/libvirt-qemu, and load it with'
        f" apparmor_parser -r /etc/apparmor.d/libvirt/{profile}. The kernel's log shows what was refused"
        ' (apparmor="DENIED").'
    )


def _by_somebody(facts: Facts) -> str:
    unsure = [place.path for place in facts.places if place.has_acl]
    acl = f" Look at the ACL of {', '.join(unsure)}." if unsure and not facts.by_descriptor else ""
    if facts.by_descriptor:
        return "Neither SELinux nor AppArmor confines this domain, says libvirt; the log of the kernel may tell more."
    who = f"user {facts.user.name}" if facts.user is not None else "that user"
    return (
        f"No file mode seen from here forbids it to {who}, nor does libvirt tell of SELinux or AppArmor; look at the"
        f" host of QEMU.{acl} {_WITHOUT_RIGHTS}, or let {who} reach the repository."
    )
