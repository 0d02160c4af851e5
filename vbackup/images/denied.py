"""Explain why QEMU may not write an image: file modes, SELinux or AppArmor, and what to do about it.

All three cause the same "Permission denied". The facts about the file and the QEMU process, which
vbackup.images.denied_facts gathers, show which one it is.
"""

from __future__ import annotations

import shlex
import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class User:
    """The user that QEMU runs as."""

    name: str
    uid: int
    groups: frozenset[int]  #: group ids, including the primary group

    def may(self, place: Place, wanted: int) -> bool:
        """Return True if the mode grants the bits ``wanted`` (4 read, 2 write, 1 enter).

        As in the kernel, the first class that applies decides: owner, group, others.
        """
        shift = 6 if place.uid == self.uid else 3 if place.gid in self.groups else 0
        return place.mode >> shift & wanted == wanted


@dataclass(frozen=True)
class Place:
    """The image, or a directory on its path."""

    path: str
    mode: int  #: st_mode
    uid: int
    gid: int
    owner: str
    has_acl: bool = False  #: the mode alone does not decide


@dataclass(frozen=True)
class Facts:
    """What is known about a refused write."""

    path: str
    repository: str
    by_descriptor: bool  #: QEMU got the open file, so modes and owners do not matter
    places: tuple[Place, ...] = ()  #: from the root directory to the image, as far as this process can see them
    user: User | None = None
    apparmor_profile: str | None = None  #: of QEMU
    selinux_context: str | None = None  #: of QEMU
    file_context: str | None = None  #: SELinux label of the image


def explain(facts: Facts) -> str:
    """Return a message for the administrator: what most likely refused the write, and the remedy."""
    how = (
        "although it was given the open file"
        if facts.by_descriptor
        else "this connection cannot carry file descriptors, so QEMU opens the image by its path as its own user"
    )
    barrier = None if facts.by_descriptor else first_barrier(facts)
    if barrier is not None:
        assert facts.user is not None
        why = _by_mode(barrier, facts.user)
    elif facts.selinux_context is not None:
        why = _by_selinux(facts, facts.selinux_context)
    elif facts.apparmor_profile is not None:
        why = _by_apparmor(facts, facts.apparmor_profile)
    else:
        why = _by_unknown(facts)
    return f"QEMU may not write {facts.path}: {how}. {why}"


def first_barrier(facts: Facts) -> Place | None:
    """Return the first place whose mode stops the user, or None if there is none or the user is not known."""
    user = facts.user
    for place in facts.places:
        wanted = 1 if stat.S_ISDIR(place.mode) else 6
        if user is not None and not place.has_acl and not user.may(place, wanted):
            return place
    return None


#: New images are accessible only to their owner (mode 0600), so access to the directories is not enough.
_WITHOUT_RIGHTS = "Run vbackup on the host itself, where QEMU gets a descriptor and needs no rights"


def _by_mode(barrier: Place, user: User) -> str:
    what = "enter the directory" if stat.S_ISDIR(barrier.mode) else "read and write"
    mode = stat.S_IMODE(barrier.mode)
    return (
        f"It runs as user {user.name}, who may not {what} {barrier.path} (owner {barrier.owner}, mode {mode:04o})."
        f" {_WITHOUT_RIGHTS}, or as {user.name} with a repository that this user owns."
    )


def _by_selinux(facts: Facts, context: str) -> str:
    label = f"has the label {facts.file_context}" if facts.file_context else "has no label that vbackup can read"
    pattern = shlex.quote(f"{facts.repository}(/.*)?")
    return (
        f"SELinux probably refuses it: QEMU runs as {context}, and the image {label}. Give the repository a label that"
        f" QEMU may write: semanage fcontext -a -t svirt_image_t {pattern} && restorecon -R"
        f" {shlex.quote(facts.repository)}. 'ausearch -m avc -ts recent' shows what was refused."
    )


def _by_apparmor(facts: Facts, profile: str) -> str:
    return (
        f"AppArmor probably refuses it: the domain's profile {profile} does not allow it. Add the line"
        f' "{facts.repository}/**" rwk, to /etc/apparmor.d/local/abstractions/libvirt-qemu, and load it with'
        f" apparmor_parser -r /etc/apparmor.d/libvirt/{profile}. The kernel log shows what was refused"
        ' (apparmor="DENIED").'
    )


def _by_unknown(facts: Facts) -> str:
    unsure = [place.path for place in facts.places if place.has_acl]
    acl = f" Check the ACL of {', '.join(unsure)}." if unsure and not facts.by_descriptor else ""
    if facts.by_descriptor:
        return "libvirt reports neither SELinux nor AppArmor for this domain; the kernel log may show more."
    who = f"user {facts.user.name}" if facts.user is not None else "that user"
    return (
        f"No file mode that vbackup can see stops {who}, and libvirt reports neither SELinux nor AppArmor; check the"
        f" host of QEMU.{acl} {_WITHOUT_RIGHTS}, or give {who} access to the repository."
    )
