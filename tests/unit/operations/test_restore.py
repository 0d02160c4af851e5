"""A restore writes everything or nothing, beside what is there, and only after its whole chain was checked."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import (
    FIXTURES,
    MIB,
    SIZE_BYTES,
    UUID,
    Recorder,
    backup,
    fixture_xml,
    image,
    incremental,
    qcow2_image,
)
from vbackup import files
from vbackup.domain import domain_xml
from vbackup.domain.restored_xml import RestoredXml
from vbackup.errors import ChainError, DiskError, InterruptedBySignalError, NoSpaceError, ScriptError, StorageError
from vbackup.model import Backup, ImageFormat, ImageOptions, LeftOut
from vbackup.operations import restore
from vbackup.operations.restore import Restored, RestoreRequest
from vbackup.qemu import qemu_img
from vbackup.repository import filesystem
from vbackup.repository.choice import Choice, Wanted
from vbackup.repository.repository import Repository
from vbackup.scripts.runner import DomainScripts, Settings
from vbackup.stop import Stop

ONE = backup(1, *(image(dev, source=f"/capture/{dev}.qcow2") for dev in ("vda", "vdb")))
TWO = incremental(2, ONE, "vda", "vdb")
TWO = replace(TWO, disks=tuple(replace(disk, source=f"/capture/{disk.dev}.qcow2") for disk in TWO.disks))
XML = fixture_xml("bitmaps").encode()
FURTHER = {"domain.xml": XML, "nvram": b"variables"}


def commit(repo: Repository, one: Backup, further: dict[str, bytes]) -> Backup:
    """Commit a backup with empty images that match its manifest."""
    with repo.lock(UUID), repo.stage(UUID, one.id) as stage:
        disks = []
        for disk in one.disks:
            backing = None if disk.base is None else f"../{disk.base}/{disk.file}"
            (stage.path / disk.file).touch(mode=0o600)
            qemu_img.create(stage.path / disk.file, SIZE_BYTES, backing_rpath=backing, options=ImageOptions())
            data = (stage.path / disk.file).read_bytes()
            disks.append(replace(disk, file_size_bytes=len(data), digest=files.digest_of(data)))
        recorded = {name: stage.write(name, data) for name, data in further.items()}
        repo.remember_name(UUID, "web")
        made = replace(one, disks=tuple(disks), files=recorded)
        stage.commit(made)
    return made


@pytest.fixture
def filled(repo: Repository) -> Repository:
    for one in (ONE, TWO):
        commit(repo, one, FURTHER)
    return repo


def run(
    repo: Repository,
    output: Path,
    *,
    recorder: Recorder | None = None,
    stop: Stop | None = None,
    image_format: ImageFormat = ImageFormat.QCOW2,
    **wanted: Any,
) -> Restored:
    request = RestoreRequest("web", output, Wanted(**wanted), image_format=image_format)
    return restore.run(request, repository=repo, reporter=recorder or Recorder(), stop=stop or Stop())


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def names_in(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir())


@pytest.mark.parametrize("image_format", ImageFormat)
def test_restored_files_are_the_owners_alone_and_the_xml_names_them(
    filled: Repository, tmp_path: Path, image_format: ImageFormat
) -> None:
    output = tmp_path / "new" / "output"
    done = run(filled, output, image_format=image_format)
    assert names_in(output) == sorted(["domain.xml", "nvram", f"vda.{image_format.value}", f"vdb.{image_format.value}"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in output.iterdir()} == {0o600}
    # QEMU, as another user, can enter what was made.
    assert {stat.S_IMODE(path.stat().st_mode) for path in (output, output.parent)} == {0o711}
    assert done.images == {dev: output / f"{dev}.{image_format.value}" for dev in ("vda", "vdb")}
    assert done.backup.id == TWO.id
    assert (output / "nvram").read_bytes() == FURTHER["nvram"]
    paths = {disk.dev: disk.path for disk in domain_xml.parse(done.domain_xml.read_text()).disks}
    assert {dev: paths[dev] for dev in done.images} == {dev: os.fspath(path) for dev, path in done.images.items()}
    if image_format is ImageFormat.RAW:
        assert {path.stat().st_size for path in done.images.values()} == {SIZE_BYTES}


def test_chain_is_checked_before_anything_is_written(filled: Repository, tmp_path: Path) -> None:
    flip_a_bit(filled.directory(UUID, ONE.id) / "vdb.qcow2")
    with pytest.raises(ChainError, match="altered or is damaged"):
        run(filled, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_only_the_wanted_disks_are_checked_and_written(filled: Repository, tmp_path: Path) -> None:
    flip_a_bit(filled.directory(UUID, ONE.id) / "vdb.qcow2")
    run(filled, tmp_path / "output", disks=("vda",))
    assert names_in(tmp_path / "output") == ["domain.xml", "nvram", "vda.qcow2"]
    with pytest.raises(DiskError, match=f"backup {TWO.id} has no such disk; it has vda, vdb"):
        run(filled, tmp_path / "other", disks=("vdz",))


def test_nothing_is_restored_into_the_repository(filled: Repository, tmp_path: Path) -> None:
    before = sorted(filled.path.rglob("*"))
    (tmp_path / "link").symlink_to(filled.path)
    (tmp_path / "output").mkdir()
    for output, destinations in [
        (filled.path, {}),
        (tmp_path / "link" / "new" / "output", {}),
        (tmp_path / "output", {"vda": tmp_path / "link" / UUID / "vda.img"}),
    ]:
        request = RestoreRequest("web", output, destinations=destinations)
        with pytest.raises(StorageError, match=f"is in the repository {filled.path}, where only backups") as caught:
            restore.run(request, repository=filled, reporter=Recorder(), stop=Stop())
        assert caught.value.status == 7
    assert sorted(filled.path.rglob("*")) == before
    assert not names_in(tmp_path / "output")


@pytest.mark.parametrize("name", ["vdb.qcow2", "domain.xml", "nvram"])
@pytest.mark.parametrize("dangling", [False, True], ids=["file", "dangling link"])
def test_nothing_that_is_there_is_overwritten(filled: Repository, tmp_path: Path, name: str, dangling: bool) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / name).symlink_to("nowhere") if dangling else (output / name).write_text("precious")
    with pytest.raises(StorageError, match=f"{output / name} already exists"):
        run(filled, output)
    assert names_in(output) == [name]
    assert dangling or (output / name).read_text() == "precious"


def test_file_that_appears_meanwhile_undoes_what_was_moved(
    filled: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    move = filesystem.move

    def move_and_meddle(source: Path, free: Path) -> None:
        if free == output / "vdb.qcow2":
            (output / "domain.xml").write_text("somebody else's")
        move(source, free)

    monkeypatch.setattr(filesystem, "move", move_and_meddle)
    with pytest.raises(StorageError, match="already exists"):
        run(filled, output)
    assert names_in(output) == ["domain.xml"]
    assert (output / "domain.xml").read_text() == "somebody else's"


def test_domain_xml_gets_its_name_last(filled: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    move = filesystem.move
    monkeypatch.setattr(filesystem, "move", lambda source, free: (moved.append(free.name), move(source, free))[1])
    run(filled, tmp_path / "output")
    assert moved == ["vda.qcow2", "vdb.qcow2", "nvram", "domain.xml"]


def full_at(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(count))
    fsync = files.fsync

    def maybe(path: Path) -> None:
        if next(calls, None) is None:
            raise OSError(28, "No space left on device")
        fsync(path)

    monkeypatch.setattr(files, "fsync", maybe)


@pytest.mark.parametrize("is_new", [True, False], ids=["new directory", "existing directory"])
@pytest.mark.parametrize("count", range(5))
def test_full_filesystem_leaves_nothing(
    filled: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, is_new: bool
) -> None:
    """At each image, each further file, and at last the directory."""
    output = tmp_path / "output"
    if not is_new:
        output.mkdir()
    full_at(count, monkeypatch)
    with pytest.raises(NoSpaceError):
        run(filled, output)
    assert output.exists() == (not is_new)
    assert is_new or names_in(output) == []


def test_request_to_stop_leaves_nothing(filled: Repository, tmp_path: Path) -> None:
    class Stopping(Recorder):
        def step(self, message: str) -> None:
            if "vdb: restored" in message:
                stop.request(signal.SIGTERM)

    stop = Stop()
    with pytest.raises(InterruptedBySignalError):
        run(filled, tmp_path / "output", recorder=Stopping(), stop=stop)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("further", "said"),
    [({"nvram": b"x"}, "lists no domain.xml"), ({"domain.xml": b"<domain>"}, "domain.xml of backup .* is not valid")],
    ids=["missing", "not valid"],
)
def test_backup_without_a_valid_domain_xml_is_refused(
    repo: Repository, tmp_path: Path, further: dict[str, bytes], said: str
) -> None:
    commit(repo, ONE, further)
    with pytest.raises(ChainError, match=said):
        run(repo, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("choose", "restored"),
    [(dict, TWO.id), (lambda: {"backup_id": ONE.id}, ONE.id), (lambda: {"at": ONE.time}, ONE.id)],
    ids=["newest", "by id", "by time"],
)
def test_backup_is_chosen_by_its_id_or_a_time(
    filled: Repository, tmp_path: Path, choose: Callable[[], dict[str, Any]], restored: str
) -> None:
    assert run(filled, tmp_path / "output", **choose()).backup.id == restored


def test_xml_of_the_running_domain_is_read_and_not_restored(repo: Repository, tmp_path: Path) -> None:
    """Its vdb is restored under that name; the definition's is another image."""
    inactive = (FIXTURES / "differing" / "inactive.xml").read_bytes()
    further = {"domain.xml": inactive, "live.xml": fixture_xml("differing").encode()}
    commit(repo, backup(1, image("vda"), image("vdb"), image("vdd"), image("sdb")), further)
    done = run(repo, tmp_path / "output")
    assert names_in(tmp_path / "output") == ["domain.xml", *(f"{dev}.qcow2" for dev in ("sdb", "vda", "vdb", "vdd"))]
    assert [disk.dev for disk in domain_xml.parse(done.domain_xml.read_text()).disks] == ["vda", "vdb", "vdd", "sdb"]


