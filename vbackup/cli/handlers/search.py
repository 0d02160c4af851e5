"""``vbackup search``: find files by name in the backups of domains."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup import names
from vbackup.api import FoundFile, Searched, SearchRequest
from vbackup.cli import guest_files, keys, output
from vbackup.cli.arguments import domain_and_words_of, swallowed
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError, error_document


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the files; status 3 if some backups could not be searched, theirs if none could."""
    pattern, words = _words(options)
    where, path = _split(pattern)
    with context.connect() as vb:
        uuids = context.uuids_of(vb.repository, words)
        request = SearchRequest(path, where, last=options.last, host=options.host)
        of_key = keys.of(options.key_file, context.stop)
        answers = []
        for uuid in uuids:
            with context.reporting(words[0] if len(uuids) == 1 else None) as reporter:
                answers.append(vb.search(uuid, request, keys=of_key, reporter=reporter))
    if context.as_json:
        context.print_document("vbackup.search/1", {"domains": [_document(each) for each in answers]})
    else:
        _print(answers, in_bytes=options.bytes, is_quiet=context.is_quiet)
    failed = [err for each in answers for _, err in each.failed]
    if not failed:
        return Status.DONE
    return Status.SOME_FAILED if any(each.backups for each in answers) else int(failed[0].status)


def _words(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the pattern and the domains. Raises UsageError."""
    named: str | None = options.domain_option
    options.domain_option = None
    pattern, words = domain_and_words_of(options) if options.words else ("", [])
    if named is not None:
        words.append(named)
    if not pattern:
        raise UsageError(f"No pattern given: [WHERE:]PATTERN DOMAIN...{swallowed(options)}.")
    if not words:
        raise UsageError(f"No domain given: the only word, {pattern!r}, is the pattern.")
    return pattern, words


def _split(pattern: str) -> tuple[str | None, str]:
    """Return the disk or file system to search, or None, and the pattern. Raises UsageError."""
    where, colon, path = pattern.partition(":")
    if not colon or pattern.startswith("/") or names.is_pattern(where):
        return None, pattern
    if not where or not path:
        raise UsageError(
            f"{pattern!r} is no pattern: give WHERE:PATTERN, such as 'vda:*.conf'; for a colon in a name, '?'."
        )
    return where, path


def _print(answers: list[Searched], *, in_bytes: bool, is_quiet: bool) -> None:
    rows = [
        [
            *([each.domain_name] if len(answers) > 1 else []),
            _points(one),
            guest_files.size(one.entry, in_bytes=in_bytes),
            output.local_time(one.entry.mtime),
            str(one.address),
        ]
        for each in answers
        for one in each.found
    ]
    headings = [*(["DOMAIN"] if len(answers) > 1 else []), "BACKUPS OF", "SIZE", "CHANGED AT", "PATH"]
    if rows:
        output.table(headings, rows)
    elif not is_quiet:
        count = sum(len(each.backups) for each in answers)
        print(f"Nothing found in {count} backup{'' if count == 1 else 's'}.")


def _points(found: FoundFile) -> str:
    return found.newest if found.oldest == found.newest else f"{found.oldest}..{found.newest}"


def _document(searched: Searched) -> dict[str, Any]:
    return {
        "domain": {"name": searched.domain_name, "uuid": searched.domain_uuid},
        "backups": list(searched.backups),
        "failed": [
            {"id": backup_id, "message": str(err), "error": error_document(err)} for backup_id, err in searched.failed
        ],
        "found": [
            {"from": one.oldest, "to": one.newest, "where": one.address.where, **guest_files.document(one.entry)}
            for one in searched.found
        ],
    }
