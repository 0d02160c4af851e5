"""Each file of a machine has a place, and the user is told where libvirt needs another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.builders import UUID, backup, commit, qcow2_image
from vbackup import archive
from vbackup.domain import host
from vbackup.domain.machine_xml import Places
from vbackup.errors import ChainError
from vbackup.files import digest_of
from vbackup.model import Backup, ImageFormat, MachineFile, MachineKind
from vbackup.operations import restored_machine
from vbackup.operations.restored_machine import Placed
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

OUT = Path("/out")
XML = (
    f"<domain><name>web</name><uuid>{UUID}</uuid><devices><tpm><backend type='emulator' version='1.2'/></tpm>"
    "</devices></domain>"
)
TPM = MachineFile(MachineKind.TPM, 1, "sha256:t", "/swtpm")
SEED = MachineFile(MachineKind.MEDIUM, 1, "sha256:s", "/seed", "sda")
KERNEL = MachineFile(MachineKind.KERNEL, 1, "sha256:k", "/vmlinuz")


def test_every_file_has_a_place_in_the_output_directory() -> None:
    placed = restored_machine.placed(backup(1, machine=(TPM, SEED, KERNEL)), OUT)
    assert [one.path for one in placed] == [OUT / "tpm", OUT / "sda.medium", OUT / "kernel"]
    assert restored_machine.names(placed, OUT) == ["tpm", "sda.medium", "kernel"]
    moved = [replace(placed[0], path=Path("/elsewhere/tpm2")), *placed[1:]]
    assert restored_machine.names(moved, OUT) == ["sda.medium", "kernel"]
    assert restored_machine.path_of(moved, MachineKind.TPM) == Path("/elsewhere/tpm2")
    assert restored_machine.path_of(placed, MachineKind.NVRAM) is None
    assert restored_machine.document(placed)[1] == {
        "kind": "medium",
        "dev": "sda",
        "path": "/out/sda.medium",
        "original": "/seed",
    }


def test_nvram_of_an_earlier_version_is_restored_too() -> None:
    old = backup(1, files={"domain.xml": "sha256:d", "nvram": "sha256:n"})
    nvram = MachineFile(MachineKind.NVRAM, None, "sha256:n", None)
    assert restored_machine.placed(old, OUT) == (Placed(nvram, OUT / "nvram"),)


@pytest.mark.parametrize(("version", "knows"), [(9_000_000, False), (10_009_999, False), (10_010_000, True)])
def test_libvirt_tells_whether_the_xml_can_name_the_place_of_a_tpm(
    version: int, knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "library_version", lambda: version)
    placed = restored_machine.placed(backup(1, machine=(TPM, SEED)), OUT)
    kinds = {MachineKind.TPM: "/out/tpm"}
    assert restored_machine.places(placed) == Places(kinds, {"sda": "/out/sda.medium"}, knows_tpm_source=knows)
    place = None if knows else Path("/var/lib/libvirt/swtpm") / UUID / "tpm1.2"
    assert restored_machine.tpm_place(XML, placed, "qemu:///system") == place
    told = restored_machine.shared(XML, placed, "qemu:///system")
    assert ["copy /out/tpm there" in left.reason and str(place) in left.reason for left in told] == [True] * (not knows)
    assert restored_machine.tpm_place(XML, placed[1:], None) is None
    assert restored_machine.tpm_place(XML.replace("emulator", "passthrough"), placed, None) is None


def test_tpm_of_a_domain_on_another_host_will_be_in_the_place_of_its_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "library_version", lambda: 9_000_000)
    placed = restored_machine.placed(backup(1, machine=(TPM,)), OUT)
    place = restored_machine.tpm_place(XML, placed, "qemu+ssh://other/system")
    assert place == Path("/var/lib/libvirt/swtpm") / UUID / "tpm1.2"


def kept(repository: Repository, kind: MachineKind, data: bytes, *, image_format: ImageFormat | None = None) -> Backup:
    one = backup(1, machine=(MachineFile(kind, len(data), digest_of(data), None, image_format=image_format),))
    (commit(repository, one) / one.machine[0].file).write_bytes(data)
    return one


HARMFUL = [
    qcow2_image(65536, backing="/etc/shadow"),
    qcow2_image(65536, offset_72=(4).to_bytes(8, "big")),
    qcow2_image(65536, offset_32=(1).to_bytes(4, "big")),
    qcow2_image(65536)[:80],
]


@pytest.mark.parametrize(
    ("data", "recorded", "expected"),
    [
        (bytes(512), None, ImageFormat.RAW),
        (qcow2_image(65536), None, ImageFormat.QCOW2),
        *((data, None, ImageFormat.RAW) for data in HARMFUL),
        *((data, ImageFormat.RAW, ImageFormat.RAW) for data in (bytes(512), qcow2_image(65536), *HARMFUL)),
        (qcow2_image(65536), ImageFormat.QCOW2, ImageFormat.QCOW2),
    ],
)
def test_format_of_the_nvram_is_what_the_manifest_says(
    tmp_path: Path, data: bytes, recorded: ImageFormat | None, expected: ImageFormat
) -> None:
    repository = Repository.create(tmp_path / "repository")
    one = kept(repository, MachineKind.NVRAM, data, image_format=recorded)
    placed = restored_machine.placed(one, OUT)
    restored_machine.check(placed, one, repository=repository, stop=Stop())
    assert restored_machine.nvram_format(placed, one, repository=repository) is expected
    assert restored_machine.nvram_format((), one, repository=repository) is None


@pytest.mark.parametrize("data", [*HARMFUL, bytes(512)])
def test_nvram_that_names_another_file_is_refused_before_anything_is_written(tmp_path: Path, data: bytes) -> None:
    repository = Repository.create(tmp_path / "repository")
    one = kept(repository, MachineKind.NVRAM, data, image_format=ImageFormat.QCOW2)
    placed = restored_machine.placed(one, OUT)
    with pytest.raises(ChainError, match="is not a qcow2 image that QEMU may open"):
        restored_machine.check(placed, one, repository=repository, stop=Stop())
    with pytest.raises(ChainError, match="is not a qcow2 image that QEMU may open"):
        restored_machine.nvram_format(placed, one, repository=repository)


def test_archive_that_does_not_unpack_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "repository")
    one = kept(repository, MachineKind.TPM, archive.pack({"../state": b"keys"}))
    with pytest.raises(ChainError, match="is no archive of a TPM's state"):
        restored_machine.check(restored_machine.placed(one, OUT), one, repository=repository, stop=Stop())


def test_files_are_written_under_the_names_of_their_places(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "repository")
    one = kept(repository, MachineKind.TPM, archive.pack({"state": b"keys"}))
    placed = [replace(each, path=Path("/elsewhere/tpm2")) for each in restored_machine.placed(one, OUT)]
    restored_machine.write(placed, one, tmp_path, repository=repository, stop=Stop())
    assert (tmp_path / "tpm2" / "state").read_bytes() == b"keys"


def test_firmware_that_this_host_does_not_have_is_told(tmp_path: Path) -> None:
    def missing(system: str) -> str | None:
        return restored_machine.missing_firmware(XML.replace("<devices>", f"<os>{system}</os><devices>"))

    (tmp_path / "code.fd").touch()
    assert missing("") is None
    assert missing(f"<loader>{tmp_path}/code.fd</loader>") is None
    assert missing(f"<loader>{tmp_path}/other.fd</loader>") == f"{tmp_path}/other.fd"
    assert missing(f"<loader>/{'x' * 300}</loader>") == f"/{'x' * 300}"


def test_secret_that_the_tpm_needs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "library_version", lambda: restored_machine.TPM_SOURCE_SINCE)
    encrypted = XML.replace("'1.2'/>", f"'1.2'><encryption secret='{UUID}'/></backend>")
    placed = restored_machine.placed(backup(1, machine=(TPM,)), OUT)
    assert [left.dev for left in restored_machine.shared(encrypted, placed, None)] == [f"secret {UUID}"]
    assert restored_machine.shared(encrypted, (), None) == []
