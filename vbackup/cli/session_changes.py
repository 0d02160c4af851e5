"""``vbackup session changes``: print the extents that a client of a pull session has to read."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.api import Changes, ChangesKind, ChangesRequest
from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import UsageError

SCHEMA = "vbackup.changes/1"


def run(options: argparse.Namespace, context: Context) -> None:
    """Print a page of extents: as JSON, or as a table."""
    kind, checkpoint = _kind(options.kind)
    if len(options.disk) > 1:
        raise UsageError("--disk names one disk: call it once for each.", help_of="vbackup session changes")
    request = ChangesRequest(
        session=options.session,
        dev=options.disk[0],
        offset_bytes=options.offset,
        length_bytes=options.length,
        max_results=options.max_results,
        kind=kind,
        checkpoint=checkpoint,
        tls_creds=options.tls_creds,
    )
    with context.connect_to_libvirt() as vb:  # which this command does not ask
        changes = vb.session_changes(request)
    if context.as_json:
        document = changes.document()
        extents = document.pop("extents")
        context.print_stream(SCHEMA, document, "extents", extents)
    else:
        _print(changes)


def _kind(words: list[str]) -> tuple[ChangesKind, str | None]:
    name, *more = words
    try:
        kind = ChangesKind(name)
    except ValueError:
        kinds = ", ".join(one.value for one in ChangesKind)
        raise UsageError(f"--kind must be one of {kinds}, not {name}.", help_of="vbackup session changes") from None
    if len(more) != (kind is ChangesKind.BETWEEN):
        raise UsageError("--kind is delta, allocated, or between and a checkpoint.", help_of="vbackup session changes")
    return kind, more[0] if more else None


def _print(changes: Changes) -> None:
    rows: list[Any] = [
        (str(start), str(length), "yes" if is_dirty else "no", "yes" if is_zero else "no")
        for start, length, is_dirty, is_zero in changes.extents
    ]
    if rows:
        output.table(("START", "LENGTH", "DIRTY", "ZERO"), rows)
    else:
        print("No extents.")
    if changes.next_offset_bytes is not None:
        print(f"More follow: --offset {changes.next_offset_bytes}")
