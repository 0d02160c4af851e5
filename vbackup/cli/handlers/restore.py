"""``vbackup restore``: write the disks and the XML of a backup to a directory, or roll the domain's disks back."""

from __future__ import annotations

import argparse
import os
import shlex

from vbackup.cli import output
from vbackup.cli.arguments import backup_of, domain_of, wanted_of
from vbackup.cli.context import Context
from vbackup.domain.host import Host
from vbackup.errors import Status, UsageError, domain_argument
from vbackup.model import ImageFormat, MachineKind
from vbackup.operations import restore, restore_in_place, restored_machine
from vbackup.repository import manifest
from vbackup.repository.repository import Repository


def run(options: argparse.Namespace, context: Context) -> int:
    """Restore the backup and print the paths of what was written."""
    backup_id = backup_of(options)
    if options.in_place:
        return _in_place(options, backup_id, context)
    for name in ("exclusive", "speed", "wait_lock"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is for a restore with --in-place.")
    options.format = options.format or ImageFormat.QCOW2.value
    repository = Repository.open(context.repository_path())
    request = restore.RestoreRequest(
        domain=context.uuid_of(repository, domain_of(options)),
        output=options.output,
        wanted=wanted_of(options, backup_id),
        image_format=ImageFormat(options.format),
        checkpoint=not options.no_checkpoint,
        uri=context.uri,
    )
    with context.reporting(domain_of(options)) as reporter:
        done = restore.run(request, repository=repository, reporter=reporter, stop=context.stop)
    if context.as_json:
        document = {
            "id": done.backup.id,
            "domain": {"name": done.backup.domain_name, "uuid": done.backup.domain_uuid},
            "host": None if done.backup.host is None else manifest.host_document(done.backup.host),
            "disks": [
                {
                    "dev": dev,
                    "file": str(path),
                    "format": options.format,
                    "backup": done.backups[dev],
                    "checkpoint": dev in done.checkpoints,
                }
                for dev, path in done.images.items()
            ],
            "domain_xml": str(done.domain_xml),
            "machine": restored_machine.document(done.machine),
            "tpm_place": None if done.tpm_place is None else str(done.tpm_place),
            "autostart": done.backup.autostart,
            "closed": [str(path) for path in done.closed],
            "left_out": [manifest.left_out_document(left) for left in done.left_out],
            "shared": [manifest.left_out_document(left) for left in done.shared],
        }
        context.print_document("vbackup.restore/1", document)
        return Status.DONE
    if not context.is_quiet:
        _print(done, context)
    return Status.DONE


def _in_place(options: argparse.Namespace, backup_id: str | None, context: Context) -> int:
    """Roll the disks of a domain of the host back, and print how much was written."""
    if options.format is not None:
        raise UsageError("--format is for a restore with --output: in place the images keep their format.")
    repository = Repository.open(context.repository_path())
    request = restore_in_place.InPlaceRequest(
        domain=domain_of(options),
        wanted=wanted_of(options, backup_id),
        checkpoint=not options.no_checkpoint,
        exclusive=options.exclusive,
        speed_bytes_s=options.speed,
        wait_lock_s=options.wait_lock,
    )
    with Host(context.uri) as host, context.reporting(request.domain) as reporter:
        done = restore_in_place.run(request, host=host, repository=repository, reporter=reporter, stop=context.stop)
    if context.as_json:
        document = {
            "id": done.backup_id,
            "domain": {"name": done.domain_name, "uuid": done.domain_uuid},
            "disks": [{"dev": one.dev, "backup": one.backup, "written_bytes": one.written_bytes} for one in done.disks],
        }
        context.print_document("vbackup.rollback/1", document)
    elif not context.is_quiet:
        print(output.plain(f"Disks of domain {done.domain_name}, restored in place:"))
        for one in done.disks:
            print(output.plain(f"  {one.dev}: as in backup {one.backup}, {output.size(one.written_bytes)} written"))
    return Status.DONE


def _print(done: restore.Restored, context: Context) -> None:
    """Print what was written, and the commands that start the domain from it."""
    print(output.plain(f"Restored backup {done.backup.id} of domain {done.backup.domain_name}:"))
    for path in (*done.images.values(), *(one.path for one in done.machine), done.domain_xml):
        print(output.plain(f"  {path}"))
    virsh = ["virsh"] if context.uri is None else ["virsh", "-c", context.uri]
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


def _tpm_commands(done: restore.Restored) -> list[str]:
    """Return the commands that bring the state of the TPM to where an older libvirt looks for it."""
    state = restored_machine.path_of(done.machine, MachineKind.TPM)
    if done.tpm_place is None or state is None:
        return []
    return [
        shlex.join(["mkdir", "-p", str(done.tpm_place)]),
        f"{shlex.join(['cp', '-rT', str(state), str(done.tpm_place)])}  # the TPM's state, while no domain uses it",
    ]
