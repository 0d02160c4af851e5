"""``vbackup mount``: show the disks of a backup as files, in the background or until a signal."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import syslog
from contextlib import ExitStack
from typing import Any

from vbackup.api import Mounted, MountRequest, connect
from vbackup.cli import background, copies, output
from vbackup.cli.arguments import directory_words_of, wanted_of
from vbackup.cli.background import Background
from vbackup.cli.context import Context
from vbackup.errors import Status, VbackupError
from vbackup.report import Phase, Reporter


def run(options: argparse.Namespace, context: Context) -> int:
    """Mount, print the files, and wait for the end; a signal is the usual one, with status 0."""
    domain, backup_id, directory = directory_words_of(options)
    path = None if options.from_target is not None else context.repository_path().absolute()
    copies.make_absolute(options)
    child: Background | None = None
    if not options.foreground:
        started = background.start(context.stop)
        if isinstance(started, int):
            return started
        child = started
    with ExitStack() as stack:
        reporter: Reporter = stack.enter_context(context.reporting(domain, steps=False))
        if path is not None:
            vb, target = stack.enter_context(connect(context.uri, repository=path, stop=context.stop)), None
        else:
            reporter = _Logging(reporter)
            vb, target = stack.enter_context(copies.connected(options, context, reporter=reporter))
        wanted = wanted_of(options, backup_id)
        request = MountRequest(vb.uuid_of(domain, reporter=reporter), directory.absolute(), wanted)
        if target is not None:
            target.show(request.domain, wanted)
        mounted = stack.enter_context(vb.mount(request, reporter=reporter))
        _print(mounted, context, in_background=child is not None)
        if child is None:
            mounted.wait(context.stop)
            return Status.DONE
        child.ready()
        if isinstance(reporter, _Logging):
            reporter.is_seen = False
        _wait_in_background(mounted, context)
    return Status.DONE


def _wait_in_background(mounted: Mounted, context: Context) -> None:
    """Wait; nobody sees what is printed now, so that what went wrong is in the system's log."""
    try:
        mounted.wait(context.stop)
    except VbackupError as err:
        _log(syslog.LOG_ERR, f"mount {mounted.directory}: {err}")
        raise


def _log(level: int, text: str) -> None:
    syslog.openlog("vbackup", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(level, output.plain(text))


class _Logging:
    """A reporter whose warnings go to the system's log when nobody sees any more what is printed."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.is_seen = True

    def step(self, message: str) -> None:
        """As Reporter."""
        self._reporter.step(message)

    def warning(self, message: str) -> None:
        """As Reporter."""
        if self.is_seen:
            self._reporter.warning(message)
        else:
            _log(syslog.LOG_WARNING, message)

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """As Reporter."""
        self._reporter.progress(dev, phase, done_bytes, total_bytes)


def _print(mounted: Mounted, context: Context, *, in_background: bool) -> None:
    backup = mounted.backup
    if context.as_json:
        document: dict[str, Any] = {
            "id": backup.id,
            "domain": {"name": backup.domain_name, "uuid": backup.domain_uuid},
            "directory": str(mounted.directory),
            "pid": os.getpid(),
            "disks": [
                {"dev": one.dev, "backup": one.backup_id, "size_bytes": one.size_bytes, "file": str(one.file)}
                for one in mounted.disks.values()
            ],
        }
        (context.print_document if in_background else context.print_line)("vbackup.mount/1", document)
    elif not context.is_quiet:
        print(output.plain(f"Backup {backup.id} of domain {backup.domain_name} is mounted, read-only:"))
        for one in mounted.disks.values():
            of = f", of {one.backup_id}" if one.backup_id != backup.id else ""
            print(output.plain(f"  {one.file} ({output.size(one.size_bytes)}{of})"))
        end = f"vbackup umount {shlex.quote(str(mounted.directory))}"
        print(output.plain(f"To end it: {end}" if in_background else f"To end it: Ctrl-C, or {end}"))
    sys.stdout.flush()
