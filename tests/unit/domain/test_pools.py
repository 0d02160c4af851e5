"""Volumes are made where they can be written and have a name of their own, and go when the restore fails."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.unit.builders import Recorder
from vbackup.domain import pools
from vbackup.domain.pools import Pool, Wanted
from vbackup.errors import MonitorError, NoSpaceError, StorageError, UnsuitableError
from vbackup.model import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024


class Refused(libvirt.libvirtError):  # type: ignore[misc]
    def __init__(self, code: int) -> None:
        Exception.__init__(self, "refused")
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class Volume:
    def __init__(self, pool: FakePool, name: str, xml: str) -> None:
        self.pool, self.name, self.xml = pool, name, xml

    def path(self) -> str:
        return f"/pool/{self.name}"

    def storagePoolLookupByVolume(self) -> FakePool:  # noqa: N802
        return self.pool

    def delete(self, _flags: int = 0) -> None:
        if self.pool.is_stuck:
            raise Refused(1)
        del self.pool.volumes[self.name]


class FakePool:
    """virStoragePool."""

    def __init__(self, kind: str = "dir", *, active: bool = True, room: int = 1 << 30) -> None:
        self.kind, self.active, self.room = kind, active, room
        self.volumes: dict[str, Volume] = {}
        self.is_stuck = False
        self.refreshed = 0

    def name(self) -> str:
        return "p"

    def isActive(self) -> int:  # noqa: N802
        return self.active

    def refresh(self, _flags: int) -> None:
        self.refreshed += 1

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return f"<pool type='{self.kind}'>\n  <name>p</name><target>\n <path>/pool</path></target></pool>"

    def info(self) -> list[int]:
        return [2, 1 << 31, 1 << 30, self.room]

    def storageVolLookupByName(self, name: str) -> Volume:  # noqa: N802
        if name not in self.volumes:
            raise Refused(libvirt.VIR_ERR_NO_STORAGE_VOL)
        return self.volumes[name]

    def createXML(self, xml: str, _flags: int) -> Volume:  # noqa: N802
        name = xml.partition("<name>")[2].partition("</name>")[0]
        if name.endswith("vdb") and self.kind == "logical":
            raise Refused(1)
        self.volumes[name] = Volume(self, name, xml)
        return self.volumes[name]


class FakeHost:
    def __init__(self, pool: FakePool, *, is_local: bool = True) -> None:
        self.pool, self.is_local, self.real_uri = pool, is_local, "qemu:///system"
        self.uri: str | None = None
        self.connection: Any = self
        self.has_link = not is_local

    def command(self, words: str) -> str:
        return words

    def storagePoolLookupByName(self, name: str) -> FakePool:  # noqa: N802
        if name != "p":
            raise Refused(libvirt.VIR_ERR_NO_STORAGE_POOL)
        return self.pool

    def storageVolLookupByPath(self, path: str) -> Volume:  # noqa: N802
        found = [one for one in self.pool.volumes.values() if one.path() == path]
        if not found:
            raise Refused(libvirt.VIR_ERR_NO_STORAGE_VOL)
        return found[0]

    def listAllStoragePools(self) -> list[FakePool]:  # noqa: N802
        return [self.pool]

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Refused as err:
            raise MonitorError(f"libvirt could not {what}: refused.") from err


def opened(pool: FakePool, name: str = "p", *, is_local: bool = True, by_link: bool = False) -> Pool:
    host: Any = FakeHost(pool, is_local=is_local)
    return pools.opened(host, name, by_link=by_link)


@pytest.mark.parametrize(
    ("kind", "image_format", "name", "made"),
    [
        ("dir", ImageFormat.QCOW2, "web-vda.qcow2", "qcow2"),
        ("netfs", ImageFormat.RAW, "web-vda", "raw"),
        ("logical", ImageFormat.QCOW2, "web-vda", "raw"),
    ],
)
def test_volume_is_named_after_domain_and_disk(kind: str, image_format: ImageFormat, name: str, made: str) -> None:
    pool = opened(FakePool(kind))
    wanted = pool.wanted("web", "vda", image_format, 9 * MIB)
    assert (wanted.name, wanted.image_format.value, wanted.size_bytes) == (name, made, 9 * MIB)
    assert pool.likely_path(wanted) == Path("/pool") / name


def test_logical_volume_has_all_of_its_room_and_stays() -> None:
    fake = FakePool("logical")
    pool = opened(fake)
    wanted = pool.wanted("web", "vda", ImageFormat.QCOW2, 9 * MIB)
    with pool.created({"vda": wanted}, reporter=Recorder()) as paths:
        assert paths == {"vda": Path("/pool/web-vda")}
        xml = fake.volumes["web-vda"].xml
        assert f"<capacity unit='bytes'>{9 * MIB}</capacity>" in xml
        assert f"<allocation unit='bytes'>{9 * MIB}</allocation>" in xml
        assert "<format type='raw'/>" in xml
    assert [*fake.volumes] == ["web-vda"]
    assert fake.refreshed == 2
    with pytest.raises(StorageError, match=r"already has a volume web-vda,.*virsh vol-delete --pool p web-vda"):
        pool.refuse_existing([wanted])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dir", "If nothing needs them any more, remove them: "),
        (
            "logical",
            "Another restore may still be writing them. If an interrupted one has left them, remove them: ",
        ),
    ],
)
def test_all_volumes_that_exist_are_named_with_the_commands(kind: str, said: str) -> None:
    fake = FakePool(kind)
    pool = opened(fake)
    pool.host.uri = "qemu:///session"
    wanted = {dev: pool.wanted("web", dev, ImageFormat.RAW, MIB) for dev in ("vda", "vdb", "vdc")}
    pool.refuse_existing(wanted.values())
    for dev in ("vda", "vdc"):
        fake.volumes[wanted[dev].name] = Volume(fake, wanted[dev].name, "")
    with pytest.raises(StorageError, match="has the volumes web-vda, web-vdc, and vbackup never") as caught:
        pool.refuse_existing(wanted.values())
    commands = [f"virsh -c qemu:///session vol-delete --pool p web-{dev}" for dev in ("vda", "vdc")]
    assert str(caught.value).endswith(f"{said}{' && '.join(commands)}.")
    assert caught.value.status == 7


def test_pool_of_a_removed_volume_is_looked_at_again() -> None:
    fake = FakePool()
    fake.volumes["web-vda"] = Volume(fake, "web-vda", "")
    host: Any = FakeHost(fake)
    pools.refresh_of(host, [Path("/elsewhere/web-vda"), Path("/pool/web-vda")])
    assert fake.refreshed == 1


@pytest.mark.parametrize(
    ("kind", "domain"),
    [
        ("dir", "a/../../etc"),
        ("dir", ".web"),
        ("dir", "a\0b"),
        ("dir", "\udcff"),
        ("dir", "a\nb"),
        ("dir", "x" * 252),
        ("logical", "with space"),
        ("logical", "-web"),
    ],
)
def test_name_that_no_volume_can_have_is_refused(kind: str, domain: str) -> None:
    with pytest.raises(UnsuitableError, match="--disk vda=PATH") as caught:
        opened(FakePool(kind)).wanted(domain, "vda", ImageFormat.RAW, MIB)
    assert caught.value.status == 5


def test_name_is_escaped_in_xml() -> None:
    fake = FakePool()
    with opened(fake).created({"vda": Wanted("<a>&b", ImageFormat.RAW, 1)}, reporter=Recorder()):
        [volume] = fake.volumes.values()
    assert "<name>&lt;a&gt;&amp;b</name>" in volume.xml


def test_failure_removes_all_volumes_or_names_what_is_left() -> None:
    fake, recorder = FakePool("logical"), Recorder()
    pool = opened(fake)
    wanted = {dev: pool.wanted("web", dev, ImageFormat.RAW, MIB) for dev in ("vda", "vdb")}
    with pytest.raises(StorageError, match="could not make volume web-vdb"):
        pool.created(wanted, reporter=recorder).__enter__()
    assert fake.volumes == {}
    fake.is_stuck = True
    with pytest.raises(StorageError):
        pool.created(wanted, reporter=recorder).__enter__()
    [warning] = recorder.warnings
    assert "virsh vol-delete --pool p web-vda" in warning


@pytest.mark.parametrize(
    ("pool", "name", "said"),
    [
        (FakePool(active=False), "p", r"not active. Start it \('virsh pool-start p'\)"),
        (FakePool("rbd"), "p", "of type rbd. Volumes can be made and written in pools of the types dir, fs, netfs and"),
        (FakePool(), "q", "no storage pool 'q'.*; its pools are p"),
    ],
)
def test_pool_that_will_not_do_is_refused_with_what_to_do(pool: FakePool, name: str, said: str) -> None:
    with pytest.raises(UnsuitableError, match=said):
        opened(pool, name)


def test_pool_of_another_host_or_without_room_is_refused() -> None:
    with pytest.raises(UnsuitableError, match="is another host"):
        opened(FakePool(), is_local=False)
    pool = opened(FakePool(room=100))
    pool.refuse_full(100)
    with pytest.raises(NoSpaceError, match=r"has 100 bytes available, and the disks need 101\. Nothing"):
        pool.refuse_full(101)


@pytest.mark.parametrize("kind", ["dir", "fs", "netfs"])
def test_pool_of_files_of_another_host_is_within_reach_of_a_link(kind: str) -> None:
    assert opened(FakePool(kind), is_local=False, by_link=True).target == Path("/pool")
    with pytest.raises(UnsuitableError, match=r"only by SSH, as those of a domain that --define or --start defines"):
        opened(FakePool(kind), is_local=False)


def test_logical_volumes_of_another_host_are_not() -> None:
    with pytest.raises(UnsuitableError, match="is of type logical, and on another host only files are written"):
        opened(FakePool("logical"), is_local=False, by_link=True)
