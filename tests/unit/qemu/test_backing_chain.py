"""A disk's images are found by the XML and their headers, and refused if that is not certain."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vbackup.errors import DiskError, MonitorError
from vbackup.model import BlockDriver, Disk, ImageLocation, SecretRef, SourceType
from vbackup.qemu import backing_chain
from vbackup.qemu.backing_chain import Image, blockdevs, images_of


def create(path: Path, *options: str, image_format: str = "qcow2") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *options, str(path), "1M"], check=True)
    return path


def disk(*sources: ImageLocation | Path, ends: bool = False) -> Disk:
    images = tuple(
        ImageLocation(SourceType.FILE, BlockDriver.QCOW2, str(one)) if isinstance(one, Path) else one for one in sources
    )
    return Disk("vda", "vda", images[0].path, BlockDriver.QCOW2, images=images, chain_ends=ends)


def found(one: Disk) -> list[tuple[str, str]]:
    return [(image.path, image.format.name) for image in images_of(one, volume_path=volume_path)]


def volume_path(pool: str, volume: str) -> str:
    raise MonitorError(f"libvirt could not look up volume {volume} of pool {pool}: no such pool.")


def test_headers_are_followed_to_the_end(tmp_path: Path) -> None:
    raw = create(tmp_path / "base.raw", image_format="raw")
    middle = create(tmp_path / "middle.qcow2", "-b", str(raw), "-F", "raw")
    top = create(tmp_path / "top.qcow2", "-b", str(middle), "-F", "qcow2")
    assert found(disk(top)) == [(str(top), "qcow2"), (str(middle), "qcow2"), (str(raw), "raw")]


def test_relative_backing_file_is_beside_its_overlay(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    create(tmp_path / "base.qcow2")
    top = create(tmp_path / "images" / "top.qcow2", "-u", "-b", "../base.qcow2", "-F", "qcow2")
    assert found(disk(top))[1] == (f"{tmp_path}/images/../base.qcow2", "qcow2")


def test_colon_in_a_directory_is_no_protocol(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    base = create(tmp_path / "a:b" / "base.qcow2")
    top = create(tmp_path / "top.qcow2", "-u", "-b", f"file:{base}", "-F", "qcow2")
    assert found(disk(top))[1][0] == str(base)
    top = create(tmp_path / "second.qcow2", "-u", "-b", "./a:b/base.qcow2", "-F", "qcow2")
    assert found(disk(top))[1][0] == str(base)


def test_chain_of_the_xml_is_preferred_to_the_headers(tmp_path: Path) -> None:
    other, base = create(tmp_path / "other.qcow2"), create(tmp_path / "base.qcow2")
    top = create(tmp_path / "top.qcow2", "-b", str(other), "-F", "qcow2")
    assert [path for path, _ in found(disk(top, base))] == [str(top), str(base)]
    assert [path for path, _ in found(disk(top, ends=True))] == [str(top)]


def test_header_goes_on_where_the_xml_stops(tmp_path: Path) -> None:
    base = create(tmp_path / "base.qcow2")
    middle = create(tmp_path / "middle.qcow2", "-b", str(base), "-F", "qcow2")
    top = create(tmp_path / "top.qcow2")
    assert [path for path, _ in found(disk(top, middle))] == [str(top), str(middle), str(base)]


def test_guest_cannot_make_a_raw_image_look_like_qcow2(tmp_path: Path) -> None:
    create(tmp_path / "secret.qcow2")
    top = create(tmp_path / "vda.raw", "-u", "-b", str(tmp_path / "secret.qcow2"), "-F", "qcow2")
    assert found(disk(ImageLocation(SourceType.FILE, BlockDriver.RAW, str(top)))) == [(str(top), "raw")]


def refused(one: Disk, said: str) -> None:
    with pytest.raises(DiskError, match=said) as caught:
        found(one)
    assert caught.value.dev == "vda"
    assert "exclude-disk" not in caught.value.cause


def test_backing_file_without_a_format_is_what_it_looks_like(tmp_path: Path) -> None:
    create(tmp_path / "base.qcow2")
    top = create(tmp_path / "top.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    assert found(disk(without_backing_format(top))) == [(str(top), "qcow2"), (f"{tmp_path}/base.qcow2", "qcow2")]


def without_backing_format(image: Path) -> Path:
    """qemu-img insists on a format since 6.1. Older images may lack that header extension; here it becomes unknown."""
    image.write_bytes(image.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\x11\x22\x33\x44", 1))
    return image


def test_raw_backing_file_without_a_format_is_raw(tmp_path: Path) -> None:
    raw = create(tmp_path / "base.raw", image_format="raw")
    top = create(tmp_path / "top.qcow2", "-b", "base.raw", "-F", "raw")
    assert found(disk(without_backing_format(top))) == [(str(top), "qcow2"), (str(raw), "raw")]


def test_backing_file_without_a_format_that_names_files_is_refused(tmp_path: Path) -> None:
    """libvirt refuses it too; a guest that had the raw disk could have written the header."""
    create(tmp_path / "secret")
    create(tmp_path / "base", "-u", "-b", str(tmp_path / "secret"), "-F", "raw")
    top = without_backing_format(create(tmp_path / "top of it", "-u", "-b", "base", "-F", "qcow2"))
    command = rf"qemu-img rebase -u -b base -F qcow2 '{tmp_path}/top of it'"
    refused(
        disk(top), f"does not record the format of its backing file .*may name other files.* record that: {command}"
    )


def test_command_of_the_advice_names_the_format_that_was_found(tmp_path: Path) -> None:
    create(tmp_path / "base", image_format="vmdk")
    top = without_backing_format(create(tmp_path / "top", "-u", "-b", "base", "-F", "vmdk"))
    refused(disk(top), "looks like vmdk .*-F vmdk")


# data files


def with_data_file(path: Path, name: str, *, content: bytes = b"\1" * 65536) -> Path:
    """An image that names its data file so; QEMU makes it where it says, or else beside the image."""
    data = path.parent / name
    made = subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={name}", path.name, "64k"],
        cwd=path.parent,
        check=False,
    )
    assert made.returncode == 0
    data.write_bytes(content)
    return path


def test_relative_data_file_is_beside_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in the directory where vbackup was started, even if there is a file of that name."""
    (tmp_path / "images").mkdir()
    (tmp_path / "decoy").mkdir()
    (tmp_path / "decoy" / "data.raw").write_bytes(b"decoy")
    top = with_data_file(tmp_path / "images" / "top.qcow2", "data.raw")
    monkeypatch.chdir(tmp_path / "decoy")
    (one,) = images_of(disk(top), volume_path=volume_path)
    assert one.data_file == f"{tmp_path}/images/data.raw"
    storage, data, node = nodes(one)
    assert (storage["filename"], data["filename"]) == (str(top), one.data_file)
    assert (node["file"], node["data-file"]) == (storage["node-name"], data["node-name"])
    assert [backing_chain.is_format_node(entry) for entry in (storage, data, node)] == [False, False, True]
    assert backing_chain.reopened(node) == [storage["node-name"], data["node-name"]]


