"""Write what a backup has of its machine beside the disks, and say where each file is: NVRAM, TPM, kernel, media.

``placed`` gives each file a place in the output directory; a caller that has others for some of them replaces the path.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vbackup import files
from vbackup.domain import domain_xml, driver, machine_xml
from vbackup.domain.machine_xml import Places
from vbackup.model import Backup, ImageFormat, LeftOut, MachineFile, MachineKind
from vbackup.repository import machine_files
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: The directory with the state of the TPM, in the output directory.
TPM = "tpm"
#: The libvirt from which on <backend> of a TPM can have a <source>.
TPM_SOURCE_SINCE = 10_010_000


@dataclass(frozen=True)
class Placed:
    """A file of the backup, and where it is restored to: a file, but for a TPM the directory of its files."""

    file: MachineFile
    path: Path


def placed(backup: Backup, output: Path) -> tuple[Placed, ...]:
    """Return the files of the machine with their places in the output directory."""
    return tuple(
        Placed(one, output / (TPM if one.kind is MachineKind.TPM else one.file)) for one in backup.machine_files
    )


def check(places: Sequence[Placed], backup: Backup, *, repository: Repository, stop: Stop) -> None:
    """Raise ChainError if one of the files in the repository is missing, damaged, or nothing for a machine."""
    for one in places:
        machine_files.check(repository, backup, one.file, stop=stop.check)
        machine_files.refuse_unusable(repository, backup, one.file)


def write(places: Sequence[Placed], backup: Backup, directory: Path, *, repository: Repository, stop: Stop) -> None:
    """Write each file into ``directory``, under the last part of its path: the caller moves it to its place.

    Raises ChainError, StorageError, NoSpaceError.
    """
    for one in places:
        machine_files.write(repository, backup, one.file, directory / one.path.name, stop=stop.check)


def places(restored: Sequence[Placed]) -> Places:
    """Return the places for the XML (vbackup.domain.restored_xml)."""
    media = {one.file.dev: os.fspath(one.path) for one in restored if one.file.dev is not None}
    kinds = {one.file.kind: os.fspath(one.path) for one in restored if one.file.dev is None}
    return Places(kinds, media, knows_tpm_source=_knows_tpm_source() if MachineKind.TPM in kinds else False)


def _knows_tpm_source() -> bool:
    """Return True if the libvirt of this host takes the place of a TPM's state from the XML."""
    from vbackup.domain import host  # few domains have one, and what restores needs no libvirt otherwise

    return host.library_version() >= TPM_SOURCE_SINCE


def tpm_place(definition: str, restored: Sequence[Placed], uri: str | None) -> Path | None:
    """Return where libvirt will look for the restored TPM's state, if its XML cannot say where it is.

    That is the place of a domain with the UUID of ``definition`` at ``uri``. None without a TPM, and if libvirt finds
    the state where it is restored. Raises MalformedError.
    """
    kinds = places(restored)
    state = machine_xml.tpm(definition)
    if MachineKind.TPM not in kinds.kinds or kinds.knows_tpm_source or state is None:
        return None
    directories = driver.directories(uri) or driver.directories(driver.SYSTEM)
    assert directories is not None
    return directories.swtpm / domain_xml.parse(definition).uuid / state.directory


def tpm_commands(state: Path, place: Path) -> list[str]:
    """Return the commands that bring the state of the TPM to where an older libvirt looks for it."""
    return [
        shlex.join(["mkdir", "-p", os.fspath(place)]),
        shlex.join(["cp", "-rT", os.fspath(state), os.fspath(place)]),
    ]


def shared(definition: str, restored: Sequence[Placed], uri: str | None) -> list[LeftOut]:
    """Return what the restored domain would share with the original until the user has acted. Raises MalformedError."""
    found = []
    place, path = tpm_place(definition, restored, uri), path_of(restored, MachineKind.TPM)
    state = machine_xml.tpm(definition)
    if place is not None:
        where = f"its state has to be in {place}, the only place that libvirt before 10.10 knows"
        found.append(LeftOut("tpm", f"{where}: copy {path} there before the domain starts", kind="tpm"))
    if path is not None and state is not None and state.secret is not None:
        reason = "the state of its TPM is encrypted with it, so libvirt needs it, with the same value"
        found.append(LeftOut(f"secret {state.secret}", reason, kind="tpm"))
    return found


def missing_firmware(definition: str, *, is_missing: Callable[[str | Path], bool] = files.is_missing) -> str | None:
    """Return the path of the firmware that the domain starts with if its host does not have it. Raises MalformedError.

    Firmware comes with packages, and is in no backup. ``is_missing``: whether the host does not have a file.
    """
    loader = machine_xml.loader(definition)
    return loader if loader is not None and is_missing(loader) else None


def path_of(places: Sequence[Placed], kind: MachineKind) -> Path | None:
    """Return the place of the file of that kind, None if there is none."""
    return next((one.path for one in places if one.file.kind is kind), None)


def nvram_format(places: Sequence[Placed], backup: Backup, *, repository: Repository) -> ImageFormat | None:
    """Return the format of the NVRAM in the backup, None if it has none. Raises ChainError."""
    one = next((one for one in places if one.file.kind is MachineKind.NVRAM), None)
    return None if one is None else machine_files.nvram_format(repository, backup, one.file)


def names(places: Sequence[Placed], output: Path) -> list[str]:
    """Return the names of those that are in the output directory, to be moved there."""
    return [one.path.name for one in places if one.path.parent == output]


def document(places: Sequence[Placed]) -> list[dict[str, str | None]]:
    """Return what was restored, for JSON."""
    return [
        {"kind": one.file.kind.value, "dev": one.file.dev, "path": os.fspath(one.path), "original": one.file.path}
        for one in places
    ]
