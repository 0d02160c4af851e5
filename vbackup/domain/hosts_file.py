"""Read a file that lists hosts, one libvirt URI a line; "#" begins a comment, in front of a line or after a space."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from vbackup.errors import UsageError
from vbackup.files import read_regular

#: More than any list of hosts has.
MAX_BYTES = 1 << 20
_SCHEME = re.compile(r"[a-z][a-z0-9]*(\+[a-z0-9]+)?")


def read(path: str) -> list[str]:
    """Return the URIs in their order. Raises UsageError, which names the file and the line."""
    try:
        text = read_regular(path, max_bytes=MAX_BYTES).decode()
    except UnicodeDecodeError as err:
        raise UsageError(f"{path}: the file of hosts is not UTF-8 (byte {err.start}).") from err
    except (OSError, ValueError) as err:
        raise UsageError(f"{path}: the file of hosts cannot be read: {getattr(err, 'strerror', None) or err}.") from err
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        # "#" within a word is part of a URI; libvirt's have no fragment, but a key's path may contain one.
        uri = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if not uri:
            continue
        fault = fault_of(uri)
        if fault is not None:
            raise UsageError(f"{path}:{number}: {fault}.")
        if uri in found:
            raise UsageError(f"{path}:{number}: {uri} is in line {found[uri]} already.")
        found[uri] = number
    if not found:
        raise UsageError(f"{path}: the file names no host; it has one libvirt URI a line.")
    return list(found)


def fault_of(uri: str) -> str | None:
    """Return why a text cannot be the URI of a host, or None."""
    if any(character.isspace() or not character.isprintable() for character in uri):
        return f"{uri!r} has spaces in it; a line has one URI"
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as err:
        return f"{uri!r} is not a libvirt URI: {err}"
    if _SCHEME.fullmatch(parts.scheme) is None or "://" not in uri:
        return f"{uri!r} is not a libvirt URI, such as qemu+ssh://root@{_host_in(uri)}/system"
    return None


def _host_in(word: str) -> str:
    """Return the word if it can be the name of a host, for an example."""
    name = word.rpartition("@")[2].partition("/")[0]
    return name if re.fullmatch(r"[A-Za-z0-9.-]+", name) else "HOST"
