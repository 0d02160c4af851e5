"""Read the state of an emulated TPM: the files that swtpm has in a directory of the domain.

swtpm writes a new file and renames it, so the directory is read until two readings are the same.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from vbackup import archive
from vbackup.domain import driver, machine_xml
from vbackup.domain.host import DomainHandle
from vbackup.domain.host_files import HostFiles
from vbackup.domain.machine_xml import TpmState
from vbackup.domain.state_files import UnsavedError, stable, told
from vbackup.errors import VbackupError

#: The state of a TPM is well under 1 MiB.
MAX_BYTES = 64 * 1024 * 1024
#: swtpm makes no directories below its own; a hypervisor that is not honest can show any number.
MAX_DEPTH = 4
#: What swtpm locks its directory with; each one makes its own.
_LOCK = ".lock"


def lost_by_undefining(handle: DomainHandle) -> str | None:
    """Return what ``virsh undefine`` deletes with the domain, for a sentence; None if there is no emulated TPM."""
    try:
        state = machine_xml.tpm(handle.definition_xml())
    except VbackupError:  # this is only advice
        return None
    if state is None:
        return None
    what = "the state of its emulated TPM"
    places = driver.directories_of(handle.host) if state.path is None else None
    where = f"{places.swtpm / handle.uuid / state.directory}, {what}" if places is not None else state.path or what
    return f"{where}, which undefining deletes"


def read(handle: DomainHandle, state: TpmState, host: HostFiles) -> tuple[str, bytes]:
    """Return where the state is, and an archive of its files (vbackup.archive). Raises UnsavedError."""
    path = _path(handle, state, host)
    what = f"the state of the TPM in {path}"
    with told(what, too_large="is larger than that of any TPM"):
        files = stable(lambda: _files(path, state, host), what)
    if not files:
        raise UnsavedError(f"{path} has no state of a TPM", is_unexpected=True)
    return path, archive.pack(files)


def _path(handle: DomainHandle, state: TpmState, host: HostFiles) -> str:
    if state.path is not None:
        return state.path
    places = driver.directories_of(handle.host)
    if places is None:
        raise UnsavedError(f"where the driver {handle.host.real_uri} has the state of a TPM is not known")
    path = places.swtpm / handle.uuid / state.directory
    if host.is_missing(str(path.parent)):
        raise UnsavedError(f"it has no state in {path} yet, where libvirt makes it when the domain starts")
    return str(path)


def _files(path: str, state: TpmState, host: HostFiles) -> dict[str, bytes]:
    if state.is_file:
        return {Path(path).name: host.read(path, max_bytes=MAX_BYTES)}
    files: dict[str, bytes] = {}
    _add(path, "", files, host)
    return files


def _add(directory: str, prefix: str, files: dict[str, bytes], host: HostFiles) -> None:
    """Add the files in a directory and below it; anything else, such as a symbolic link, is an OSError."""
    for name, is_directory in host.entries(directory).items():
        path = f"{directory}/{name}"
        if is_directory:
            if prefix.count("/") >= MAX_DEPTH:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            _add(path, f"{prefix}{name}/", files, host)
        elif name != _LOCK:
            left_bytes = MAX_BYTES - sum(map(len, files.values()))
            try:
                files[prefix + name] = host.read(path, max_bytes=left_bytes)
            except FileNotFoundError:
                continue  # swtpm has renamed it meanwhile: the next reading tells
        if len(files) > archive.MAX_FILES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
