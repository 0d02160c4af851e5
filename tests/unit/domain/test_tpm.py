"""The state of an emulated TPM is read whole, at one moment, and nothing else with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID
from vbackup import archive
from vbackup.domain import host_files, state_files, tpm
from vbackup.domain.host_files import FilesHere
from vbackup.domain.machine_xml import TpmState
from vbackup.domain.state_files import UnsavedError


class Handle:
    """A domain and its host."""

    uuid = UUID

    def __init__(self, uri: str) -> None:
        self.host = self
        self.real_uri, self.is_local = uri, True


def read(uri: str | Path, state: TpmState | None = None) -> tuple[str, dict[str, bytes]]:
    handle: Any = Handle(f"qemu:///embed?root={uri}" if isinstance(uri, Path) else uri)
    path, data = tpm.read(handle, state or TpmState("2.0", None), FilesHere())
    return path, archive.unpack(data)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The state of a TPM where libvirt has it."""
    path = tmp_path / "lib/swtpm" / UUID / "tpm2"
    path.mkdir(parents=True)
    (path / "tpm2-00.permall").write_bytes(b"keys")
    (path / ".lock").touch()
    return path


def test_state_is_in_the_driver_s_directory_without_its_lock(place: Path, tmp_path: Path) -> None:
    assert read(tmp_path) == (str(place), {"tpm2-00.permall": b"keys"})


def test_old_tpm_has_a_directory_of_its_own(place: Path, tmp_path: Path) -> None:
    place.rename(place.with_name("tpm1.2"))
    assert read(tmp_path, TpmState("1.2", None))[0] == str(place.with_name("tpm1.2"))


def test_state_that_the_xml_names_is_read_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "state").write_bytes(b"one")
    (tmp_path / "a" / "b").mkdir()
    (tmp_path / "a" / "b" / "c").write_bytes(b"two")
    assert read("x:///", TpmState("2.0", str(tmp_path / "a")))[1] == {"state": b"one", "b/c": b"two"}
    state = TpmState("2.0", str(tmp_path / "a" / "state"), is_file=True)
    assert read("x:///", state) == (state.path, {"state": b"one"})


def test_state_that_is_written_meanwhile_is_read_until_it_is_the_same_twice(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([b"old", b"new", b"new"])
    monkeypatch.setattr(host_files, "read_regular", lambda _path, *, max_bytes: next(readings))
    assert read(tmp_path)[1] == {"tpm2-00.permall": b"new"}
    monkeypatch.setattr(host_files, "read_regular", lambda _path, *, max_bytes: os.urandom(8))
    with pytest.raises(UnsavedError, match="changed each time") as caught:
        read(tmp_path)
    assert caught.value.is_unexpected
    assert state_files.MAX_READINGS > 1


def test_file_that_swtpm_renames_meanwhile_is_missed_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "TMP2-00.permall").symlink_to("nothing")
    really, seen = host_files.read_regular, []

    def vanishing(path: Path, *, max_bytes: int) -> bytes:
        seen.append(path.name)
        if path.name == "TMP2-00.permall":
            path.unlink()
            raise FileNotFoundError
        return really(path, max_bytes=max_bytes)

    monkeypatch.setattr(host_files, "read_regular", vanishing)
    assert read(tmp_path)[1] == {"tpm2-00.permall": b"keys"}
    assert seen.count("TMP2-00.permall") == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "cannot be read: it is a symbolic link"),
        (os.mkfifo, "cannot be read: it is a FIFO"),
        (lambda path: path.write_bytes(bytes(17)), "is larger than that of any TPM"),
        (lambda path: (path / "a/b/c/d/e").mkdir(parents=True), "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_state_of_a_tpm_is_told(
    place: Path, tmp_path: Path, make: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpm, "MAX_BYTES", 16)
    make(place / "other")
    with pytest.raises(UnsavedError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"the state of the TPM in {place} {said}")


def test_state_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnsavedError, match=r"has no state in .*/tpm2 yet") as caught:
        read(tmp_path)
    assert not caught.value.is_unexpected, "a domain that never ran has none, each night"
    with pytest.raises(UnsavedError, match="is not known"):
        read("test:///default")
    (tmp_path / "lib/swtpm" / UUID).mkdir(parents=True)
    with pytest.raises(UnsavedError, match="cannot be read: No such file") as caught:
        read(tmp_path)
    assert caught.value.is_unexpected
    (tmp_path / "lib/swtpm" / UUID / "tpm2").mkdir()
    with pytest.raises(UnsavedError, match="has no state of a TPM"):
        read(tmp_path)
