"""Each disk goes where the user wants it; only a logical volume is there before it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import Recorder
from tests.unit.domain.test_pools import FakePool, Volume, opened
from vbackup.errors import NoSpaceError, StorageError
from vbackup.images.destination import Destination
from vbackup.model import ImageFormat
from vbackup.operations import disk_places
from vbackup.operations.disk_places import Places
from vbackup.qemu.qemu_img import Output

MIB = 1024 * 1024
CHAINS: Any = {
    dev: [SimpleNamespace(image=SimpleNamespace(virtual_size_bytes=size))]
    for dev, size in (("vda", 4 * MIB), ("vdb", 8 * MIB))
}


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_places, "needed_bytes", lambda *_: MIB)


def plan(places: Places) -> list[Destination]:
    repository: Any = None
    return disk_places.plan(places, CHAINS, name="web", repository=repository)


def test_output_directory_has_what_goes_nowhere_else(tmp_path: Path) -> None:
    places = Places(tmp_path, ImageFormat.RAW, {"vda": tmp_path / "mine"})
    assert plan(places) == [
        Destination("vda", tmp_path / "mine", ImageFormat.RAW),
        Destination("vdb", tmp_path / "vdb.raw", ImageFormat.RAW),
    ]


def test_volume_of_a_directory_is_a_new_file_that_libvirt_learns_of_at_the_end(tmp_path: Path) -> None:
    fake = FakePool()
    pool = replace(opened(fake), target=tmp_path)
    places = Places(tmp_path / "out", paths={"vda": tmp_path / "mine"}, pool=pool)
    planned = plan(places)
    volume = Destination("vdb", tmp_path / "web-vdb.qcow2", ImageFormat.QCOW2, Output.NEW, "web-vdb.qcow2")
    assert planned[1] == volume
    refreshed = fake.refreshed
    with disk_places.made(planned, places, CHAINS, reporter=Recorder()) as destinations:
        assert destinations == planned
        assert fake.volumes == {}
        assert fake.refreshed == refreshed
    assert fake.refreshed == refreshed + 1


def test_logical_volume_is_made_where_libvirt_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePool("logical")
    places = Places(tmp_path, pool=opened(fake))
    monkeypatch.setattr(Volume, "path", lambda self: f"/dev/vg/{self.name}")
    planned = plan(places)
    assert [(one.output, one.image_format) for one in planned] == [(Output.DEVICE, ImageFormat.RAW)] * 2
    with disk_places.made(planned[:1], places, CHAINS, reporter=Recorder()) as destinations:
        assert [one.path for one in destinations] == [Path("/dev/vg/web-vda")]
        assert f"<capacity unit='bytes'>{4 * MIB}</capacity>" in fake.volumes["web-vda"].xml


def test_what_is_there_or_too_small_is_refused(tmp_path: Path) -> None:
    fake = FakePool(room=MIB)
    places = Places(tmp_path, pool=replace(opened(fake), target=tmp_path))
    with pytest.raises(NoSpaceError, match=f"the disks need {2 * MIB}"):
        plan(places)
    with pytest.raises(NoSpaceError, match=f"the disks need {12 * MIB}"):
        plan(Places(tmp_path, pool=opened(FakePool("logical", room=MIB))))
    fake.volumes["web-vda.qcow2"] = Volume(fake, "web-vda.qcow2", "")
    with pytest.raises(StorageError, match=r"already has a volume web-vda\.qcow2"):
        plan(places)
