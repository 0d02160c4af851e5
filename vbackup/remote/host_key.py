"""Read what ssh says of a host key that is not the one it knows: a banner, of which one sentence is needed.

It is in what ssh prints for vbackup, and in the error of libvirt, which has run ssh, too (sshconnect.c of OpenSSH,
check_host_key; "REMOTE HOST IDENTIFICATION HAS CHANGED").
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath

from vbackup.remote import ciphers, command
from vbackup.remote.address import Address

_CHANGED = re.compile(r"host key for (\S+) has changed and you have requested strict checking", re.IGNORECASE)
_OFFENDING = re.compile(r"Offending (?:key for IP|(\S+) key) in (.+?):(\d+)\s*$", re.MULTILINE)
_SENT = re.compile(r"key sent by the remote host is\s+(\S+?)\.?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class ChangedKey:
    """A host key that is not the one in known_hosts."""

    host: str  #: as ssh has it in known_hosts: hv1, or [hv1]:2222
    kind: str | None  #: of the key that ssh knows: ED25519
    file: str | None  #: that has it
    line: str | None  #: in that file
    sent: str | None  #: fingerprint of the key that the host has

    @property
    def reason(self) -> str:
        """What is wrong, as a clause."""
        kind = "" if self.kind is None else f"{self.kind} "
        where = "" if self.file is None else f" ({self.file}, line {self.line})"
        sent = "" if self.sent is None else f": it has sent {self.sent}"
        return f"the host key of {self.host} is not the {kind}key that ssh knows{where}{sent}"

    @property
    def remedy(self) -> str:
        """What to do, as sentences."""
        file = [] if self.file is None else ["-f", self.file]
        forget = shlex.join(["ssh-keygen", *file, "-R", self.host])
        return (
            "Somebody may be in the place of the host. Ask its administrator whether that is its key now; only if it"
            f" is, '{forget}' forgets the old one."
        )


def changed(said: str, address: Address) -> ChangedKey | None:
    """Return what ssh says of a changed key of this host; None if its words are about something else.

    The words can be those of a login on the host, which prints what it likes, such as the banner of another one.
    """
    found = _CHANGED.search(said)
    if found is None or found[1].lower() not in _names(address):
        return None
    offending, sent = _OFFENDING.search(said), _SENT.search(said)
    kind, file, line = (None, None, None) if offending is None else offending.groups()
    return ChangedKey(found[1], kind, file, line, None if sent is None else sent[1])


def _names(address: Address) -> Collection[str]:
    """Return what ssh may call the host in known_hosts, in lower case (get_hostfile_hostname_ipaddr)."""
    is_ssh = PurePath(address.command).name == "ssh"
    found = ciphers.configured(command.settings(address)) if is_ssh else {}
    hosts = {address.host, found.get("hostname", address.host)}
    ports = {str(address.port or ""), found.get("port", "")} - {""}
    names = hosts | {f"[{host}]:{port}" for host in hosts for port in ports} | {found.get("hostkeyalias", "")}
    return {name.lower() for name in names}
