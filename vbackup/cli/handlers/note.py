"""``vbackup note``: give a backup a note."""

from __future__ import annotations

import argparse

from vbackup.api import NoteRequest, note_fault
from vbackup.cli import output
from vbackup.cli.arguments import backup_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Write the note and print it."""
    domain, (backup_id, *texts) = backup_words_of(options)
    if not texts:
        raise UsageError("No text given; '' removes the note.")
    if len(texts) > 1:
        raise UsageError(f"More than one text given: {texts[0]!r} and {texts[1]!r}; put a text with spaces in quotes.")
    fault = note_fault(texts[0]) if texts[0] else None
    if fault is not None:
        raise UsageError(f"The text {fault}.")
    with context.connect() as vb, context.reporting(domain) as reporter:
        uuid = None if domain is None else context.uuid_of(vb.repository, domain)
        request = NoteRequest(backup_id, texts[0], uuid, wait_lock_s=options.wait_lock)
        found = vb.note(request, reporter=reporter)
    name = vb.repository.name_of(found.uuid)
    if context.as_json:
        document = {"domain": {"name": name, "uuid": found.uuid}, "id": found.id, "note": request.text or None}
        context.print_document("vbackup.note/1", document)
    elif not context.is_quiet:
        text = f"has the note: {request.text}" if request.text else "has no note any more."
        print(output.plain(f"Backup {found.id} of domain {name} {text}"))
    return Status.DONE