def test_data_file_that_is_missing_or_elsewhere_is_refused(tmp_path: Path) -> None:
    top = with_data_file(tmp_path / "top.qcow2", "data.raw")
    (tmp_path / "data.raw").unlink()
    refused(disk(top), r"data\.raw cannot be accessed: No such file")
    top.write_bytes(top.read_bytes().replace(b"data.raw", b"nbd:h:10"))
    refused(disk(top), "the data file of .* is nbd:h:10, which is not a file of this host")


def test_data_file_of_which_there_are_two_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that libvirt before 10.10 starts takes the one below its working directory."""
    top = with_data_file(tmp_path / "top.qcow2", "data.raw")
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(backing_chain, "QEMU_DIRECTORY", tmp_path / "root")
    assert len(found(disk(top))) == 1
    (tmp_path / "root" / "data.raw").write_bytes(b"2")
    refused(disk(top), f"there are two: {tmp_path}/data.raw, and {tmp_path}/root/data.raw, which QEMU opens")
    (tmp_path / "root" / "data.raw").unlink()
    (tmp_path / "root" / "data.raw").symlink_to(tmp_path / "data.raw")
    assert len(found(disk(top))) == 1


def test_backing_file_over_a_network_is_refused(tmp_path: Path) -> None:
    top = create(tmp_path / "top.qcow2", "-u", "-b", "nbd://192.0.2.1/export", "-F", "raw")
    refused(disk(top), "is nbd://192.0.2.1/export, which is not a file of this host.* --exclude-disk vda")


def test_backing_file_that_is_missing_is_named(tmp_path: Path) -> None:
    top = create(tmp_path / "top.qcow2", "-u", "-b", "gone.qcow2", "-F", "qcow2")
    refused(disk(top), r"gone\.qcow2 cannot be accessed: No such file")


def test_chain_that_comes_back_is_refused_whatever_the_names(tmp_path: Path) -> None:
    (tmp_path / "b.qcow2").touch()
    top = create(tmp_path / "a.qcow2", "-u", "-b", "b.qcow2", "-F", "qcow2")
    (tmp_path / "link").symlink_to(top)
    (tmp_path / "b.qcow2").unlink()
    create(tmp_path / "b.qcow2", "-u", "-b", "link", "-F", "qcow2")
    refused(disk(top), "has a loop: .*link occurs twice")


def test_chain_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing_chain, "MAX_IMAGES", 2)
    base = create(tmp_path / "base.qcow2")
    middle = create(tmp_path / "middle.qcow2", "-b", str(base), "-F", "qcow2")
    top = create(tmp_path / "top.qcow2", "-b", str(middle), "-F", "qcow2")
    refused(disk(top), "more than 2 images")


def test_image_of_another_format_is_named(tmp_path: Path) -> None:
    refused(disk(create(tmp_path / "x.raw", image_format="raw")), r"x\.raw cannot be read")


def test_image_that_only_a_running_domain_can_open_is_refused(tmp_path: Path) -> None:
    top = create(tmp_path / "top.qcow2")
    for source, said in (
        (ImageLocation(SourceType("network"), BlockDriver.RAW), "its type is network"),
        (
            ImageLocation(SourceType("volume"), BlockDriver.QCOW2, pool="p", volume="v"),
            "volume v of pool p: no such pool",
        ),
        (
            ImageLocation(SourceType.FILE, BlockDriver.RAW, str(top), oddity="it is a slice of a larger image"),
            "it is a slice",
        ),
        (ImageLocation(SourceType("dir"), BlockDriver.RAW, str(tmp_path)), "neither a file nor a block device"),
        (ImageLocation(SourceType("volume"), BlockDriver.RAW, "pool/volume"), "its type is volume"),
    ):
        refused(disk(source), said)
    refused(disk(top, ImageLocation(SourceType.FILE, None, str(top))), "does not give the format")


def test_volume_is_where_its_pool_says(tmp_path: Path) -> None:
    top = create(tmp_path / "v.qcow2")
    volume = disk(ImageLocation(SourceType("volume"), BlockDriver.QCOW2, pool="images", volume="v.qcow2"))
    (image,) = images_of(volume, volume_path=lambda pool, name: str(tmp_path / name) if pool == "images" else "")
    assert image.path == str(top)


# the nodes


def nodes(*images: Image) -> list[dict[str, Any]]:
    secret_ids = {SecretRef(uuid="u"): "secret-0"}
    return blockdevs(images, numbers=itertools.count(1), secret_ids=secret_ids)


def image(name: str, image_format: str = "qcow2", *, block: bool = False, secret: SecretRef | None = None) -> Image:
    return Image(f"/images/{name}", BlockDriver(image_format), block, (1, hash(name)), secret)


def by_name(options: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["node-name"]: one for one in options}


def test_only_the_active_image_is_opened_for_writing_and_all_are_locked() -> None:
    made = nodes(image("top"), image("middle"), image("base", "raw"))
    assert [one["node-name"] for one in made] == [
        f"libvirt-{number}-{kind}" for number in (1, 2, 3) for kind in ("storage", "format")
    ]
    assert [one["read-only"] for one in made] == [True, True, True, True, False, False]
    assert {one["locking"] for one in made if "storage" in one["node-name"]} == {"on"}
    named = by_name(made)
    assert named["libvirt-3-format"]["backing"] == "libvirt-2-format"
    assert named["libvirt-2-format"]["backing"] == "libvirt-1-format"
    assert "backing" not in named["libvirt-1-format"]


def test_nothing_is_opened_for_writing_where_it_may_not_be() -> None:
    images = [image("top"), image("base", "raw")]
    made = blockdevs(images, numbers=itertools.count(1), secret_ids={}, read_only=True)
    assert [one["read-only"] for one in made] == [True] * 4


def test_image_without_a_backing_file_is_opened_without_one_whatever_its_header_says() -> None:
    assert nodes(image("top"))[-1]["backing"] is None


def test_block_device_is_opened_as_one() -> None:
    assert [one["driver"] for one in nodes(image("volume", "raw", block=True))] == ["host_device", "raw"]


def test_image_of_another_format_is_opened_by_its_name() -> None:
    assert [one["driver"] for one in nodes(image("x", "vdi"))] == ["file", "vdi"]


def test_both_kinds_of_luks_take_their_secret() -> None:
    secret = SecretRef(uuid="u")
    assert nodes(image("x", "raw", secret=secret))[-1]["driver"] == "luks"
    assert nodes(image("x", "raw", secret=secret))[-1]["key-secret"] == "secret-0"
    assert nodes(image("x", secret=secret))[-1]["encrypt"] == {"format": "luks", "key-secret": "secret-0"}


def test_path_is_not_changed_on_the_way(tmp_path: Path) -> None:
    odd = create(tmp_path / "zwei Wörter, & 'a'.qcow2")
    (one,) = images_of(disk(odd), volume_path=volume_path)
    assert os.fspath(odd) == nodes(one)[0]["filename"]


@pytest.mark.parametrize("closed", ["directory", "image"])
def test_image_that_may_not_be_read_is_told_with_both_remedies(closed: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory(prefix="vbackup-closed-", dir="/tmp") as name:
        top = create(Path(name) / "top.qcow2")
        top.chmod(0o600 if closed == "image" else 0o644)
        Path(name).chmod(0o755 if closed == "image" else 0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(DiskError) as caught:
                images_of(disk(top), volume_path=volume_path)
        finally:
            os.seteuid(0)
    barrier = str(top) if closed == "image" else name
    assert f"vbackup runs as nobody, who may not {'read' if closed == 'image' else 'enter the directory'}" in str(
        caught.value
    )
    assert barrier in str(caught.value)
    assert str(caught.value).endswith("Or leave the disk out with --exclude-disk vda.")
