"""``vbackup session``: begin, look at, renew, commit and abort pull sessions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from vbackup.api import Session, SessionRequest, split_session_address
from vbackup.cli import output, session_changes
from vbackup.cli.arguments import domain_of, optional_domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError
from vbackup.model import Level, Quiesce


def run(options: argparse.Namespace, context: Context) -> int:
    """Carry out a step of a session and print the session document."""
    _STEPS[options.action](options, context)
    return Status.DONE


def _begin(options: argparse.Namespace, context: Context) -> None:
    listen = None if options.listen == "unix" else options.listen
    if listen is not None and options.tls_creds is None:
        raise UsageError(f"{listen} would serve the disks to the network: give certificates with --tls-creds.")
    if listen is None and options.tls_creds is not None:
        raise UsageError("--tls-creds is for --listen HOST:PORT; only its owner reaches a unix socket.")
    if listen is not None:
        split_session_address(listen)
    level = Level(options.level)
    if options.base is not None and level is Level.FULL:
        raise UsageError("A full session starts from nothing: leave out --base or --level full.")
    request = SessionRequest(
        domain=domain_of(options),
        tracker=options.tracker,
        level=level,
        base=options.base,
        disks=tuple(options.disk),
        excluded_disks=tuple(options.exclude_disk),
        quiesce=Quiesce(options.quiesce),
        freeze_limit_s=options.freeze_limit,
        scratch=options.scratch,
        ttl_s=options.ttl,
        listen=listen,
        tls=options.tls_creds,
        exclusive=options.exclusive,
    )
    with context.connect_to_libvirt() as vb, context.reporting(request.domain) as reporter:
        session = vb.begin_session(request, reporter=reporter)
    _print(session, context)


def _status(options: argparse.Namespace, context: Context) -> None:
    with context.connect_to_libvirt() as vb, context.reporting(steps=False) as reporter:
        session = vb.session(options.session, reporter=reporter)
    _print(session, context)


def _renew(options: argparse.Namespace, context: Context) -> None:
    with context.connect_to_libvirt() as vb, context.reporting(steps=False) as reporter:
        session = vb.renew_session(options.session, options.ttl, reporter=reporter)
    _print(session, context)


def _commit(options: argparse.Namespace, context: Context) -> None:
    with context.connect_to_libvirt() as vb, context.reporting() as reporter:
        session = vb.commit_session(options.session, reporter=reporter)
    _print(session, context)


def _abort(options: argparse.Namespace, context: Context) -> None:
    with context.connect_to_libvirt() as vb, context.reporting() as reporter:
        session = vb.abort_session(options.session, reporter=reporter)
    _print(session, context)


def _list(options: argparse.Namespace, context: Context) -> None:
    with context.connect_to_libvirt() as vb:
        sessions = vb.sessions(optional_domain_of(options))
    if context.as_json:
        context.print_document("vbackup.sessions/1", {"sessions": [one.document() for one in sessions]})
    elif not sessions:
        print("No sessions.")
    else:
        output.table(
            ("SESSION", "DOMAIN", "TRACKER", "STATE", "EXPIRES"),
            [
                (one.id, one.domain_name, one.tracker, one.state.value, output.local_time(one.expires))
                for one in sessions
            ],
        )


def _print(session: Session, context: Context) -> None:
    if context.as_json:
        document = session.document()
        context.print_document(str(document.pop("schema")), document)
        return
    if context.is_quiet:
        return
    until = "" if session.state.has_ended else f" until {output.local_time(session.expires)}"
    why = f": {session.end_reason}" if session.end_reason else ""
    print(
        output.plain(
            f"Session {session.id} of tracker {session.tracker}, domain {session.domain_name}:"
            f" {session.state.value}{until}{why}."
        )
    )
    if session.state.has_ended:
        return
    output.table(
        ("DISK", "LEVEL", "SIZE", "CHANGED", "URI"),
        [
            (
                disk.dev,
                disk.level.value,
                output.size(disk.size_bytes),
                "" if disk.dirty_bytes is None else output.size(disk.dirty_bytes),
                disk.uri,
            )
            for disk in session.disks
        ],
    )


_STEPS: Mapping[str, Callable[[argparse.Namespace, Context], None]] = {
    "begin": _begin,
    "status": _status,
    "changes": session_changes.run,
    "list": _list,
    "renew": _renew,
    "commit": _commit,
    "abort": _abort,
}
