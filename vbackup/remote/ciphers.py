"""Which cipher the connection is to have: AES-GCM before the one that ssh would take, unless the user has chosen.

OpenSSH puts chacha20-poly1305 first, which is quick on every processor. One with instructions for AES takes far less
time for AES-GCM, and the data of a full backup is encrypted and decrypted once. The server's own order does not count,
and one that has no AES-GCM gets the first of the others.
"""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path, PurePath

from vbackup.remote import command
from vbackup.remote.address import Address

log = logging.getLogger(__name__)

_QUICK = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_CPUINFO = Path("/proc/cpuinfo")
#: How long ssh may take to say how it is configured, in seconds; it runs what ``Match exec`` names.
_LIMIT_S = 10.0


def preferred(address: Address) -> str | None:
    """Return the ciphers for a connection, as ``Ciphers`` of ssh_config(5) has them; None leaves them to ssh.

    That is so if the user, or the distribution, has another list than OpenSSH's own, the processor has no instructions
    for AES, or the program is another one than ssh.
    """
    if PurePath(address.command).name != "ssh" or not _has_aes():
        return None
    chosen = _ciphers(command.settings(address))
    if not chosen or chosen != _ciphers(command.settings(address, is_default=True)):
        return None
    return ",".join(quick_first(chosen))


def quick_first(ciphers: list[str]) -> list[str]:
    """Return the same ciphers with AES-GCM first.

    (``^`` in front of names does that too, but not before OpenSSH 8.0.)
    """
    quick = [name for name in _QUICK if name in ciphers]
    return quick + [name for name in ciphers if name not in quick]


def _ciphers(argv: list[str]) -> list[str]:
    """Return the ciphers that ssh would offer; [] if it does not say."""
    value = configured(argv).get("ciphers")
    return [] if value is None else value.split(",")


def configured(argv: list[str]) -> dict[str, str]:
    """Return what ``command.settings`` prints, by keyword in lower case; nothing if it fails."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_LIMIT_S
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as err:
        log.debug("%s", err)
        return {}
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def _has_aes() -> bool:
    """Return True if the processor has instructions for AES: a flag of x86, a feature of ARM."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = (line.partition(":") for line in lines)
    return any("aes" in value.split() for name, _, value in flags if name.strip() in ("flags", "Features"))
