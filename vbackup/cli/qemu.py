"""Open the QEMU that the arguments of vbackup.cli.arguments.add_qemu name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vbackup import names
from vbackup.cli.arguments import domain_of
from vbackup.cli.context import Context
from vbackup.domain.attached import AttachedQemu, of_domain, of_images, of_socket
from vbackup.domain.host import Host
from vbackup.errors import UsageError
from vbackup.model import ImageFormat
from vbackup.report import Reporter

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
    with Host(context.uri) as host, of_domain(host, domain_of(options), reporter=reporter) as attached:
        yield attached


@contextmanager
def _without_libvirt(options: argparse.Namespace, reporter: Reporter) -> Iterator[AttachedQemu]:
    if options.socket is not None:
        with of_socket(options.socket) as made:
            yield made
        return
    images = []
    for dev, text in zip(names.disk_devs(), options.image):
        is_raw = text.startswith(RAW_PREFIX)
        path = text[len(RAW_PREFIX) :] if is_raw else text
        images.append((dev, Path(path).absolute(), ImageFormat.RAW if is_raw else ImageFormat.QCOW2))
    with of_images(images, reporter=reporter) as made:
        yield made
