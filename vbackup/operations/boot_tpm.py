"""Give the copy that a boot test starts the emulated TPM of its domain, with a copy of its state that is thrown away.

libvirt starts a separate swtpm for the copy, on the state in the directory with the copy's UUID: the only place that
every libvirt knows. What the guest does to it reaches neither the backup nor the original. libvirt removes the state of
a transient domain when that ends; here it is removed in any case, and by the guard if vbackup is killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbackup.domain import defining, driver, machine_xml, swtpm
from vbackup.domain.host import Host
from vbackup.domain.machine_xml import TpmState
from vbackup.model import Backup, MachineKind
from vbackup.repository import machine_files
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

PROGRAM = "swtpm"


@dataclass(frozen=True)
class Given:
    """Whether the copy has the TPM, and if not, why the state in the backup is of no use here."""

    is_there: bool = False
    why_not: str | None = None  #: None also if the backup has no state


def directory(host: Host, uuid: str) -> Path | None:
    """Return where libvirt has the state of the copy's TPM, None if nobody knows. Nothing else is there."""
    places = driver.directories(host.real_uri)
    return None if places is None else places.swtpm / uuid


@contextmanager
def given(
    backup: Backup, definition: str, uuid: str, scratch: Path, *, host: Host, repository: Repository, stop: Stop
) -> Iterator[Given]:
    """Let libvirt have a copy of the state during the block, for a domain with that UUID.

    ``scratch`` is a directory for files that the caller removes. Raises ChainError if the state is damaged,
    MalformedError of the definition, StorageError, NoSpaceError.
    """
    one = next((one for one in backup.machine_files if one.kind is MachineKind.TPM), None)
    state, place = machine_xml.tpm(definition), directory(host, uuid)
    if one is None or state is None:
        yield Given()
        return
    why_not = _hindrance(state, place, host)
    if why_not is not None or place is None:
        yield Given(why_not=why_not)
        return
    made = scratch / "tpm"
    machine_files.write(repository, backup, one, made, stop=stop.check)
    swtpm.install(made, place / state.directory, swtpm.owner(host.real_uri))
    try:
        yield Given(is_there=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _hindrance(state: TpmState, place: Path | None, host: Host) -> str | None:
    if place is None:
        return f"where {host.real_uri} has the state of a TPM is not known"
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is not installed on this host"
    if state.is_file:
        return "its state is one file, which libvirt does not take from where it keeps states by itself"
    if state.secret is not None and not defining.has_secret(host, state.secret):
        return f"its state is encrypted with libvirt's secret {state.secret}, which this host does not have"
    return None
