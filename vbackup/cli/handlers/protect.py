"""``vbackup protect``: protect backups from being removed; ``vbackup unprotect`` ends that with the same function."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.api import ChangedProtection, ProtectRequest, documents
from vbackup.cli import output
from vbackup.cli.arguments import backup_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Protect the backups and print which."""
    return change(options, context, is_protected=True)


def change(options: argparse.Namespace, context: Context, *, is_protected: bool) -> int:
    """Protect the backups, or end their protection, and print which."""
    domain, ids = backup_words_of(options)
    if is_protected and options.immutable is not None and options.reason is not None:
        raise UsageError("--reason is kept with a protection, which --immutable is not; give one of the two.")
    with context.connect() as vb, context.reporting(domain) as reporter:
        request = ProtectRequest(
            tuple(ids),
            None if domain is None else context.uuid_of(vb.repository, domain),
            is_protected=is_protected,
            reason=options.reason if is_protected else None,
            immutable_days=options.immutable if is_protected else None,
            wait_lock_s=options.wait_lock,
        )
        changed = vb.protect(request, reporter=reporter)
    if context.as_json:
        schema = "vbackup.protect/1" if is_protected else "vbackup.unprotect/1"
        context.print_document(schema, {"backups": [_document(one) for one in changed]})
    elif not context.is_quiet:
        for one in changed:
            print(output.plain(_sentence(one)))
    return Status.DONE


def _document(one: ChangedProtection) -> dict[str, Any]:
    since = one.protection.since if one.protection is not None else None
    until = one.immutable_until
    return {
        "domain": {"name": one.domain_name, "uuid": one.backup.uuid},
        "id": one.backup.id,
        "protected": one.protection is not None,
        "since": None if since is None else documents.time(since),
        "reason": one.protection.reason if one.protection is not None else None,
        "immutable_until": None if until is None else documents.time(until),
    }


def _sentence(one: ChangedProtection) -> str:
    backup = f"Backup {one.backup.id} of domain {one.domain_name}"
    if one.immutable_until is not None:
        until = output.local_minute(one.immutable_until)
        also = "" if one.protection is None else ", and protected"
        return f"{backup} is immutable until {until}, with all that it depends on{also}."
    if one.protection is None:
        return f"{backup} is not protected any more."
    since = one.protection.since
    words = [f"since {output.local_minute(since)}"] if since is not None else []
    words += [one.protection.reason] if one.protection.reason is not None else []
    more = f" ({', '.join(words)})" if words else ""
    return f"{backup} is protected{more}."
