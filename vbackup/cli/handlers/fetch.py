"""``vbackup fetch``: make a repository out of a target."""

from __future__ import annotations

import argparse

from vbackup.api import PARALLEL_OBJECTS, FetchRequest
from vbackup.cli import copies, output
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status


def run(options: argparse.Namespace, context: Context) -> int:
    """Fetch, and print how many backups the repository has now; a backup that cannot be read was a warning."""
    request = FetchRequest(
        context.repository_path(),
        tuple(domain_words_of(options)),
        parallel=PARALLEL_OBJECTS if options.parallel is None else options.parallel,
        bytes_s=options.bwlimit,
    )
    with (
        context.reporting() as reporter,
        copies.opened(options, context, options.from_target, reporter) as target,
    ):
        done = target.fetch(request)
    if context.as_json:
        context.print_document(
            "vbackup.fetch/1",
            {
                "target": target.name,
                "repository": {"path": str(done.path), "id": done.repository_id},
                "domains": [
                    {
                        "domain": {"name": done.names[uuid], "uuid": uuid},
                        "fetched": list(ids),
                        "there": list(done.there[uuid]),
                    }
                    for uuid, ids in done.points.items()
                ],
                "fetched_bytes": done.fetched_bytes,
            },
        )
    elif not context.is_quiet:
        count = sum(len(ids) for ids in done.points.values())
        had = sum(len(ids) for ids in done.there.values())
        there = f" {had} were there." if had else ""
        print(
            output.plain(
                f"Fetched {count} backups of {len(done.points)} domains, {output.size(done.fetched_bytes)}, into the"
                f" repository {done.path}.{there}"
            )
        )
    return Status.CHAIN if done.unreadable else Status.DONE
