"""Attach to the QEMU that the arguments of vbackup.cli.arguments.add_qemu name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vbackup import names
from vbackup.api import AttachedQemu, Connection
from vbackup.cli.arguments import domain_of
from vbackup.errors import UsageError
from vbackup.model import ImageFormat
from vbackup.report import Reporter

#: Prefix of a raw image's name. Formats are not probed: a guest can write another format's header to a raw disk.
RAW_PREFIX = "raw:"


def is_without_libvirt(options: argparse.Namespace) -> bool:
    """True if a socket or images were given instead of a domain."""
    return options.socket is not None or bool(options.image)


def check(options: argparse.Namespace) -> None:
    """Raise UsageError unless exactly one of domain, socket and images was given."""
    if options.socket is not None and options.image:
        raise UsageError("Give --socket or --image, not both.")
    if not is_without_libvirt(options):
        domain_of(options)
    elif options.domain is not None or options.domain_option is not None:
        raise UsageError("Give either a domain, or --socket or --image, not both.")


@contextmanager
def attach(options: argparse.Namespace, vb: Connection, *, reporter: Reporter) -> Iterator[AttachedQemu]:
    """Attach to the QEMU for the block. Raises as ``check`` does, and as the calls of the connection do."""
    check(options)
    if options.socket is not None:
        with vb.attach_socket(options.socket) as attached:
            yield attached
    elif options.image:
        with vb.attach_images(_images(options.image), exclusive=options.exclusive, reporter=reporter) as attached:
            yield attached
    else:
        with vb.attach(domain_of(options), exclusive=options.exclusive, reporter=reporter) as attached:
            yield attached


def _images(texts: list[str]) -> list[tuple[str, Path, ImageFormat]]:
    images = []
    for dev, text in zip(names.disk_devs(), texts):
        is_raw = text.startswith(RAW_PREFIX)
        path = text[len(RAW_PREFIX) :] if is_raw else text
        images.append((dev, Path(path).absolute(), ImageFormat.RAW if is_raw else ImageFormat.QCOW2))
    return images
