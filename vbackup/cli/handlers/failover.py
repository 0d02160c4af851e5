"""``vbackup failover``: let a standby take over, or try it with a copy."""

from __future__ import annotations

import argparse
import sys

from vbackup.api import BOOT_TIMEOUT_S, BootRequest, FailoverRequest, documents
from vbackup.cli import output
from vbackup.cli.arguments import domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError

_OF_TEST = ("boot_exec", "boot_console", "boot_timeout")
_OF_FAILOVER = ("no_start", "as_is", "force", "wait_lock")


def run(options: argparse.Namespace, context: Context) -> int:
    """Let it take over, and print what it goes on from."""
    for name in _OF_FAILOVER if options.test else _OF_TEST:
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} {'is not for' if options.test else 'needs'} --test.")
    if options.test:
        return _test(options, context)
    domain = domain_of(options)
    request = FailoverRequest(
        domain,
        options.to,
        start=not options.no_start,
        is_forced=options.force,
        as_is=options.as_is,
        wait_lock_s=options.wait_lock,
    )
    with context.connect() as vb, context.reporting(domain) as reporter:
        done = vb.failover(request, asks_original=context.uri is not None, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.failover/1", documents.failed_over(done))
    elif not context.is_quiet:
        state = "runs" if done.is_running else "is off"
        print(
            output.plain(f"The standby of {done.name} at {done.uri} has taken over from {done.backup_id}, and {state}.")
        )
    return Status.DONE


def _test(options: argparse.Namespace, context: Context) -> int:
    """Boot a copy; the exit status is 6 if it does not boot."""
    domain = domain_of(options)
    request = BootRequest(
        command=options.boot_exec,
        console=options.boot_console,
        timeout_s=BOOT_TIMEOUT_S if options.boot_timeout is None else options.boot_timeout,
    )
    with context.connect() as vb, context.reporting(domain) as reporter:
        done = vb.test_failover(domain, options.to, request, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.failovertest/1", documents.tested_failover(done))
    elif not done.result.is_good or not context.is_quiet:
        result = done.result
        print(output.plain(f"A copy of the standby of {done.name}: {result.verdict}. {result.reason}"))
        for remark in result.remarks if not result.is_good else ():
            print(output.plain(f"  Not in the copy: {remark}"))
    if done.result.is_good:
        return Status.DONE
    print("vbackup: The copy of the standby did not boot.", file=sys.stderr)
    return Status.CHAIN
