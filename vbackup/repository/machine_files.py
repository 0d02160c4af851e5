"""Read what a backup has of its machine beside disks and XML: check it, and write it where it is wanted.

What is written is compared with the digest in the manifest on its way: nothing else is ever given to a machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from vbackup import archive, files
from vbackup.errors import ChainError, StorageError
from vbackup.files import open_regular, read_regular, storage_errors
from vbackup.model import MAX_NVRAM_BYTES, Backup, ImageFormat, MachineFile, MachineKind
from vbackup.qemu import qcow2
from vbackup.repository.repository import Repository

#: A file that is larger is not read for a quick check.
QUICK_BYTES = 4 * 1024 * 1024
#: More than the state of any TPM takes.
MAX_TPM_BYTES = 128 * 1024 * 1024
_PIECE_BYTES = 1024 * 1024


def check(
    repository: Repository, backup: Backup, one: MachineFile, *, stop: Callable[[], None], quick: bool = False
) -> None:
    """Raise ChainError if a file is missing, or is not the one that the manifest records.

    ``stop`` is called meanwhile and may raise. ``quick``: of a large file only the size is compared.
    """
    path = _path(repository, backup, one)
    try:
        size_bytes = path.lstat().st_size
        if one.size_bytes is not None and size_bytes != one.size_bytes:
            raise ChainError(f"{path} of backup {backup.id} has {size_bytes} bytes; it had {one.size_bytes}.")
        if quick and size_bytes > QUICK_BYTES:
            os.close(open_regular(path))
            return
        digest = files.digest(path, check=stop)
    except FileNotFoundError as err:
        raise ChainError(f"{path} of backup {backup.id} is missing.") from err
    except (OSError, StorageError) as err:
        raise ChainError(f"{path} of backup {backup.id} cannot be read: {err}") from err
    if digest != one.digest:
        raise _damaged(path, backup)


def write(repository: Repository, backup: Backup, one: MachineFile, path: Path, *, stop: Callable[[], None]) -> None:
    """Write a file of the backup to ``path``, which does not exist, with mode 0600; of a TPM a directory with 0700.

    Raises ChainError if it is damaged; what was written then is for the caller to remove, as after any other error.
    """
    if one.kind is MachineKind.TPM:
        _write_tpm(repository, backup, one, path)
        return
    source, sha256 = _path(repository, backup, one), hashlib.sha256()
    try:
        source_fd = open_regular(source)
    except OSError as err:
        raise ChainError(f"{source} of backup {backup.id} cannot be read: {err.strerror or err}.") from err
    with os.fdopen(source_fd, "rb") as given, storage_errors(f"write {path}"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            while piece := given.read(_PIECE_BYTES):
                stop()
                sha256.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    if f"sha256:{sha256.hexdigest()}" != one.digest:
        raise _damaged(source, backup)


def refuse_unusable(repository: Repository, backup: Backup, one: MachineFile) -> None:
    """Raise ChainError if a file, undamaged as it may be, is nothing that may be given to a machine."""
    if one.kind is MachineKind.TPM:
        _unpacked(repository, backup, one)
    elif one.kind is MachineKind.NVRAM:
        nvram_format(repository, backup, one)


def nvram_format(repository: Repository, backup: Backup, one: MachineFile) -> ImageFormat:
    """Return the format that QEMU may open an NVRAM in. What ``write`` writes are the bytes that were looked at.

    The guest can write the header of a qcow2 image to a raw NVRAM, and name a file of the host in it. So the manifest
    tells, and a qcow2 image that needs another file is refused. Where an earlier version has not recorded the format,
    only an image that needs none counts as qcow2. Raises ChainError.
    """
    if one.image_format is ImageFormat.RAW:
        return ImageFormat.RAW
    path = _path(repository, backup, one)
    data = _content(repository, backup, one, max_bytes=MAX_NVRAM_BYTES)
    try:
        why = "" if qcow2.header_in(data, path).is_alone else "it names another file or is encrypted"
    except ChainError as err:
        why = str(err).rstrip(".")
    if not why:
        return ImageFormat.QCOW2
    if one.image_format is None:
        return ImageFormat.RAW
    raise ChainError(f"{path} of backup {backup.id} is not a qcow2 image that QEMU may open: {why}.")


def _unpacked(repository: Repository, backup: Backup, one: MachineFile) -> Mapping[str, bytes]:
    data = _content(repository, backup, one, max_bytes=MAX_TPM_BYTES)
    try:
        return archive.unpack(data)
    except ValueError as err:
        source = _path(repository, backup, one)
        raise ChainError(f"{source} of backup {backup.id} is no archive of a TPM's state: {err}.") from err


def _content(repository: Repository, backup: Backup, one: MachineFile, *, max_bytes: int) -> bytes:
    """Return the content of a small file. Raises ChainError if it is not what the manifest records."""
    source = _path(repository, backup, one)
    try:
        data = read_regular(source, max_bytes=max_bytes)
    except OSError as err:
        raise ChainError(f"{source} of backup {backup.id} cannot be read: {err.strerror or err}.") from err
    if files.digest_of(data) != one.digest:
        raise _damaged(source, backup)
    return data


def _write_tpm(repository: Repository, backup: Backup, one: MachineFile, path: Path) -> None:
    state = _unpacked(repository, backup, one)
    with storage_errors(f"write {path}"):
        path.mkdir(mode=0o700)
        for name, content in state.items():
            (path / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_new(path / name, content)
        files.fsync(path)


def _path(repository: Repository, backup: Backup, one: MachineFile) -> Path:
    return repository.directory(backup.domain_uuid, backup.id) / one.file


def _damaged(path: Path, backup: Backup) -> ChainError:
    return ChainError(
        f"{path} of backup {backup.id} was altered or is damaged: its digest differs from the recorded one. Restore the"
        " file from a copy of the repository, or restore an older backup."
    )
