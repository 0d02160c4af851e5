"""Tell the names that a libvirt of this host knows to a shell that completes a word: read-only, and without a question.

A shell asks while somebody types. So nothing is asked of another host, where SSH could want a passphrase; no daemon of
the user's is started for it; and no driver is opened in this process, which would take the locks of its root. All else
reaches libvirt by vbackup.domain.host, whose imports take longer than this may.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: Where libvirt's library finds the URI that is used without one (libvirt.conf).
_SETTINGS = Path("/etc/libvirt/libvirt.conf")
_DEFAULT = re.compile(r'^[ \t]*uri_default[ \t]*=[ \t]*"([^"\n]*)"', re.MULTILINE)
_DISK = re.compile(r"<disk\b.*?</disk>", re.DOTALL)
_TARGET = re.compile(r"""<target\b[^>]*?\bdev=(?:'([^']*)'|"([^"]*)")""")


def is_near(uri: str) -> bool:
    """Return True if the URI leads to a daemon of this host, over its socket: no other is asked."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
    except ValueError:
        return False
    transport = parts.scheme.partition("+")[2]
    return bool(parts.scheme) and not host and transport in ("", "unix") and parts.path != "/embed"


def domains(uri: str | None) -> list[str] | None:
    """Return the names of all domains, sorted; None if libvirt is not asked.

    ``uri``: as for vbackup.domain.host.Host. Raises libvirt's error; can take as long as libvirt does.
    """
    with _opened(uri) as connection:
        return None if connection is None else sorted(domain.name() for domain in connection.listAllDomains())


def disks(uri: str | None, domain: str) -> list[str] | None:
    """Return the names of the disks of a domain, by name or UUID; None if libvirt is not asked. As ``domains``."""
    with _opened(uri) as connection:
        if connection is None:
            return None
        known = {word: one for one in connection.listAllDomains() for word in (one.UUIDString(), one.name())}
        if domain not in known:
            return []
        # Of attributes that libvirt itself has written, so without an XML parser, whose import takes longer than this.
        found = (_TARGET.search(disk) for disk in _DISK.findall(known[domain].XMLDesc()))
        return sorted(match[1] or match[2] for match in found if match)


@contextmanager
def _opened(uri: str | None) -> Iterator[Any]:
    """Yield a connection that can only read, or None."""
    uri = uri or _default_uri()
    if not is_near(uri):
        yield None
        return
    os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
    os.environ["LIBVIRT_AUTOSTART"] = "0"  # a user without a daemon gets none from a TAB (virGetConnect, remote driver)
    import libvirt  # takes half of the time of a shell's question, and not all of them are for libvirt

    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.openReadOnly(uri)
    try:
        yield connection
    finally:
        connection.close()


def _default_uri() -> str:
    """Return the URI that libvirt takes, as far as that is known without asking it."""
    named = os.environ.get("LIBVIRT_DEFAULT_URI") or _configured()
    if named:
        return named
    return "qemu:///system" if os.geteuid() == 0 else "qemu:///session"


def _configured() -> str | None:
    try:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        settings = _SETTINGS if os.geteuid() == 0 else home / "libvirt" / "libvirt.conf"
        match = _DEFAULT.search(settings.read_text(errors="replace"))
    except (OSError, RuntimeError):  # of a user without a home
        return None
    return match[1] if match else None
