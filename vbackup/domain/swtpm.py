"""Give libvirt the state of a restored TPM: where it looks for it, with the owner that its swtpm has."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from vbackup import files
from vbackup.errors import StorageError
from vbackup.files import storage_errors

#: The user and the group that libvirt runs swtpm as if its configuration names none, root where there is no such user
#: (virQEMUDriverConfigNew).
DEFAULT = "tss"
#: The configuration of the system's QEMU driver.
CONFIGURATION = "/etc/libvirt/qemu.conf"
#: More than any file of a TPM's state has.
_MAX_BYTES = 128 * 1024 * 1024
_SETTING = re.compile(r'\s*(swtpm_user|swtpm_group)\s*=\s*"([^"]*)"')


def owner(uri: str) -> tuple[int, int] | None:
    """Return the uid and gid of libvirt's swtpm at this URI; None if files belong to whoever runs vbackup, and stay."""
    if os.geteuid() != 0 or urlsplit(uri).path == "/session":
        return None
    named = settings(_text(_configuration(uri)))
    return (
        _id(named.get("swtpm_user", DEFAULT), lambda name: pwd.getpwnam(name).pw_uid),
        _id(named.get("swtpm_group", DEFAULT), lambda name: grp.getgrnam(name).gr_gid),
    )


def _configuration(uri: str) -> Path:
    root = parse_qs(urlsplit(uri).query).get("root", ["/"])[0] if urlsplit(uri).path == "/embed" else None
    return Path(CONFIGURATION) if root is None else Path(root, "etc/qemu.conf")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""  # libvirt does without, too


def settings(text: str) -> dict[str, str]:
    """Return swtpm_user and swtpm_group of the configuration of libvirt's QEMU driver, as far as it names them."""
    return {match[1]: match[2] for match in map(_SETTING.match, text.splitlines()) if match}


def _id(name: str, look_up: Callable[[str], int]) -> int:
    """Return the number of a user or group, which can be given as "+64055" (virGetUserID)."""
    if re.fullmatch(r"\+?[0-9]+", name):
        return int(name)
    try:
        return look_up(name)
    except KeyError:
        return 0


def give(directory: Path, to: tuple[int, int] | None) -> None:
    """Give a directory with all that is in it to this user and group. Raises StorageError."""
    if to is None:
        return
    with storage_errors(f"change the owner of {directory}"):
        for path in (directory, *directory.rglob("*")):
            os.chown(path, *to, follow_symlinks=False)


def install(state: Path, place: Path, to: tuple[int, int] | None) -> None:
    """Copy a directory with the state of a TPM to ``place``, which does not exist: all of it or nothing.

    The directories above, which others enter on their way, are made like libvirt makes them. Raises StorageError,
    NoSpaceError.
    """
    refuse_existing(place)
    made = place.with_name(f".{place.name}.vbackup")
    with storage_errors(f"write {place}"):
        missing = [parent for parent in place.parents if not parent.exists()]
        try:
            for directory in reversed(missing):
                directory.mkdir(exist_ok=True)
                directory.chmod(0o711)  # whatever the umask is
            shutil.rmtree(made, ignore_errors=True)
            _copy(state, made)
            give(made, to)
            for path in (*made.rglob("*"), made):
                files.fsync(path)
            made = made.rename(place)
            for directory in (place.parent, *(one.parent for one in missing)):
                files.fsync(directory)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            remove_empty(missing)
            raise


def _copy(source: Path, target: Path) -> None:
    """Copy a directory of regular files and such directories. Raises OSError."""
    target.mkdir(mode=0o700)
    for path in source.iterdir():
        if files.is_directory(path):
            _copy(path, target / path.name)
        else:
            files.write_new(target / path.name, files.read_regular(path, max_bytes=_MAX_BYTES))


def remove(place: Path) -> None:
    """Remove what ``install`` has made."""
    shutil.rmtree(place, ignore_errors=True)
    remove_empty([place.parent])


def remove_empty(directories: list[Path]) -> None:
    """Remove these directories, the innermost first, up to one that is not empty."""
    with suppress(OSError):
        for directory in directories:
            directory.rmdir()


def refuse_existing(place: Path) -> None:
    """Raise StorageError if there is a state of a TPM already."""
    with storage_errors(f"read {place}"):
        if os.path.lexists(place):
            raise StorageError(
                f"{place} already exists, the state of a TPM that a domain of this UUID had, and vbackup never"
                " overwrites files: move it away."
            )
