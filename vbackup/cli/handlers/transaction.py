"""``vbackup transaction``: check and send a QMP transaction that the user wrote."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vbackup.api import CompletionMode, Job, TransactionDone, TransactionRequest
from vbackup.cli import output, qemu
from vbackup.cli.context import Context
from vbackup.errors import Status, TransactionError, UsageError

#: A transaction of a thousand disks is under 1 MiB.
MAX_FILE_BYTES = 16 * 1024 * 1024


def run(options: argparse.Namespace, context: Context) -> int:
    """Send the transaction and print what became of it; the exit status is that of the worst job."""
    if qemu.is_without_libvirt(options) and options.file is None:
        # Then the only positional argument is the file.
        options.file, options.domain = options.domain, None
    qemu.check(options)  # before it waits for standard input
    mode = options.completion_mode
    request = TransactionRequest(
        arguments=_read(options.file),
        completion_mode=None if mode is None else CompletionMode(mode),
        test=options.test,
        wait=options.wait,
        unsafe=options.unsafe,
    )
    with (
        context.connect_to_libvirt() as vb,
        context.reporting() as reporter,
        qemu.attach(options, vb, reporter=reporter) as attached,
    ):
        done = vb.transaction(attached, request, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.transaction/1", _document(done))
    elif not context.is_quiet or done.failed_jobs:
        _print(done)
    return _status(done)


def _read(name: str | None) -> Any:
    """Return the JSON in the file, or on standard input for None and "-". Raises UsageError, TransactionError."""
    try:
        if name is None or name == "-":
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except OSError as err:
        raise UsageError(f"Cannot read {name or 'standard input'}: {err.strerror or err}.") from err
    if len(data) > MAX_FILE_BYTES:
        raise TransactionError(
            "arguments", f"they are larger than {MAX_FILE_BYTES >> 20} MiB, the limit for a transaction."
        )
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:
        raise TransactionError("arguments", f"this is not JSON ({err}).") from err


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _status(done: TransactionDone) -> int:
    if any(job.error is not None and job.error.is_no_space for job in done.failed_jobs):
        return Status.STORAGE
    return Status.FAILED if done.failed_jobs else Status.DONE


def _document(done: TransactionDone) -> dict[str, Any]:
    return {
        "tested": done.tested,
        "completion": done.completion.value,
        "arguments": done.arguments,
        "warnings": list(done.warnings),
        "jobs": [_job(job) for job in done.jobs],
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "type": job.type,
        "status": job.status.value,
        "done_bytes": job.done_bytes,
        "total_bytes": job.total_bytes,
        "error": job.error,
    }


def _print(done: TransactionDone) -> None:
    count = len(done.arguments["actions"])
    actions = f"{count} action{'' if count == 1 else 's'}"
    if done.tested:
        print(f"QEMU prepared {actions} and undid {'it' if count == 1 else 'them'}; nothing was changed.")
        return
    print(f"QEMU carried out {actions}.")
    if done.jobs:
        output.table(
            ("JOB", "STATUS", "COPIED", "ERROR"),
            [(job.id, job.status.value, output.size(job.done_bytes), job.error or "-") for job in done.jobs],
        )
