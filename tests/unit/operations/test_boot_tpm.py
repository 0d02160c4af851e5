"""A boot test's copy gets a copy of the TPM's state, which is gone at its end; why it gets none is said."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.builders import UUID
from vbackup.domain.driver import Directories
from vbackup.errors import MonitorError
from vbackup.model import MachineKind
from vbackup.operations import boot_tpm
from vbackup.operations.boot_tpm import Given
from vbackup.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "6dd3e4a5-1d76-44ce-961f-f119f5aad935"
TPM = "<domain><devices><tpm><backend type='emulator' version='1.2'>{}</backend></tpm></devices></domain>"
BACKUP: Any = SimpleNamespace(machine_files=[SimpleNamespace(kind=MachineKind.TPM, file="tpm.tar")])


class Host:
    """Has one secret."""

    real_uri = "qemu:///system"

    def __init__(self) -> None:
        self.connection = self

    def secretLookupByUUIDString(self, uuid: str) -> None:  # noqa: N802
        if uuid != SECRET:
            raise MonitorError("no secret")

    @contextmanager
    def errors(self, _what: str) -> Iterator[None]:
        yield


@pytest.fixture(autouse=True)
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libvirt has the states; the program is there."""

    def write(_repository: Any, _backup: Any, _one: Any, path: Path, **_stop: Any) -> None:
        path.mkdir()
        (path / "tpm-00.permall").write_bytes(b"keys")

    monkeypatch.setattr(boot_tpm.machine_files, "write", write)
    monkeypatch.setattr(boot_tpm.shutil, "which", lambda _name: "/usr/bin/swtpm")
    monkeypatch.setattr(boot_tpm.swtpm, "owner", lambda _uri: None)
    made = tmp_path / "swtpm"
    made.mkdir()
    monkeypatch.setattr(boot_tpm.driver, "directories", lambda _uri: Directories(tmp_path, made))
    return made


@contextmanager
def given(scratch: Path, definition: str, backup: Any = BACKUP) -> Iterator[Given]:
    host: Any = Host()
    repository: Any = None
    with boot_tpm.given(backup, definition, UUID, scratch, host=host, repository=repository, stop=Stop()) as found:
        yield found


def test_state_is_there_during_the_test_alone(tmp_path: Path, states: Path) -> None:
    for inner in ("", f"<encryption secret='{SECRET}'/>"):
        (tmp_path / "scratch").mkdir()
        with given(tmp_path / "scratch", TPM.format(inner)) as found:
            assert found == Given(is_there=True)
            assert (states / UUID / "tpm1.2" / "tpm-00.permall").read_bytes() == b"keys"
            (states / UUID / "tpm1.2" / ".lock").touch()
        assert [*states.iterdir()] == []
        boot_tpm.shutil.rmtree(tmp_path / "scratch")


def test_state_that_libvirt_has_removed_is_no_trouble(tmp_path: Path, states: Path) -> None:
    with given(tmp_path, TPM.format("")):
        boot_tpm.shutil.rmtree(states / UUID)
    assert [*states.iterdir()] == []


def test_without_a_tpm_or_its_state_there_is_none(tmp_path: Path, states: Path) -> None:
    nothing: Any = SimpleNamespace(machine_files=[])
    for definition, backup in ((TPM.format(""), nothing), ("<domain><devices/></domain>", BACKUP)):
        with given(tmp_path, definition, backup) as found:
            assert found == Given()
    assert [*states.iterdir()] == []


def test_reason_why_a_state_is_of_no_use_is_said(tmp_path: Path, states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(inner: str) -> str | None:
        with given(tmp_path, TPM.format(inner)) as found:
            assert not found.is_there
            return found.why_not

    other = SECRET.replace("6", "7")
    assert why(f"<encryption secret='{other}'/>") == (
        f"its state is encrypted with libvirt's secret {other}, which this host does not have"
    )
    assert "is one file" in str(why("<source type='file' path='/a'/>"))
    with monkeypatch.context() as patch:
        patch.setattr(boot_tpm.shutil, "which", lambda _name: None)
        assert why("") == "swtpm is not installed on this host"
    monkeypatch.setattr(boot_tpm.driver, "directories", lambda _uri: None)
    assert why("") == "where qemu:///system has the state of a TPM is not known"
    assert [*states.iterdir()] == []
