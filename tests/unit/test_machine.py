"""Backups and journals record the host that they were made on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vbackup import machine
from vbackup.model import HostIdentity
from vbackup.repository.writer import Writer


@pytest.mark.parametrize(
    ("contents", "machine_id"),
    [
        ([b"0123456789abcdef0123456789abcdef\n"], "0123456789abcdef0123456789abcdef"),
        ([b"", b"def\n"], "def"),
        ([b"uninitialized\n", b"\xff"], None),
        ([None, None], None),
    ],
)
def test_host_is_its_name_and_machine_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: list[bytes | None], machine_id: str | None
) -> None:
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents):
        if content is not None:
            path.write_bytes(content)
    monkeypatch.setattr(machine, "MACHINE_IDS", paths)
    assert machine.this_host() == HostIdentity(socket.gethostname(), machine_id)


def test_backups_and_journals_name_the_same_host() -> None:
    this, host = Writer.this(), machine.this_host()
    assert (this.host, this.machine_id) == (host.name, host.machine_id)
