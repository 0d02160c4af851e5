"""An image's format by its first bytes, and whether it names other files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vbackup.qemu import probing


def create(path: Path, image_format: str, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *options, str(path), "1M"], check=True)
    return path


@pytest.mark.parametrize(
    ("image_format", "names_files"),
    [
        ("raw", False),
        ("qcow2", False),
        ("qcow", False),
        ("vdi", False),
        ("vmdk", True),
        ("qed", True),
        ("vhdx", True),
        ("parallels", True),
    ],
)
def test_image_of_qemu_img_is_recognised(tmp_path: Path, image_format: str, *, names_files: bool) -> None:
    found = probing.probe(create(tmp_path / "image", image_format))
    assert (found.format.name, found.names_files) == (image_format, names_files)


@pytest.mark.parametrize("options", [("-b", "/etc/passwd", "-F", "raw", "-u"), ("-o", "data_file=data")])
def test_qcow2_that_names_files_is_told_apart(
    tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest could have written it into its raw disk."""
    monkeypatch.chdir(tmp_path)
    found = probing.probe(create(tmp_path / "image", "qcow2", *options))
    assert (found.format.name, found.names_files) == ("qcow2", True)


def test_damaged_header_may_name_files(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"QFI\xfb\0\0\0\3")
    assert probing.probe(path).names_files
    path.write_bytes(b"")
    assert probing.probe(path).format.name == "raw"


def test_qcow_with_a_backing_file_names_it(tmp_path: Path) -> None:
    base = create(tmp_path / "base", "raw")
    assert probing.probe(create(tmp_path / "image", "qcow", "-b", str(base), "-F", "raw")).names_files


def test_image_may_be_behind_a_link(tmp_path: Path) -> None:
    create(tmp_path / "image", "qcow2")
    (tmp_path / "link").symlink_to("image")
    found = probing.probe(tmp_path / "link")
    assert (found.format.name, found.names_files) == ("qcow2", False)
    with pytest.raises(OSError, match="No such file"):
        probing.probe(tmp_path / "missing")
