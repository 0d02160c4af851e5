"""Bring the restored state of an emulated TPM to where libvirt on another host looks for it, through the link."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from vbackup.domain import qemu_user, swtpm
from vbackup.domain.host import Host
from vbackup.errors import RemoteError, StorageError
from vbackup.remote.link import Link

#: No configuration of libvirt is longer.
_MAX_BYTES = 1024 * 1024


def refuse_existing(place: Path, is_missing: Callable[[str | Path], bool], link: Link) -> None:
    """Raise StorageError if that host has a state of a TPM there."""
    if not is_missing(place):
        raise StorageError(
            f"{place} already exists on {link.host}, the state of a TPM that a domain of this UUID had, and vbackup"
            " never overwrites files: move it away."
        )


def stage(link: Link, place: Path) -> Path:
    """Return where the state is written before it gets its place; that goes with the link, and so do new directories.

    Raises RemoteError, LinkLostError.
    """
    return Path(link.stage(os.fspath(place.parent))) / place.name


def give(link: Link, host: Host, directory: Path) -> None:
    """Give a directory there, with all that is in it, to the user of libvirt's swtpm. Raises RemoteError.

    A user of the link who is not root has a libvirt whose swtpm runs as the same user.
    """
    if link.hello.get("uid") != 0 or urlsplit(host.real_uri).path == "/session":
        return
    named = swtpm.settings(_configuration(link))
    user, group = (named.get(name, swtpm.DEFAULT) for name in ("swtpm_user", "swtpm_group"))
    # Where there is no such user, libvirt takes root (virQEMUDriverConfigNew).
    uid, gid = (
        qemu_user.number_there(link, database, name) or 0 for database, name in (("passwd", user), ("group", group))
    )
    link.run(["chown", "-R", f"{uid}:{gid}", "--", os.fspath(directory)])


def _configuration(link: Link) -> str:
    """Return libvirt's configuration there, nothing if it cannot be read: libvirt does without, too."""
    found = bytearray()
    with suppress(RemoteError):
        for piece in link.read_file(swtpm.CONFIGURATION):
            found += piece
            if len(found) > _MAX_BYTES:
                break
    return found.decode(errors="replace")
