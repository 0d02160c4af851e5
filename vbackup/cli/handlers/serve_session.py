"""``vbackup serve-session``: serve the disks of a pull session over HTTPS."""

from __future__ import annotations

import argparse
import sys

from vbackup.api import ServedSession, ServeSessionRequest
from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import Status


def run(options: argparse.Namespace, context: Context) -> int:
    """Serve, print the addresses, and wait for a signal or a commit, which are the usual ends, with status 0."""
    host, port = options.listen
    request = ServeSessionRequest(
        session=options.session,
        host=host,
        port=port,
        tls_creds=options.tls_creds,
        token_file=options.token_file,
        verify_peer=options.verify_peer,
        max_readers=options.max_readers,
    )

    def on_ready(serving: ServedSession) -> None:
        _print(serving, context)

    with context.connect_to_libvirt() as vb:  # which this command does not ask
        is_committed = vb.serve_session(request, on_ready)
    if is_committed and not (context.as_json or context.is_quiet):
        print(f"Session {options.session} is committed.")
    return Status.DONE


def _print(serving: ServedSession, context: Context) -> None:
    if context.as_json:
        context.print_line("vbackup.http/1", serving.document())
    elif not context.is_quiet:
        print(output.plain(f"Session {serving.session.id} of domain {serving.session.domain_name} is served:"))
        for disk in serving.session.disks:
            print(output.plain(f"  {serving.url}/{disk.dev}/data ({output.size(disk.size_bytes)})"))
        print("Ctrl-C ends it.")
    sys.stdout.flush()
