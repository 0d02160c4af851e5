"""A backup records the host that it was made on, and so does its journal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup import machine
from vbackup.model import HostIdentity
from vbackup.repository.writer import Writer

ID = b"0123456789abcdef0123456789abcdef\n"


@pytest.mark.parametrize(
    ("contents", "machine_id"),
    [
        ([ID], ID.decode().strip()),
        ([b"", ID], ID.decode().strip()),
        ([None, ID], ID.decode().strip()),
        ([b"\xff", b"uninitialized\n"], None),
        ([None, None], None),
    ],
    ids=["systemd", "empty", "D-Bus", "neither", "missing"],
)
def test_host_is_its_name_and_machine_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: list[bytes | None], machine_id: str | None
) -> None:
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents):
        if content is not None:
            path.write_bytes(content)
    monkeypatch.setattr(machine, "MACHINE_IDS", paths)
    here = machine.this_host()
    assert here == HostIdentity(os.uname().nodename, machine_id)
    writer = Writer.this()
    assert (writer.host, writer.machine_id) == (here.name, here.machine_id)
