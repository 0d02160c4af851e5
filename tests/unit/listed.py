"""Backups with block lists and no data: what a command that reads only lists needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from tests.unit.builders import commit
from vbackup.model import Backup, BlocksRecord
from vbackup.repository import block_list
from vbackup.repository.block_list import Algorithm, Segment
from vbackup.repository.repository import Repository

#: What an image holds in the first segment of the disk: number of a block to its content, 0 for zeros.
Content = Mapping[int, int]


def commit_listed(
    repository: Repository, one: Backup, contents: Mapping[str, Content], *, algorithm: Algorithm | None = None
) -> Path:
    """Put a backup into a repository, with lists of these contents, by dev; returns its directory."""
    algorithm = algorithm or block_list.best_algorithm()
    place = repository.path.parent / "lists"
    place.mkdir(exist_ok=True)
    images = []
    for image in one.disks:
        if image.dev in contents:
            written = block_list.write(
                place / image.dev,
                [_segment(contents[image.dev])],
                virtual_size_bytes=image.virtual_size_bytes,
                algorithm=algorithm,
            )
            blocks = BlocksRecord(written.digest, written.digest, written.data_blocks, written.zero_blocks)
            image = replace(image, digest=None, blocks=blocks)  # noqa: PLW2901
        images.append(image)
    directory = commit(repository, replace(one, disks=tuple(images)))
    for dev in contents:
        (place / dev).replace((directory / dev).with_suffix(block_list.SUFFIX))
    return directory


def _segment(content: Content) -> Segment:
    held = sum(1 << block for block in content)
    data = sum(1 << block for block, value in content.items() if value)
    digests = b"".join(sha256(b"%d" % content[block]).digest() for block in sorted(content) if content[block])
    return Segment(0, held, data, digests)
