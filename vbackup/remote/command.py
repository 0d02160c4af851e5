"""Command lines of the user's own ssh: one connection, and sockets that are forwarded over it while it is there."""

from __future__ import annotations

import base64
import shlex
import zlib

from vbackup.remote.address import Address

#: How long ssh may take to connect, in seconds.
CONNECT_S = 15

_OPTIONS = {
    "BatchMode": "yes",  # no question: nobody may be there to answer
    "ConnectTimeout": str(CONNECT_S),
    "ExitOnForwardFailure": "yes",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "StreamLocalBindMask": "0177",
    "ControlPersist": "no",
    # What the user has configured for sessions at a terminal. A forwarding of theirs could be taken by one of those.
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    # The last lines of standard error are to be ssh's own words, and not a banner.
    "LogLevel": "ERROR",
}


def connection(address: Address, control: str, program: str, *, ciphers: str | None = None) -> list[str]:
    """Return the command line that runs a program there; ``control``: path of the control socket, which it makes.

    ``ciphers``: see vbackup.remote.ciphers.
    """
    chosen = {"ControlMaster": "yes", "ControlPath": control, **({} if ciphers is None else {"Ciphers": ciphers})}
    options = _options({**_OPTIONS, **chosen})
    return [address.command, *_access(address), *options, "-T", "-e", "none", "--", address.host, program]


def forwarding(
    address: Address, control: str, *, remote: str, local: str, to_remote: bool = False, ends: bool = False
) -> list[str]:
    """Return the command line that adds a forwarded socket to an open connection, or ``ends`` one.

    ``remote`` is made there and leads to ``local`` here; with ``to_remote`` it is the other way round.
    """
    sockets = ["-L", f"{local}:{remote}"] if to_remote else ["-R", f"{remote}:{local}"]
    return [*_control(address, control, "cancel" if ends else "forward"), *sockets, "--", address.host]


def _control(address: Address, control: str, order: str) -> list[str]:
    return [address.command, *_access(address), "-o", "LogLevel=ERROR", "-S", control, "-O", order]


def settings(address: Address, *, is_default: bool = False) -> list[str]:
    """Return the command line that prints how ssh is configured for the host; ``is_default``: by no file at all."""
    files = ["-F", "/dev/null"] if is_default else []
    return [address.command, "-G", *files, *_access(address), "--", address.host]


def by_hand(address: Address) -> str:
    """Return the command by which a user can try the same."""
    return shlex.join([address.command, *_access(address), "-o", "BatchMode=yes", address.host, "true"])


def _access(address: Address) -> list[str]:
    """Return how the host is reached, as libvirt has it from the URI (virNetSocketNewConnectSSH)."""
    found: list[str] = []
    for option, value in (("-p", address.port), ("-l", address.user), ("-i", address.keyfile)):
        if value is not None:
            found += [option, str(value)]
    named = {"UserKnownHostsFile": address.known_hosts, "StrictHostKeyChecking": address.host_keys}
    return found + _options({name: value for name, value in named.items() if value is not None})


def _options(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def bootstrap() -> str:
    """Return the program that reads one line, the helper's source as ``packed`` has it, and runs it.

    The user's shell there reads it, whichever that is. Standard input is read without a buffer: what follows the line
    is for the helper.
    """
    read = 'open(0,"rb",buffering=0,closefd=False).readline()'
    return f"exec python3 -IS -c 'import base64,zlib;exec(zlib.decompress(base64.b64decode({read})))'"


def packed(source: str) -> bytes:
    """Return a source as one line."""
    return base64.b64encode(zlib.compress(source.encode(), 9)) + b"\n"
