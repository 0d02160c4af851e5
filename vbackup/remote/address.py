"""Where ssh finds a hypervisor: a libvirt URI such as qemu+ssh://root@hv1:2222/system?keyfile=/root/.ssh/backup.

libvirt opens its own connection from the same URI, so both mean the same host, user, port and key.
https://libvirt.org/uri.html#ssh-transport
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from vbackup.errors import UsageError

#: libvirt's transports over SSH. libssh and libssh2 are libraries; the user's ssh reaches the same hosts.
_TRANSPORTS = frozenset(("ssh", "libssh", "libssh2"))
#: known_hosts_verify of libssh and libssh2, as StrictHostKeyChecking.
_VERIFY = {"normal": "yes", "auto": "accept-new", "ignore": "no"}


@dataclass(frozen=True)
class Address:
    """A hypervisor, and the libvirt on it."""

    host: str  #: name or address, an IPv6 address without brackets
    libvirt: str  #: the URI of its libvirt there: qemu:///system
    user: str | None = None
    port: int | None = None
    keyfile: str | None = None
    command: str = "ssh"  #: the program
    known_hosts: str | None = None
    host_keys: str | None = None  #: StrictHostKeyChecking; None: as ssh is configured

    @property
    def place(self) -> str:
        """What the hypervisor is called in messages and in a command line of ssh."""
        return self.host if self.user is None else f"{self.user}@{self.host}"


def parse(uri: str) -> Address | None:
    """Return where ssh finds the host of a libvirt URI; None if the URI is of another transport or names no host.

    Raises UsageError for a port that is none.
    """
    parts = urlsplit(uri)
    driver, _, transport = parts.scheme.partition("+")
    if transport not in _TRANSPORTS or not parts.hostname:
        return None
    try:
        port = parts.port
    except ValueError as err:
        raise UsageError(f"The URI {uri} has no valid port ({err}).") from err
    parameters = dict(parse_qsl(parts.query))
    verify = "no" if parameters.get("no_verify", "0") != "0" else _VERIFY.get(parameters.get("known_hosts_verify", ""))
    return Address(
        host=_host(parts.netloc),
        libvirt=f"{driver}://{parts.path or '/system'}",
        user=unquote(parts.username) if parts.username else None,
        port=port,
        keyfile=parameters.get("keyfile"),
        command=parameters.get("command", "ssh"),
        known_hosts=parameters.get("known_hosts"),
        host_keys=verify,
    )


def _host(netloc: str) -> str:
    """Return the host as it is written: urlsplit makes it lower-case, and ``Host`` in ssh_config heeds the case."""
    host = netloc.rpartition("@")[2]
    if host.startswith("["):
        return unquote(host[1:].partition("]")[0])
    return unquote(host.partition(":")[0])