def test_what_is_missing_and_what_is_shared_is_warned_of(
    filled: Repository, tmp_path: Path, recorder: Recorder
) -> None:
    """The definition has a third disk."""
    done = run(filled, tmp_path / "one", recorder=recorder)
    assert [left.dev for left in done.left_out] == ["vdc"]
    assert recorder.warnings == [
        "Not in the restored domain.xml: vdc (disk /capture/vdc.raw: it is not in the backup)."
    ]
    done = run(filled, tmp_path / "two", recorder=recorder, disks=("vda",))
    assert [left.dev for left in done.shared] == ["vdb", "vdc"]
    assert "The restored domain.xml still names the original's vdb" in recorder.warnings[-2]


@pytest.mark.parametrize(
    ("data", "image_format"), [(qcow2_image(65536), "qcow2"), (b"QFI\xfb...", None), (b"variables", None)]
)
def test_nvram_has_the_format_that_it_was_saved_in(
    repo: Repository, tmp_path: Path, data: bytes, image_format: str | None
) -> None:
    xml = XML.replace(b"</os>", b"<nvram format='one'>/old</nvram></os>")
    commit(repo, ONE, {"domain.xml": xml, "nvram": data})
    text = run(repo, tmp_path / "output").domain_xml.read_text()
    attribute = "" if image_format is None else f' format="{image_format}"'
    assert f"<nvram{attribute}>{tmp_path}/output/nvram</nvram>" in text


