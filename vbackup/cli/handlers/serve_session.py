"""``vbackup serve-session``: serve the disks of a pull session over HTTPS."""

from __future__ import annotations

import argparse
import sys

from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import Status
from vbackup.operations import serve_session
from vbackup.operations.serve_session import ServeSessionRequest, Serving
from vbackup.sessions import store
from vbackup.sessions.store import Store


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

    def on_ready(serving: Serving) -> None:
        _print(serving, context)

    is_committed = serve_session.run(
        request, store=Store(store.default_directory()), stop=context.stop, on_ready=on_ready
    )
    if is_committed and not (context.as_json or context.is_quiet):
        print(f"Session {options.session} is committed.")
    return Status.DONE


def _print(serving: Serving, context: Context) -> None:
    if context.as_json:
        context.print_document("vbackup.http/1", serving.document())
    elif not context.is_quiet:
        print(output.plain(f"Session {serving.session.id} of domain {serving.session.domain_name} is served:"))
        for disk in serving.session.disks:
            print(output.plain(f"  {serving.url}/{disk.dev}/data ({output.size(disk.size_bytes)})"))
        print("Ctrl-C ends it.")
    sys.stdout.flush()
