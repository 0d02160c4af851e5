"""The room that an image needs is known before it is written; a speed limit goes to whoever writes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.recorded import MIB, Recorded
from tests.unit.builders import UUID, Recorder
from vbackup.images import restoring
from vbackup.images.restoring import Restoring
from vbackup.model import ImageFormat
from vbackup.qemu.qemu_img import Output
from vbackup.stop import Stop


@pytest.mark.parametrize("image_format", ImageFormat)
def test_image_takes_no_more_room_than_was_said(recorded: Recorded, tmp_path: Path, image_format: ImageFormat) -> None:
    repository = recorded.repository
    write = Restoring(repository, Recorder(), Stop(), tmp_path).write
    for one in recorded.backups:
        links = repository.catalogue(UUID).history.links(one.id, "vda")
        path = tmp_path / one.id
        write(links, path, image_format)
        needed_bytes = restoring.needed_bytes(links, repository)
        assert path.stat().st_blocks * 512 <= needed_bytes < 3 * MIB


def test_without_block_lists_the_whole_disk_counts(recorded_old: Recorded) -> None:
    repository = recorded_old.repository
    links = repository.catalogue(UUID).history.links(recorded_old.backups[1].id, "vda")
    assert 8 * MIB < restoring.needed_bytes(links, repository) < 10 * MIB


def test_existing_file_is_written_as_it_is_and_slowly(recorded: Recorded, tmp_path: Path) -> None:
    one = recorded.backups[0]
    links = recorded.repository.catalogue(UUID).history.links(one.id, "vda")
    path = tmp_path / "volume"
    path.write_bytes(b"\xff" * (10 * MIB))
    path.chmod(0o640)
    inode = path.stat().st_ino
    begin = time.monotonic()
    limited = Restoring(recorded.repository, Recorder(), Stop(), tmp_path, speed_bytes_s=128 * 1024)
    limited.write(links, path, ImageFormat.RAW, output=Output.FILE)
    assert time.monotonic() - begin > 0.3
    assert path.read_bytes() == recorded.contents[one.id, "vda"]
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o640)
