"""``vbackup restore --define``: a restored domain that libvirt has, and runs if that is asked for.

``prepare`` says before anything is written whether libvirt would take the domain, and gives it its identity; ``define``
does it when the disks are complete.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from vbackup import files
from vbackup.domain import defining, driver, identity, machine_xml, media, swtpm
from vbackup.domain import domain_xml as domain_xml_
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.identity import Identity
from vbackup.domain.restored_xml import RestoredXml
from vbackup.errors import (
    ConnectionLostError,
    RestoredOnlyError,
    StorageError,
    UnsuitableError,
    VbackupError,
    domain_argument,
)
from vbackup.hooks import half_restored
from vbackup.images import denied, denied_facts
from vbackup.model import MachineKind
from vbackup.operations import restored_machine
from vbackup.operations.restored_machine import Placed
from vbackup.report import Reporter


@dataclass(frozen=True)
class DefineRequest:
    """The options of ``vbackup restore`` that are about libvirt."""

    name: str | None = None  #: of a new domain; None: the original is restored
    start: bool = False


@dataclass(frozen=True)
class Prepared:
    """A domain that libvirt would define."""

    request: DefineRequest
    host: Host
    identity: Identity
    text: str  #: the XML
    tpm: Tpm | None = None


@dataclass(frozen=True)
class Tpm:
    """The restored state of an emulated TPM."""

    state: Path  #: directory where it is restored
    place: Path | None  #: where libvirt looks for it; None if the XML says where it is


@dataclass(frozen=True)
class DefinedDomain:
    """A domain that libvirt has now."""

    name: str
    uuid: str
    started: bool


def prepare(
    request: DefineRequest,
    restored: RestoredXml,
    *,
    machine: Sequence[Placed] = (),
    host: Host,
    output: Path,
    reporter: Reporter,
    is_missing: Callable[[str | Path], bool] | None = None,
) -> Prepared:
    """Return the domain with its identity, when it is sure that libvirt would define it; nothing is written.

    Warnings say what a person should know of the domain. ``is_missing`` is there if the domain is restored on another
    host, and says whether that has no such file; that QEMU can reach the directory is then for the caller to see.

    Raises UnsuitableError (libvirt has such a domain or refuses the XML, or is on another host), StorageError (QEMU
    could not reach the output directory), and what libvirt's calls raise.
    """
    if is_missing is None:
        _refuse_elsewhere(host)
    lacks = is_missing or files.is_missing
    made = _identified(request, restored, host=host)
    defining.refuse_taken(host, made.identity, is_new=request.name is not None)
    _refuse_saved_memory(made.identity, host, lacks)
    if is_missing is None:
        _refuse_unreachable(output, made.text, host)
    at_hand = [os.fspath(one.path) for one in machine]
    missing = defining.missing_media(host, made.text, restored=at_hand, is_missing=lacks)
    where = "this host" if is_missing is None else "that host"
    notes = [f"The drive {one.dev} is empty: {one} is not on {where}." for one in missing]
    text = media.ejected(made.text, [one.dev for one in missing])
    defining.check(host, text)
    troubles = defining.start_troubles(host, text, is_missing=lacks)
    firmware = restored_machine.missing_firmware(text, is_missing=lacks)
    if firmware is not None and request.start:  # without, the restore itself warns of it
        troubles.append(f"its firmware {firmware} is not on {where}")
    if troubles and request.start:
        raise UnsuitableError(
            f"Domain {made.identity.name} could not be started here: {'; '.join(troubles)}. Nothing was written;"
            " --define without --start restores and defines it."
        )
    notes += [f"Domain {made.identity.name} cannot be started yet: {trouble}." for trouble in troubles]
    for note in (*made.notes, *notes):
        reporter.warning(note)
    tpm = _tpm(text, machine, host) if is_missing is None else None
    return Prepared(request, host, made.identity, text, tpm)


def define(prepared: Prepared, domain_xml: Path, *, autostart: bool, reporter: Reporter) -> DefinedDomain:
    """Define the restored domain, and start it if that was asked for.

    ``domain_xml`` is the file that was restored, for messages. Raises RestoredOnlyError, which says what is left
    to do: what was restored stays.
    """
    wanted, host = prepared.identity, prepared.host
    with_autostart = autostart and prepared.request.name is None
    # Hours can have passed: libvirtd may have been restarted, and a domain defined that this one would replace.
    virsh = shlex.join(["virsh", *([] if host.uri is None else ["-c", host.uri])])
    name = domain_argument(wanted.name)
    try:
        if not host.is_alive():
            host.reopen()
        defining.refuse_taken(host, wanted, is_new=prepared.request.name is not None)
        handle = define_only(prepared)
    except VbackupError as err:
        commands = [
            *_tpm_commands(prepared),
            f"{virsh} define {shlex.quote(str(domain_xml))}",
            *([f"{virsh} autostart {name}"] if with_autostart else []),
            *([f"{virsh} start {name}"] if prepared.request.start else []),
        ]
        later = f"To define it later, run: {' && '.join(commands)}"
        raise RestoredOnlyError(err, f"The disks are restored, but the domain is not defined. {later}") from err
    reporter.step(f"Domain {handle.name}: defined.")
    if with_autostart:
        try:
            defining.set_autostart(handle)
        except VbackupError as err:
            reporter.warning(f"{err} The original had that (autostart).")
    if prepared.request.start:
        try:
            defining.start(handle)
        except VbackupError as err:
            later = f"When the cause is gone, run: {virsh} start {name}"
            raise RestoredOnlyError(err, f"The domain is restored and defined. {later}") from err
        reporter.step(f"Domain {handle.name}: started.")
    return DefinedDomain(handle.name, handle.uuid, prepared.request.start)


def place_machine(prepared: Prepared, machine: Sequence[Placed]) -> tuple[Placed, ...]:
    """Return the files of the machine with their places when the domain is defined."""
    tpm = prepared.tpm
    if tpm is None or tpm.place is None:
        return tuple(machine)
    return tuple(replace(one, path=tpm.place) if one.path == tpm.state else one for one in machine)


def _tpm(text: str, machine: Sequence[Placed], host: Host) -> Tpm | None:
    """Return what is to be done with the state of the TPM. Raises StorageError if libvirt has one in its place."""
    state = restored_machine.path_of(machine, MachineKind.TPM)
    if state is None or machine_xml.tpm(text) is None:
        return None
    place = restored_machine.tpm_place(text, machine, host.real_uri)
    if place is not None:
        swtpm.refuse_existing(place)
        files.refuse_unwritable(place)
    return Tpm(state, place)


def _tpm_commands(prepared: Prepared) -> list[str]:
    """Return what must come before the domain is defined by hand: otherwise it starts with an empty TPM."""
    tpm = prepared.tpm
    return [] if tpm is None or tpm.place is None else restored_machine.tpm_commands(tpm.state, tpm.place)


def define_only(prepared: Prepared) -> DomainHandle:
    """Define the domain when the state of its TPM is where libvirt looks for it; if it fails, that is only restored."""
    tpm, host = prepared.tpm, prepared.host
    place = None if tpm is None else tpm.place
    if tpm is not None and place is None:
        swtpm.give(tpm.state, swtpm.owner(host.real_uri))
    elif tpm is not None and place is not None:
        swtpm.install(tpm.state, place, swtpm.owner(host.real_uri))
    try:
        handle = defining.define(host, prepared.text)
    except BaseException as err:
        found = _after_loss(prepared) if isinstance(err, ConnectionLostError) else False
        if place is not None and found is False:
            swtpm.remove(place)
        if not isinstance(found, DomainHandle):
            raise
        handle = found
    if host.is_local:
        half_restored.end(handle.uuid)  # of the disks that a domain with this UUID had before
    if tpm is not None and place is not None:
        shutil.rmtree(tpm.state, ignore_errors=True)  # the keys in it are in one place only
    return handle


def _after_loss(prepared: Prepared) -> DomainHandle | bool | None:
    """Return the domain if libvirt has defined it before the connection broke, False if not, None if nobody knows."""
    host = prepared.host
    try:
        host.reopen()
        return next((one for one in host.domains() if one.uuid == prepared.identity.uuid), False)
    except VbackupError:
        return None


def define_again(host: Host, text: str, machine: Sequence[Placed]) -> DomainHandle:
    """Define a restored domain that is not defined, or not any more. Raises StorageError, what libvirt's calls raise.

    The state of its TPM comes to where libvirt looks for it, unless there is one already.
    """
    wanted = identity.of(text)
    state = restored_machine.path_of(machine, MachineKind.TPM)
    tpm = None
    if state is not None and state.exists() and machine_xml.tpm(text) is not None:
        place = restored_machine.tpm_place(text, machine, host.real_uri)
        tpm = None if place is not None and place.exists() else Tpm(state, place)
    return define_only(Prepared(DefineRequest(), host, wanted, text, tpm))


def _identified(request: DefineRequest, restored: RestoredXml, *, host: Host) -> identity.Identified:
    if request.name is None:
        return identity.keep(restored.text)
    if restored.keeps_others:
        raise UnsuitableError(
            "With --disk, the restored domain has the other disks of the original, which two domains must not write to:"
            " leave --name out, or restore all disks."
        )
    used = defining.mac_addresses(host) | identity.mac_addresses(restored.text)
    edit = host.command(f"virsh edit {domain_argument(request.name)}")
    return identity.renew(restored.text, Identity(request.name, str(uuid4())), identity.new_macs(used), edit=edit)


def _refuse_elsewhere(host: Host) -> None:
    if not host.is_local:
        raise UnsuitableError(
            f"{host.real_uri} is on another host, which does not have what is restored here: use a URI such as"
            " qemu+ssh://root@HOST/system and no --pool, run vbackup there, or restore without --define."
        )


def _refuse_saved_memory(made: Identity, host: Host, is_missing: Callable[[str | Path], bool]) -> None:
    """Raise StorageError if libvirt would resume the domain from memory that a lost one of that name has saved.

    When it starts a domain, it looks for the file (qemuDomainManagedSavePath in its qemu_domain.c), although it knows
    nothing of it when it defines the domain: virDomainHasManagedSaveImage says no.
    """
    places = driver.directories(host.real_uri)
    saved = None if places is None else places.nvram.with_name("save") / f"{made.name}.save"
    if saved is not None and not is_missing(saved):
        raise StorageError(
            f"{saved} has the memory of a domain that had the name {made.name}, and libvirt would resume the restored"
            " one from it: move it away."
        )


def _refuse_unreachable(output: Path, text: str, host: Host) -> None:
    """Raise StorageError if the mode of a directory keeps QEMU, as the user that libvirt runs it as, from its images.

    libvirt gives the images to that user when the domain starts, but it changes no directory. One that a restore makes
    can be entered.
    """
    domain = domain_xml_.parse(text)
    labels = [*defining.of(host).labels, *domain.security_labels]  # the domain's own counts
    new = [Path(disk.path) for disk in domain.disks if disk.path is not None and not os.path.lexists(disk.path)]
    for path in (output / "domain.xml", *new):
        facts = denied_facts.gather(path.parent.resolve() / path.name, labels, by_descriptor=False)
        barrier = denied.first_barrier(facts)
        if barrier is not None and facts.user is not None:
            raise StorageError(
                f"QEMU runs as user {facts.user.name}, who may not enter {barrier.path} (owner {barrier.owner}, mode"
                f" {barrier.mode & 0o7777:04o}): choose another directory, such as one below /var/lib/libvirt/images,"
                f" or run 'chmod o+x {shlex.quote(barrier.path)}'."
            )