def test_file_that_qemu_would_write_to_is_not_overwritten_either(repo: Repository, tmp_path: Path) -> None:
    """The restored domain would have it for its serial port, or for its variables."""
    serial = b"<serial type='file'><source path='/old.log'/></serial></devices>"
    xml = XML.replace(b"</devices>", serial).replace(b"<os>", b"<os firmware='efi'>")
    commit(repo, ONE, {"domain.xml": xml})
    for name in ("serial0.log", "nvram"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(StorageError, match=f"{name} already exists"):
            run(repo, tmp_path)
        (tmp_path / name).unlink()
    assert not (tmp_path / "domain.xml").exists()


def test_progress_is_told_for_each_disk(filled: Repository, tmp_path: Path, recorder: Recorder) -> None:
    run(filled, tmp_path / "output", recorder=recorder)
    assert recorder.steps == [
        "Disk vda: 2 images checked.",
        "Disk vdb: 2 images checked.",
        "Disk vda: restored.",
        "Disk vdb: restored.",
    ]
    assert {dev: told[-1] for dev, told in recorder.told.items()} == dict.fromkeys(("vda", "vdb"), (16 * MIB, 16 * MIB))


def test_each_warning_of_a_restore_is_there_once(filled: Repository) -> None:
    """A live restore says what it restores before the start, and what the definition lacks after it."""
    left, kept = LeftOut("sda", "a CD-ROM", kind="disk"), LeftOut("nvram", "shared", kind="nvram")
    definition = RestoredXml("<domain/>", (left,), (kept,), has_nvram=False)
    two = {"vda": ONE, "vdb": TWO}
    choice = Choice(TWO, two, missing=("vdc",), other_hosts=())
    everything = restore.warnings(choice, definition)
    of_definition = restore.definition_warnings(definition)
    before = [line for line in everything if line not in of_definition]
    assert [line.partition(" (")[0] for line in of_definition] == [
        "Not in the restored domain.xml: sda",
        "The restored domain.xml still names the original's nvram",
    ]
    assert ["vdc" in before[0], "different moments" in before[1], len(before)] == [True, True, 2]


# the user's scripts


def script(directory: Path, phase: str, text: str) -> None:
    path = directory / f"{phase}.d" / "x"
    path.parent.mkdir(mode=0o755, parents=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run_with_scripts(repo: Repository, output: Path, directory: Path, recorder: Recorder) -> Restored:
    scripts = DomainScripts(Settings(directory), reporter=recorder, stop=Stop(), work="restore", domain="web")
    request = RestoreRequest("web", output)
    with scripts.attended():
        return restore.run(request, repository=repo, reporter=recorder, stop=Stop(), scripts=scripts)


def test_script_runs_before_anything_is_written(filled: Repository, tmp_path: Path) -> None:
    output, directory, recorder = tmp_path / "o", tmp_path / "scripts.d", Recorder()
    script(directory, "pre-restore", f"test ! -e {output}; echo $? $VBACKUP_OUTPUT; grep -o {output}/vda.qcow2")
    run_with_scripts(filled, output, directory, recorder)
    assert [line for line in recorder.steps if "script" in line] == [
        f"pre-restore script x: 0 {output}",
        f"pre-restore script x: {output}/vda.qcow2",
    ]


def test_script_that_fails_stops_the_restore(filled: Repository, tmp_path: Path) -> None:
    output, directory, recorder = tmp_path / "o", tmp_path / "scripts.d", Recorder()
    script(directory, "pre-restore", "exit 1")
    script(directory, "on-failure", "echo $VBACKUP_STATUS $VBACKUP_WORK")
    with pytest.raises(ScriptError):
        run_with_scripts(filled, output, directory, recorder)
    assert not output.exists()
    assert recorder.steps == ["on-failure script x: 9 restore"]


def test_what_is_refused_anyway_runs_no_script_before_it(filled: Repository, tmp_path: Path) -> None:
    output, directory, recorder = tmp_path / "o", tmp_path / "scripts.d", Recorder()
    script(directory, "pre-restore", "echo ran")
    script(directory, "on-failure", "echo $VBACKUP_STATUS")
    output.mkdir()
    (output / "vda.qcow2").touch()
    with pytest.raises(StorageError):
        run_with_scripts(filled, output, directory, recorder)
    assert recorder.steps == ["on-failure script x: 7"]
