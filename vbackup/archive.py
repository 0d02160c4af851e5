"""Pack a few small files into a tar archive, and unpack one: regular files with harmless names, and nothing else.

The same files make the same archive, whenever and by whomever it is made. An archive may come from a broken or hostile
disk: nothing in it is followed, and no name leads out of the directory that it is unpacked to.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import PurePosixPath

#: More files than any directory that is packed here has.
MAX_FILES = 1000


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return an archive of the files, given by their paths in it, such as "a" and "b/c"."""
    import tarfile  # with all its compression modules; few backups need it

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), 0o600
            archive.addfile(member, io.BytesIO(files[name]))
    return packed.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the files of an archive by their paths in it. Raises ValueError if ``pack`` has not made it."""
    import tarfile

    files: dict[str, bytes] = {}
    left_bytes = len(data)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                # A sparse member is small in the archive, and unpacks to any size that its header says.
                is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                if not is_plain or not _is_harmless(member.name) or member.name in files:
                    raise ValueError(f"it has an entry that does not belong there: {member.name!r}")
                left_bytes -= member.size
                if len(files) == MAX_FILES or left_bytes < 0:
                    raise ValueError(f"it has more than {MAX_FILES} files, or more in them than its own size")
                content = archive.extractfile(member)
                assert content is not None
                files[member.name] = content.read()
    except (tarfile.TarError, OverflowError, EOFError) as err:
        raise ValueError(f"it cannot be read: {err}") from err
    directories = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    if directories & files.keys():
        raise ValueError("it has a file in the place of a directory")
    return files


def _is_harmless(name: str) -> bool:
    """Return True for a relative path without "..", as it would be written."""
    parts = name.split("/")
    return "\0" not in name and all(part not in ("", ".", "..") for part in parts)
