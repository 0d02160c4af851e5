"""``vbackup restore``: write the disks and the XML of a backup to a directory, or roll the domain's disks back."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from vbackup.api import DefineRequest, InPlaceRequest, Restored, RestoreRequest, documents, machine_path, tpm_commands
from vbackup.cli import copies, live_restore, output, script_options
from vbackup.cli.arguments import backup_of, domain_of, wanted_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError, domain_argument
from vbackup.model import ImageFormat, MachineKind


def run(options: argparse.Namespace, context: Context) -> int:
    """Restore the backup and print the paths of what was written."""
    destinations = _take_destinations(options)
    copies.refuse(options, "in_place", "live", "resume", "abort")
    if options.live or options.resume or options.abort or options.yes:
        return live_restore.run(options, destinations, context)
    backup_id = backup_of(options)
    if options.in_place:
        return _in_place(options, backup_id, context)
    for name in ("exclusive", "wait_lock", "keep_old"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is for a restore with --in-place.")
    if options.name is not None and not (options.define or options.start):
        raise UsageError("--name is for a domain that libvirt defines: give --define, too.")
    options.format = options.format or ImageFormat.QCOW2.value
    with (
        context.reporting(domain_of(options)) as reporter,
        copies.connected(options, context, reporter=reporter) as (vb, target),
    ):
        request = RestoreRequest(
            domain=vb.uuid_of(domain_of(options), reporter=reporter),
            output=options.output,
            wanted=wanted_of(options, backup_id),
            image_format=ImageFormat(options.format),
            checkpoint=not options.no_checkpoint and target is None,
            define=DefineRequest(options.name, options.start) if options.define or options.start else None,
            destinations=destinations,
            speed_bytes_s=options.speed,
        )
        own = script_options.of_domain(
            options, domain_of(options), work="restore", reporter=reporter, stop=context.stop
        )
        if target is not None:
            target.bring(request.domain, request.wanted)
        done = vb.restore(request, pool=options.pool, scripts=own, reporter=reporter)
    if context.as_json:
        document = documents.restored(done, request.image_format)
        context.print_document("vbackup.restore/1", {**document, "scripts": own.documents()})
        return Status.DONE
    if not context.is_quiet:
        show(done, context)
    return Status.DONE


def _take_destinations(options: argparse.Namespace) -> dict[str, Path]:
    """Return where disks go that were given as DEV=PATH, and leave their names in the options. Raises UsageError."""
    found: dict[str, Path] = {}
    devs: list[str] = []
    for word in options.disk:
        dev, is_given, path = word.partition("=")
        if is_given and not (dev and path):
            raise UsageError(f"--disk {word}: give the name of a disk and a path, as in vda=/dev/vg/web.")
        if is_given and options.in_place:
            raise UsageError(f"--disk {word}: with --in-place a disk stays where it is; use --output.")
        if dev in devs and (is_given or dev in found):
            raise UsageError(f"--disk: {dev} is given twice.")
        if is_given and (other := next((one for one, of in found.items() if of == Path(path)), None)) is not None:
            raise UsageError(f"--disk: {other} and {dev} would both be written to {path}.")
        devs.append(dev)
        if is_given:
            found[dev] = Path(path)
    options.disk = devs
    return found


def _in_place(options: argparse.Namespace, backup_id: str | None, context: Context) -> int:
    """Roll the disks of a domain of the host back, and print how much was written."""
    if options.pool is not None:
        raise UsageError("--pool is for a restore with --output: in place the images stay where they are.")
    if options.format is not None:
        raise UsageError("--format is for a restore with --output: in place the images keep their format.")
    for name in ("define", "name", "start"):
        if getattr(options, name):
            raise UsageError(f"--{name} is for a restore with --output: in place the domain stays as it is defined.")
    request = InPlaceRequest(
        domain=domain_of(options),
        wanted=wanted_of(options, backup_id),
        checkpoint=not options.no_checkpoint,
        exclusive=options.exclusive,
        speed_bytes_s=options.speed,
        wait_lock_s=options.wait_lock,
        keep_old=options.keep_old,
    )
    with context.connect() as vb, context.reporting(request.domain) as reporter:
        own = script_options.of_domain(options, request.domain, work="restore", reporter=reporter, stop=context.stop)
        done = vb.restore_in_place(request, scripts=own, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.rollback/1", {**documents.rolled_back(done), "scripts": own.documents()})
    elif not context.is_quiet:
        print(output.plain(f"Disks of domain {done.domain_name}, restored in place:"))
        for one in done.disks:
            print(output.plain(f"  {one.dev}: as in backup {one.backup}, {output.size(one.written_bytes)} written"))
        for full in done.in_full:
            how = f"a new image of {output.size(full.written_bytes)}, since {full.reason.rstrip('.')}"
            kept = "" if full.kept is None else f"; the old one is {full.kept}"
            print(output.plain(f"  {full.dev}: as in backup {full.backup}, {how}{kept}"))
    return Status.DONE


def show(done: Restored, context: Context) -> None:
    """Print what was written, and the commands that start the domain from it."""
    print(output.plain(f"Restored backup {done.backup.id} of domain {done.backup.domain_name}:"))
    for path in done.files:
        print(output.plain(f"  {path}"))
    virsh = ["virsh"] if context.uri is None else ["virsh", "-c", context.uri]
    if done.defined is not None:
        state = "defined and started" if done.defined.started else "defined"
        print(output.plain(f"Domain {done.defined.name} (UUID {done.defined.uuid}) is {state}."))
        if not done.defined.started:
            print("To run it:")
            print(output.plain(f"  {shlex.join([*virsh, 'start'])} {domain_argument(done.defined.name)}"))
        return
    print("To run it:")
    if done.closed and os.geteuid() == 0:
        directories, them = shlex.join(map(str, done.closed)), "it" if len(done.closed) == 1 else "them"
        print(output.plain(f"  chmod o+x {directories}  # or QEMU, as another user, cannot enter {them}"))
    for command in _tpm_commands(done):
        print(output.plain(f"  {command}"))
    print(output.plain(f"  {shlex.join([*virsh, 'define', str(done.domain_xml)])}"))
    if done.backup.autostart:
        autostart = f"{shlex.join([*virsh, 'autostart'])} {domain_argument(done.backup.domain_name)}"
        print(output.plain(f"  {autostart}  # as the original had it"))
    print(output.plain(f"  {shlex.join([*virsh, 'start'])} {domain_argument(done.backup.domain_name)}"))


def _tpm_commands(done: Restored) -> list[str]:
    """Return the commands that bring the state of the TPM to where an older libvirt looks for it."""
    state = machine_path(done.machine, MachineKind.TPM)
    if done.tpm_place is None or state is None:
        return []
    *others, copy = tpm_commands(state, done.tpm_place)
    return [*others, f"{copy}  # the TPM's state, while no domain uses it"]
