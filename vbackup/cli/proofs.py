"""``vbackup verify --boot`` and ``--fsck``: prove that a backup boots, or that its file systems are whole."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vbackup.api import BOOT_PICTURE, Connection, Repository, documents
from vbackup.cli import one_by_one, output
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError, VbackupError, error_document
from vbackup.report import Reporter

if TYPE_CHECKING:
    from vbackup.api import Booted, CheckedFileSystems

#: Options that are of no use without --boot, by their names in the namespace.
_ONLY_WITH_BOOT = ("boot_exec", "boot_console", "boot_screen", "boot_timeout", "boot_memory")
#: Options of verify that are about reading images.
_OF_READING = ("sample", "parallel", "speed", "force")


def check(options: argparse.Namespace) -> None:
    """Raise UsageError if options contradict each other."""
    if options.boot and options.fsck:
        raise UsageError("Give --boot or --fsck, not both.")
    mode = "--boot" if options.boot else "--fsck"
    if (options.boot or options.fsck) and (given := _given(options, _OF_READING)):
        raise UsageError(f"{given} is about reading the images, which {mode} does not do: verify without {mode}.")
    if not options.boot and (given := _given(options, _ONLY_WITH_BOOT)):
        raise UsageError(f"{given} needs --boot.")


def _given(options: argparse.Namespace, names: Sequence[str]) -> str | None:
    """Return the first of these options that was given, or None."""
    given = (name for name in names if getattr(options, name) not in (None, False))
    return next((f"--{name.replace('_', '-')}" for name in given), None)


def run(options: argparse.Namespace, context: Context, vb: Connection, uuids: Sequence[str]) -> int:
    """Prove a backup of each domain, one after the other; the exit status is 6 if one is not what it should be."""
    started, repository = time.monotonic(), vb.repository
    is_one = not options.all and len(uuids) == 1
    with context.reporting(repository.name_of(uuids[0]) if is_one else None) as reporter:
        prove = (_booting if options.boot else _checking)(options, vb)
        done, failed = one_by_one.run(uuids, prove, repository=repository, reporter=reporter, is_one=is_one)
    if is_one and failed:
        raise next(iter(failed.values()))
    bad = [one for one in done if not one.result.is_good]
    if context.as_json:
        document = {
            "repository": {"path": str(repository.path), "id": repository.id},
            "domains": [
                *({"uuid": one.uuid, "name": one.name, **_document(one, options)} for one in done),
                *_failed_documents(failed, repository),
            ],
            "damaged": 0 if options.boot else len(bad),
            "not_booted": len(bad) if options.boot else 0,
            "duration_s": round(time.monotonic() - started, 3),
        }
        context.print_document("vbackup.verify/1", document)
    elif bad or not context.is_quiet:
        for one in done:
            (_print_booted if options.boot else _print_checked)(one)
    return _status(len(done), len(bad), failed, "did not boot" if options.boot else "have damaged file systems")


Prove = Callable[[str, Reporter], Any]


def _booting(options: argparse.Namespace, vb: Connection) -> Prove:
    # To read images, verify needs no libvirt.
    from vbackup.api import BOOT_MEMORY_BYTES, BOOT_TIMEOUT_S, BootRequest

    request = BootRequest(
        options.backup,
        tuple(options.disk),
        command=options.boot_exec,
        console=options.boot_console,
        screen=options.boot_screen,
        timeout_s=BOOT_TIMEOUT_S if options.boot_timeout is None else options.boot_timeout,
        max_memory_bytes=BOOT_MEMORY_BYTES if options.boot_memory is None else options.boot_memory,
    )
    vb.connect_to_libvirt()

    def prove(uuid: str, reporter: Reporter) -> Booted:
        return vb.boot_test(uuid, request, reporter=reporter)

    return prove


def _checking(options: argparse.Namespace, vb: Connection) -> Prove:
    from vbackup.api import FsckRequest

    request = FsckRequest(options.backup, tuple(options.disk))

    def prove(uuid: str, reporter: Reporter) -> CheckedFileSystems:
        return vb.fsck(uuid, request, reporter=reporter)

    return prove


def _status(done: int, bad: int, failed: Mapping[str, VbackupError], what: str) -> int:
    if bad:
        print(f"vbackup: {bad} of {done} backup{'s' * (done != 1)} {what}.", file=sys.stderr)
        return Status.CHAIN
    if failed:
        print(f"vbackup: {len(failed)} of {done + len(failed)} domains failed.", file=sys.stderr)
        return Status.SOME_FAILED if done else next(iter(failed.values())).status
    return Status.DONE


def _document(one: Any, options: argparse.Namespace) -> dict[str, Any]:
    members = documents.boot(one.result) if options.boot else documents.fsck(one.result)
    return {"boot" if options.boot else "fsck": {"backup": one.backup.id, **members, "kept": one.is_kept}}


def _failed_documents(failed: Mapping[str, VbackupError], repository: Repository) -> list[dict[str, Any]]:
    return [
        {"uuid": uuid, "name": repository.name_of(uuid), "error": error_document(err)} for uuid, err in failed.items()
    ]


def _print_booted(one: Booted) -> None:
    result = one.result
    print(output.plain(f"Domain {one.name}, backup {one.backup.id}: {result.verdict}. {result.reason}"))
    if result.picture is not None and one.is_kept:
        print(output.plain(f"  Its screen: {one.directory / BOOT_PICTURE}"))
    if not result.is_good and result.console_end.strip():
        print(output.plain(f"  The last line of its console: {result.console_end.strip().splitlines()[-1]}"))
    for remark in result.remarks if not result.is_good else ():
        print(output.plain(f"  Not in the copy: {remark}"))


def _print_checked(one: CheckedFileSystems) -> None:
    print(output.plain(f"Domain {one.name}, backup {one.backup.id}: {one.result.reason}"))
    for system in one.result.file_systems:
        detail = f": {' '.join(system.detail.split())}" if system.detail else ""
        print(output.plain(f"  {system.name} ({system.type}): {system.state}{detail}"))
