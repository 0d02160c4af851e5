"""The header of a qcow2 image is read without QEMU, with the same result."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

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
    assert header.has_data_file == ("data-file" in info["format-specific"]["data"])
    assert not header.encrypted
