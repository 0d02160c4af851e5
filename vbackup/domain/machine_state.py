"""Find what a machine needs beside its disks and its XML, and give it to the backup, or say why it cannot be had.

The guest's own state, UEFI variables and TPM, is that of the running domain. What is only read when it starts, kernel
and media, is what its definition names: that is what a restored domain is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from vbackup.domain import host_files, machine_xml, nvram, tpm
from vbackup.domain.host import DomainHandle
from vbackup.domain.host_files import HostFiles
from vbackup.domain.machine_xml import NamedFile
from vbackup.domain.state_files import UnsavedError, pieces, stable, told
from vbackup.model import MAX_MEDIUM_BYTES, Domain, ImageFormat, LeftOut, MachineKind
from vbackup.qemu.monitor import Monitor

#: More than any kernel or initial RAM disk has.
MAX_BOOT_FILE_BYTES = 1024**3
#: A varstore is some 100 KiB.
MAX_VARSTORE_BYTES = 16 * 1024**2
_ELSEWHERE = "it is on another host"


@dataclass(frozen=True)
class Found:
    """A file for the backup. ``content`` is read when it is written; it raises UnsavedError."""

    kind: MachineKind
    path: str | None
    content: Callable[[], Iterator[bytes]]
    dev: str | None = None
    image_format: ImageFormat | None = None  #: of an NVRAM


@dataclass(frozen=True)
class Unsaved:
    """What the machine has and the backup will not have."""

    left_out: LeftOut
    is_unexpected: bool  #: a warning should tell the user


@dataclass
class Machine:
    """What was found."""

    found: list[Found] = field(default_factory=list)
    unsaved: list[Unsaved] = field(default_factory=list)


def find(
    handle: DomainHandle, domain: Domain, definition: str, monitor: Monitor | None, *, with_media: bool
) -> Machine:
    """Return what the domain needs beside disks and XML.

    ``domain`` is what runs, or would; ``monitor`` is that of its QEMU, None if it is off. Raises MalformedError.
    """
    machine, files = Machine(), host_files.of(handle.host)
    _variables(handle, domain, monitor, machine, files=files)
    _varstore(domain, machine, files)
    _tpm(handle, domain, definition, machine, files=files)
    for named in machine_xml.boot_files(definition):
        _file(named, machine, MAX_BOOT_FILE_BYTES, files=files)
    media, others = machine_xml.media(definition) if with_media else ((), ())
    for named in media:
        _file(named, machine, MAX_MEDIUM_BYTES, files=files)
    for named in others:
        _miss(machine, named.kind, UnsavedError(f"{named.what} that is no raw image file"), dev=named.dev)
    return machine


def unsaved(kind: MachineKind, reason: str, *, dev: str | None = None) -> LeftOut:
    """Return the entry for what is left out; a medium has the one of its drive."""
    return LeftOut(dev or kind.value, reason, kind="disk" if dev is not None else kind.value)


def _add(
    machine: Machine, kind: MachineKind, path: str, data: bytes, *, image_format: ImageFormat | None = None
) -> None:
    machine.found.append(Found(kind, path, lambda: iter([data]), image_format=image_format))


def _miss(machine: Machine, kind: MachineKind, err: UnsavedError, *, what: str = "", dev: str | None = None) -> None:
    reason = f"{what}: {err}" if what else str(err)
    machine.unsaved.append(Unsaved(unsaved(kind, reason, dev=dev), err.is_unexpected))


def _variables(
    handle: DomainHandle, domain: Domain, monitor: Monitor | None, machine: Machine, *, files: HostFiles | None
) -> None:
    try:
        found = nvram.read(handle, domain, monitor, files)
    except UnsavedError as err:
        _miss(machine, MachineKind.NVRAM, err)
    else:
        if found is not None:
            _add(machine, MachineKind.NVRAM, found.path, found.data, image_format=domain.nvram_format)


def _varstore(domain: Domain, machine: Machine, files: HostFiles | None) -> None:
    has_one, path = machine_xml.varstore(domain.xml)
    if not has_one:
        return
    what = f"UEFI variables in a varstore{f' ({path})' if path else ''}"
    try:
        if not path:
            raise UnsavedError("the domain XML does not name its file; a backup of the running domain has them")
        if files is None:
            raise UnsavedError(_ELSEWHERE, is_unexpected=True)
        real, here = files.real(path), files
        with told("it", too_large="is larger than any firmware's"):
            data = stable(lambda: here.read(real, max_bytes=MAX_VARSTORE_BYTES), "it")
    except UnsavedError as err:
        _miss(machine, MachineKind.VARSTORE, err, what=what)
    else:
        _add(machine, MachineKind.VARSTORE, path, data)


def _tpm(handle: DomainHandle, domain: Domain, definition: str, machine: Machine, *, files: HostFiles | None) -> None:
    state = machine_xml.tpm(domain.xml) or machine_xml.tpm(definition)
    if state is None:
        return
    try:
        if files is None:
            raise UnsavedError(_ELSEWHERE, is_unexpected=True)
        path, data = tpm.read(handle, state, files)
    except UnsavedError as err:
        _miss(machine, MachineKind.TPM, err, what="emulated TPM, with keys of encrypted guest disks for example")
    else:
        _add(machine, MachineKind.TPM, path, data)
        if state.secret is not None:
            reason = (
                f"the state of the TPM is encrypted with libvirt's secret {state.secret}, which is not in the backup"
            )
            machine.unsaved.append(Unsaved(LeftOut(f"secret {state.secret}", reason, kind="tpm"), is_unexpected=False))


def _file(named: NamedFile, machine: Machine, max_bytes: int, *, files: HostFiles | None) -> None:
    if files is None:
        err = UnsavedError(_ELSEWHERE)
        _miss(machine, named.kind, err, what=f"{named.what} {named.path}", dev=named.dev)
        return
    content = partial(pieces, files, named.path, named.what, max_bytes=max_bytes)
    machine.found.append(Found(named.kind, named.path, content, named.dev))
