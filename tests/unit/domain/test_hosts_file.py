"""A file of hosts has one URI a line; an error says in which line."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbackup.domain import hosts_file
from vbackup.errors import UsageError


def write(directory: Path, text: str | bytes) -> str:
    path = directory / "hosts"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_comments_and_empty_lines_are_no_hosts(tmp_path: Path) -> None:
    text = "# room 1\n\n  qemu+ssh://root@hv1/system\t# new\nqemu+tls://[fd77::1]:99/system?x=a#b\n   #end\n"
    assert hosts_file.read(write(tmp_path, text)) == [
        "qemu+ssh://root@hv1/system",
        "qemu+tls://[fd77::1]:99/system?x=a#b",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# x\nroot@hv1\n", r"hosts:2: 'root@hv1' is not a libvirt URI, such as qemu\+ssh://root@hv1/system\."),
        ("qemu:///system qemu:///session", r"hosts:1: .* has spaces in it; a line has one URI"),
        ("qemu:///system\nx:///y\nqemu:///system", r"hosts:3: qemu:///system is in line 1 already"),
        ("qemu+ssh://hv1:port/system", r"hosts:1: .* is not a libvirt URI: "),
        ("qemu+ssh://[::1/system", r"hosts:1: .* is not a libvirt URI: "),
        ("qemu:/system", r"hosts:1: 'qemu:/system' is not a libvirt URI"),
        ("://x", r"hosts:1: .*such as qemu\+ssh://root@HOST/system"),
        ("qemu:///a\x00b", r"hosts:1: "),
        ("# none\n", r"hosts: the file names no host"),
        ("", r"hosts: the file names no host"),
        (b"\xff\xfe", r"hosts: the file of hosts is not UTF-8"),
    ],
)
def test_what_is_no_host_is_refused_with_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        hosts_file.read(write(tmp_path, text))


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none: the file of hosts cannot be read: No such file"):
        hosts_file.read(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="cannot be read"):
        hosts_file.read(str(tmp_path))
    with pytest.raises(UsageError, match="cannot be read"):
        hosts_file.read(write(tmp_path, b"#" * (hosts_file.MAX_BYTES + 1)))
