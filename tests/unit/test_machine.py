"""A backup records the host that it was made on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vbackup import machine
from vbackup.model import HostIdentity


@pytest.mark.parametrize(
    ("content", "machine_id"),
    [(b"0123456789abcdef0123456789abcdef\n", "0123456789abcdef0123456789abcdef"), (b"", None), (b"\xff", None)],
)
def test_host_is_its_name_and_machine_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, machine_id: str | None
) -> None:
    monkeypatch.setattr(machine, "MACHINE_ID", tmp_path / "machine-id")
    assert machine.this_host() == HostIdentity(socket.gethostname(), None)
    (tmp_path / "machine-id").write_bytes(content)
    assert machine.this_host() == HostIdentity(socket.gethostname(), machine_id)
