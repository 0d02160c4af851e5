"""A live restore is refused before anything is written, and what has failed leaves what others need."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import REPOSITORY, UUID, Recorder, backup, backup_id, commit, live_state_in
from vbackup.errors import (
    ChainError,
    DomainNotFoundError,
    MonitorError,
    NoSpaceError,
    StorageError,
    UnsuitableError,
    UsageError,
)
from vbackup.hooks import half_restored
from vbackup.images import live_point
from vbackup.images.destination import Destination
from vbackup.model import ImageFormat
from vbackup.operations import live_abort, live_pull, live_restore, live_resume
from vbackup.operations.live_place import Here
from vbackup.qemu.qemu_img import Output
from vbackup.repository import live_state, protection
from vbackup.repository.protection import Protection
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

OTHER = "88888888-2222-3333-4444-555555555555"
DISK = "<domain><devices><disk><source file='{}'/><target dev='vda'/></disk></devices></domain>"


class Host:
    """Has domains, by name or UUID, and no storage pools."""

    is_local = True

    def __init__(self, *known: str, xml: str = "") -> None:
        self.known, self.xml = known, xml

    def domain(self, word: str) -> Any:
        if word not in self.known:
            raise DomainNotFoundError(word, "here", "look")
        return SimpleNamespace(name="web", uuid=UUID, definition_xml=lambda: self.xml)

    def errors(self, what: str) -> Any:
        raise MonitorError(f"libvirt could not {what}.")


def test_path_has_to_be_short_enough_for_a_socket() -> None:
    longest = Path("/" + "a" * 96)
    live_restore.refuse_long(longest)
    with pytest.raises(UsageError, match="at most 97 bytes"):
        live_restore.refuse_long(Path("/" + "a" * 97))


def test_domain_that_uses_other_images_is_left_alone(tmp_path: Path) -> None:
    state = live_state_in(tmp_path)
    assert live_resume.domain_of(Host(UUID, xml=DISK.format(state.image("vda"))), state) is not None  # type: ignore[arg-type]
    assert live_resume.domain_of(Host(), state) is None  # type: ignore[arg-type]
    with pytest.raises(UnsuitableError, match="/elsewhere") as caught:
        live_resume.domain_of(Host(UUID, xml=DISK.format("/elsewhere")), state)  # type: ignore[arg-type]
    assert f"virsh blockcommit web vda --base {state.image('vda')} --active --pivot" in str(caught.value)
    assert "virsh edit" not in str(caught.value)


@pytest.mark.parametrize("is_undone", [True, False])
def test_start_is_refused_until_the_failed_one_is_undone(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, is_undone: bool
) -> None:
    """A domain that could not be undefined has disks without data."""
    monkeypatch.setattr(half_restored, "DIRECTORY", tmp_path / "records")
    output = tmp_path / "restored"
    output.mkdir()
    state = replace(live_state_in(output), protected=())
    live_state.write(state)
    recorder = Recorder()
    host = Host()
    if not is_undone:
        monkeypatch.setattr(host, "domain", host.errors)
    work: Any = SimpleNamespace(
        host=host, repository=Repository.open(repository), reporter=recorder, pool=None, place=Here()
    )
    live_restore.refuse_start_by_others(work.place, state, work.repository, recorder)
    live_restore._take_back(state, work)
    assert (half_restored.DIRECTORY / state.uuid).exists() != is_undone
    assert len(recorder.warnings) == (not is_undone)


@pytest.mark.parametrize("whose", ["ours", "elsewhere", "replaced"])
def test_start_that_failed_ends_no_guest_of_another_restore(tmp_path: Path, repository: Path, whose: str) -> None:
    output = tmp_path / "restored"
    output.mkdir()
    state, ended = live_state_in(output), list[str]()
    live_state.write(state)
    ours, other = (DISK.format(path) for path in (state.image("vda"), "/elsewhere"))
    live, definition = {"ours": (ours, ours), "elsewhere": (other, other), "replaced": (other, ours)}[whose]
    handle = SimpleNamespace(
        live_xml=lambda: live, definition_xml=lambda: definition, destroy=lambda: ended.append("destroyed")
    )
    work: Any = SimpleNamespace(
        host=SimpleNamespace(domain=lambda _: handle),
        repository=Repository.open(repository),
        reporter=Recorder(),
        pool=None,
        place=Here(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_restore.defining, "undefine", lambda _: ended.append("undefined"))
        live_restore._take_back(replace(state, protected=()), work)
    assert ended == (["destroyed", "undefined"] if whose == "ours" else [])
    assert work.reporter.warnings == []
    assert not output.exists()


def test_resume_that_is_refused_leaves_the_guest_its_server(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, ended = Repository.open(repository), list[Path]()
    commit(opened, backup(1))
    state = replace(live_state_in(tmp_path), repository_id=opened.id)
    live_state.write(state)
    (tmp_path / "domain.xml").touch()
    xml = DISK.format(state.image("vda"))
    handle = SimpleNamespace(name="web", definition_xml=lambda: xml, is_active=lambda: True, host=None)
    host: Any = SimpleNamespace(is_local=True, domain=lambda _: handle)

    def refuse(*_words: object, **_options: object) -> None:
        raise ChainError("The image is damaged.")

    monkeypatch.setattr(live_point, "end_earlier", ended.append)
    monkeypatch.setattr(live_restore, "user_of", lambda *_: None)
    monkeypatch.setattr(live_resume.verify, "check_headers", refuse)
    with pytest.raises(ChainError, match="damaged"):
        live_resume.run(
            live_resume.ResumeRequest("web", tmp_path), host=host, repository=opened, reporter=Recorder(), stop=Stop()
        )
    assert ended == []


def test_restore_of_another_domain_or_repository_is_refused(tmp_path: Path) -> None:
    state, ours = live_state_in(tmp_path), SimpleNamespace(id=REPOSITORY, path=tmp_path)
    for name in ("web", UUID):
        live_resume.refuse_other(state, name, ours)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not other"):
        live_resume.refuse_other(state, "other", ours)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="another repository"):
        live_resume.refuse_other(state, "web", SimpleNamespace(id="ba9876543210", path=tmp_path))  # type: ignore[arg-type]


def test_protection_that_somebody_else_gave_stays(repository: Path, tmp_path: Path) -> None:
    opened, state = Repository.open(repository), live_state_in(tmp_path)
    commit(opened, backup(1))
    directory = opened.directory(UUID, backup_id(1))
    for reason, stays in ((f"live restore to {tmp_path}", False), ("mine", True)):
        protection.protect(directory, Protection(None, reason))
        live_restore.unprotect(state, opened, Recorder())
        assert (protection.read(directory) is not None) is stays


def test_abort_that_failed_is_done_again(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, opened = tmp_path / "restored", Repository.open(repository)
    output.mkdir()
    state = replace(live_state_in(output), repository_id=opened.id, protected=())
    live_state.write(state)
    for path in state.paths:
        path.touch()
    request: Any = live_abort.AbortRequest("web", output, is_confirmed=True)
    host: Any = Host()
    unlink = Path.unlink

    def fail(path: Path, *, missing_ok: bool = False) -> None:
        if path == state.image("vda"):
            raise OSError(errno.EIO, "Input/output error")
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", fail)
        with pytest.raises(StorageError, match="Input/output"):
            live_abort.run(request, host=host, repository=opened, reporter=Recorder())
    assert state.image("vda").exists()
    live_abort.run(request, host=host, repository=opened, reporter=Recorder())
    assert not output.exists()


def test_advice_is_a_command(tmp_path: Path) -> None:
    state = live_state_in(tmp_path / "with space")
    assert f"vbackup restore {UUID} --live --resume --output '{tmp_path}/with space'" in live_pull.advice(state)


def test_restore_of_a_new_domain_is_found_by_its_own_name_alone(tmp_path: Path) -> None:
    state, ours = (
        replace(live_state_in(tmp_path), name="new", uuid=OTHER),
        SimpleNamespace(id=REPOSITORY, path=tmp_path),
    )
    for name in ("new", OTHER):
        live_resume.refuse_other(state, name, ours)  # type: ignore[arg-type]
    for name in ("web", UUID):
        with pytest.raises(UsageError, match=f"is of domain new .{OTHER}., not {name}"):
            live_resume.refuse_other(state, name, ours)  # type: ignore[arg-type]


def found(*restored: str) -> Any:
    """A backup with vda and vdb, of which these disks are to be restored."""
    of = [SimpleNamespace(dev=dev) for dev in ("vda", "vdb")]
    return SimpleNamespace(
        backup=SimpleNamespace(id=backup_id(1), disks=of),
        chains=dict.fromkeys(restored),
        paths=lambda _repository, dev: [dev],
    )


def test_domain_needs_all_of_its_disks() -> None:
    live_restore._refuse_part(found("vdb", "vda"))
    with pytest.raises(UsageError, match="give vdb to --disk, too"):
        live_restore._refuse_part(found("vda"))


def test_block_device_is_no_place_for_data_that_comes_home() -> None:
    live_restore._refuse_devices([Destination("vda", Path("/x"), ImageFormat.QCOW2)])
    with pytest.raises(UnsuitableError, match=r"Disk vdb: /dev/vg/web is a block device.*without --live"):
        live_restore._refuse_devices([Destination("vdb", Path("/dev/vg/web"), ImageFormat.RAW, Output.DEVICE)])


def test_disks_of_a_domain_elsewhere_have_one_place() -> None:
    host = SimpleNamespace(is_local=False, real_uri="qemu+ssh://far/system")
    for destinations, pool in (({"vda": Path("/x")}, None), ({}, "default")):
        work: Any = SimpleNamespace(host=host, request=SimpleNamespace(destinations=destinations), pool=pool)
        with pytest.raises(UnsuitableError, match="run vbackup there"):
            live_restore._refuse_places(work)


def test_room_is_that_of_each_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    places = [Destination(dev, tmp_path / "new" / dev, ImageFormat.QCOW2) for dev in ("vda", "vdb")]
    work: Any = SimpleNamespace(repository=None, place=Here())
    monkeypatch.setattr(live_restore.data_size, "image_bytes", lambda _paths: free * 2 // 3)
    live_restore._refuse_full(found("vda", "vdb"), places[:1], work)
    with pytest.raises(NoSpaceError, match=f"{tmp_path} has room for"):
        live_restore._refuse_full(found("vda", "vdb"), places, work)
    places[1] = Destination("vdb", Path("/dev/shm/vdb"), ImageFormat.QCOW2)
    monkeypatch.setattr(live_restore.data_size, "image_bytes", lambda paths: 1 if paths == ["vda"] else 1 << 62)
    with pytest.raises(NoSpaceError, match="/dev/shm has room for"):
        live_restore._refuse_full(found("vda", "vdb"), places, work)
