"""The further files of a backup: what is read, and a warning for what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vbackup
from tests.fake_qemu import FakeQemu
from tests.unit import builders
from tests.unit.builders import Recorder
from vbackup.domain import definition


class Handle:
    """A domain and its host."""

    def __init__(self, *, is_local: bool = True) -> None:
        self.host = self
        self.is_local = is_local
        self.libvirt_version = "9.0.0"

    def definition_xml(self) -> str:
        return "<domain>käse</domain>"


def files(nvram: Path | None, recorder: Recorder, **more: Any) -> dict[str, bytes]:
    path = None if nvram is None else str(nvram)
    handle: Any = Handle(**more)
    return definition.files(handle, builders.domain(nvram_path=path), recorder)


def test_domain_without_an_nvram_store_has_its_xml_only(recorder: Recorder) -> None:
    assert files(None, recorder) == {"domain.xml": "<domain>käse</domain>".encode()}
    assert recorder.warnings == []


def test_nvram_store_is_in_the_backup(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "nvram").write_bytes(b"variables")
    assert files(tmp_path / "nvram", recorder)["nvram"] == b"variables"
    assert recorder.warnings == []


def missing(path: Path) -> None:
    """Leave nothing there."""


@pytest.mark.parametrize(
    ("make", "is_local", "said"),
    [
        (missing, True, "cannot be read and is not in the backup: No such file or directory."),
        (Path.mkdir, True, "cannot be read and is not in the backup: Is a directory."),
        (lambda path: path.write_bytes(bytes(17)), True, "is larger than any firmware's and is not in the backup."),
        (Path.touch, False, "is on another host and is not in the backup."),
    ],
    ids=["missing", "directory", "huge", "another host"],
)
def test_nvram_store_that_cannot_be_read_costs_a_warning(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, is_local: bool, said: str
) -> None:
    monkeypatch.setattr(definition, "MAX_NVRAM_BYTES", 16)
    make(tmp_path / "nvram")
    assert list(files(tmp_path / "nvram", recorder, is_local=is_local)) == ["domain.xml"]
    assert recorder.warnings == [f"The NVRAM store {tmp_path / 'nvram'} {said}"]


def test_versions_are_those_of_all_three(qemu: FakeQemu) -> None:
    handle: Any = Handle()
    version = qemu.execute("query-version")["qemu"]
    assert definition.versions(handle, qemu) == {
        "vbackup": vbackup.__version__,
        "qemu": f"{version['major']}.{version['minor']}.{version['micro']}",
        "libvirt": "9.0.0",
    }
