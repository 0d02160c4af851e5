"""The header of a qcow2 image is read without QEMU, with the same result."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest

from tests.unit.builders import MIB, qcow2_image
from vbackup.errors import ChainError
from vbackup.qemu import qcow2


@pytest.mark.parametrize(
    "options",
    [[], ["-o", "compat=0.10"], ["-o", "cluster_size=512"], ["-o", "cluster_size=2M"], ["-o", "compression_type=zstd"],
     ["-b", "../käse/x.qcow2", "-F", "qcow2", "-u"], ["-b", "x" * 1000, "-F", "raw", "-u"],
     ["-o", "compat=0.10", "-b", "x", "-F", "raw", "-u"], ["-o", "data_file=data.raw"]],
    ids=lambda options: " ".join(options)[:40],
)  # fmt: skip
def test_header_is_read_as_qemu_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "8M"], check=True)
    argv = ["qemu-img", "info", "-f", "qcow2", "--output=json", str(path)]
    info = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    header = qcow2.header(path)
    assert header.virtual_size_bytes == info["virtual-size"]
    assert header.backing_file == info.get("backing-filename")
    backing_format = header.backing_format.name if header.backing_format is not None else None
    assert backing_format == info.get("backing-filename-format")
    assert header.data_file == info["format-specific"]["data"].get("data-file")
    assert header.has_data_file == (header.data_file is not None)
    assert not header.encrypted


def header_of(tmp_path: Path, data: bytes) -> qcow2.Header:
    (tmp_path / "i.qcow2").write_bytes(data)
    return qcow2.header(tmp_path / "i.qcow2")


def test_plain_header_has_no_other_file(tmp_path: Path) -> None:
    assert header_of(tmp_path, qcow2_image(8 * MIB)) == qcow2.Header(
        8 * MIB, None, None, has_data_file=False, data_file=None, encrypted=False
    )


@pytest.mark.parametrize("method", [1, 2], ids=["AES", "LUKS"])
def test_encrypted_image_is_noticed(tmp_path: Path, method: int) -> None:
    assert header_of(tmp_path, qcow2_image(8 * MIB, offset_32=struct.pack(">I", method))).encrypted


@pytest.mark.parametrize(
    "changes",
    [{"offset_72": struct.pack(">Q", 1 << 2)}, {"offset_104": struct.pack(">II", 0x44415441, 4) + b"file"}],
    ids=["feature bit", "name"],
)
def test_data_file_is_noticed_by_its_bit_or_its_name(tmp_path: Path, changes: dict[str, bytes]) -> None:
    """CVE-2024-4467: qemu-img info opens it."""
    assert header_of(tmp_path, qcow2_image(8 * MIB, **changes)).has_data_file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"offset_0": b"QFI\xfa"}, "not a qcow2 header"),
        ({"offset_4": struct.pack(">I", 4)}, "not a qcow2 header"),
        ({"offset_20": struct.pack(">I", 8)}, "not a qcow2 header"),
        ({"offset_20": struct.pack(">I", 22)}, "not a qcow2 header"),
        ({"offset_100": struct.pack(">I", 103)}, "the header length is 103 bytes"),
        ({"offset_104": struct.pack(">II", 1, 1 << 20)}, "a header extension is too long"),
        ({"offset_8": struct.pack(">QI", 1 << 20, 4)}, "not in the first cluster"),
        ({"offset_8": struct.pack(">QI", 0x3F0, 1024)}, "the backing file name is too long"),
        ({"offset_8": struct.pack(">QI", 65530, 10)}, "the backing file name is too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_header_thoffset_qemu_would_not_accept_is_refused(tmp_path: Path, changes: dict[str, bytes], said: str) -> None:
    with pytest.raises(ChainError, match=f"it is not a qcow2 image .*{said}"):
        header_of(tmp_path, qcow2_image(8 * MIB, **changes))


@pytest.mark.parametrize("length", [0, 3, 71, 103])
def test_truncated_header_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ChainError, match="it is not a qcow2 image"):
        header_of(tmp_path, qcow2_image(8 * MIB)[:length])


def test_name_thoffset_is_no_text_equals_no_other(tmp_path: Path) -> None:
    found = header_of(
        tmp_path, qcow2_image(8 * MIB, offset_8=struct.pack(">QI", 0x3F0, 3), offset_1008=b"a\xff/")
    ).backing_file
    assert found == "a\udcff/"


def test_missing_image_is_an_error_of_the_chain(tmp_path: Path) -> None:
    with pytest.raises(ChainError, match="cannot be read: No such file or directory"):
        qcow2.header(tmp_path / "none.qcow2")
