"""Open the QEMU that the arguments of vbackup.cli.arguments.add_qemu name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.cli.context import Context, domain_of
from vbackup.errors import UsageError
from vbackup.model import ImageFormat
from vbackup.report import Reporter

if TYPE_CHECKING:
    from vbackup.domain.attached import AttachedQemu

#: Begins the name of an image that is raw: a format is never guessed, the guest could have written another's header.
RAW_PREFIX = "raw:"


def is_without_libvirt(options: argparse.Namespace) -> bool:
    """True if a socket or images were named in place of a domain."""
    return options.socket is not None or bool(options.image)


def check(options: argparse.Namespace) -> None:
    """Raise UsageError where not exactly one of domain, socket and images was named."""
    if options.socket is not None and options.image:
        raise UsageError("Give --socket or --image, not both.")
    if not is_without_libvirt(options):
        domain_of(options)
    elif options.domain is not None or options.domain_option is not None:
        raise UsageError("Give a domain, or --socket or --image in its place, not both.")


@contextmanager
def opened(options: argparse.Namespace, context: Context, reporter: Reporter) -> Iterator[AttachedQemu]:
    """The QEMU that the options name. Raises UsageError, see ``check``, and what vbackup.domain.attached raises."""
    check(options)
    if is_without_libvirt(options):
        with _without_libvirt(options, reporter) as attached:
            yield attached
        return
    from vbackup.domain import attached as session_
    from vbackup.domain.host import Host

    with Host(context.uri) as host, session_.of_domain(host, domain_of(options), reporter=reporter) as attached:
        yield attached


@contextmanager
def _without_libvirt(options: argparse.Namespace, reporter: Reporter) -> Iterator[AttachedQemu]:
    from vbackup.domain import attached

    if options.socket is not None:
        with attached.of_socket(options.socket) as made:
            yield made
        return
    images = []
    for dev, text in zip(names.disk_devs(), options.image):
        is_raw = text.startswith(RAW_PREFIX)
        path = text[len(RAW_PREFIX) :] if is_raw else text
        images.append((dev, Path(path).absolute(), ImageFormat.RAW if is_raw else ImageFormat.QCOW2))
    with attached.of_images(images, reporter=reporter) as made:
        yield made
