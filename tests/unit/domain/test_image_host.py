"""Images of a domain that is off, on a hypervisor: only looked at through the link."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit import builders
from vbackup.domain.image_host import ImagesHere, ImagesThere
from vbackup.errors import DiskError, RemoteError
from vbackup.model import BlockDriver, Disk, ImageLocation, SourceType
from vbackup.remote.link import Result

MIB = 1024 * 1024


class Helper:
    """A link whose other end has the files of this host."""

    file_system = "ext4"

    def stat(self, path: str) -> Mapping[str, int]:
        try:
            found = Path(path).stat()
        except OSError as err:
            raise RemoteError("hv1", f"look at {path}", str(err.strerror), errno=err.errno or 0) from err
        return {
            "mode": found.st_mode,
            "size": found.st_size,
            "mtime_ns": found.st_mtime_ns,
            "dev": 1,
            "ino": found.st_ino,
        }

    def read_file(self, path: str) -> Iterator[bytes]:
        yield Path(path).read_bytes()

    def try_run(self, argv: list[str]) -> Result:
        assert argv[0] == "findmnt"
        return Result(0, f"{self.file_system}\n".encode(), "")


@pytest.fixture
def there() -> ImagesThere:
    return ImagesThere(cast(Any, Helper()))


def disk(path: Path, image_format: BlockDriver = BlockDriver.QCOW2, **more: Any) -> Disk:
    place = ImageLocation(SourceType.FILE, image_format, os.fspath(path), **more)
    return Disk("vda", "vda", os.fspath(path), image_format, images=(place,))


def paths(there: ImagesThere, *arguments: Any) -> list[str]:
    return [image.path for image in there.images_of(disk(*arguments), lambda pool, volume: f"/{pool}/{volume}")]


def create(path: Path, *options: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, os.fspath(path), "1M"], check=True)


def test_chain_is_found_by_the_headers(there: ImagesThere, tmp_path: Path) -> None:
    base, middle, top = tmp_path / "base", tmp_path / "middle", tmp_path / "top"
    base.write_bytes(bytes(MIB))
    create(middle, "-b", "base", "-F", "raw")
    create(top, "-b", os.fspath(middle), "-F", "qcow2")
    assert paths(there, top) == [str(top), str(middle), str(base)]
    assert paths(there, base, BlockDriver.RAW) == [str(base)]
    here = ImagesHere().images_of(disk(top), lambda _pool, _volume: "")
    found = there.images_of(disk(top), lambda _pool, _volume: "")
    assert [(one.path, one.format) for one in found] == [(one.path, one.format) for one in here]


def test_what_cannot_be_known_there_is_refused(there: ImagesThere, tmp_path: Path) -> None:
    path = tmp_path / "image"
    with pytest.raises(DiskError, match="No such file"):
        paths(there, path)
    path.write_bytes(builders.qcow2_image(MIB, backing="/etc/shadow", offset_104=bytes(16)))
    with pytest.raises(DiskError, match="the format of /etc/shadow is recorded neither"):
        paths(there, path)
    with pytest.raises(DiskError, match="neither a file nor a block device"):
        paths(there, tmp_path, BlockDriver.RAW)
    path.write_bytes(b"no image")
    with pytest.raises(DiskError, match="is not a qcow2 image"):
        paths(there, path)
    with pytest.raises(DiskError, match="on another host"):
        paths(there, path, BlockDriver("vmdk"))
    create(path, "-o", f"data_file={tmp_path}/data")
    with pytest.raises(DiskError, match="external data file"):
        paths(there, path)
    path.write_bytes(builders.qcow2_image(MIB, backing=os.fspath(path)))
    with pytest.raises(DiskError, match="has a loop"):
        paths(there, path)


def test_only_a_file_system_of_one_host_is_written_to(there: ImagesThere, tmp_path: Path) -> None:
    create(tmp_path / "image")
    (image,) = there.images_of(disk(tmp_path / "image"), lambda _pool, _volume: "")
    assert there.doubt(image) is None
    cast(Any, there.link).file_system = "nfs4"
    assert there.doubt(image) == "is on a filesystem that other hosts may share (nfs4)"
    before = there.stamp(image.path)
    os.utime(image.path, ns=(0, 0))
    assert before != there.stamp(image.path) is not None
    assert there.stamp(f"{image.path}-gone") is None
