"""Target images are made several at a time, and each is handed on when it is ready."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from vbackup.errors import InterruptedBySignalError, NoSpaceError, StorageError
from vbackup.images import creation
from vbackup.images.creation import NewImage
from vbackup.images.targets import Target
from vbackup.model import ImageOptions
from vbackup.qemu import qemu_img
from vbackup.stop import Stop

DEADLINE_S = 30.0


def new(directory: Path, count: int) -> list[NewImage]:
    return [NewImage(Target(directory / f"vd{number}", f"node-{number}"), 65536, None) for number in range(count)]


def ready(wanted: list[NewImage], stop: Stop | None = None) -> list[Target]:
    with creation.made(wanted, options=ImageOptions(), stop=stop or Stop()) as targets:
        return list(targets)


def test_files_are_the_owners_own(tmp_path: Path) -> None:
    creation.reserve(new(tmp_path, 2))
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600] * 2


def test_file_that_is_there_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "vd1").write_text("somebody's")
    with pytest.raises(StorageError, match=r"create the image .*vd1: File exists"):
        creation.reserve(new(tmp_path, 2))
    assert (tmp_path / "vd1").read_text() == "somebody's"


def test_images_come_in_their_order_whichever_is_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = threading.Event()

    def create(path: Path, *_arguments: Any, **_options: Any) -> None:
        if path.name == "vd0":
            assert second.wait(DEADLINE_S)
        if path.name == "vd1":
            second.set()

    monkeypatch.setattr(qemu_img, "create", create)
    wanted = new(tmp_path, 3)
    assert ready(wanted) == [one.target for one in wanted]


def test_image_is_handed_on_while_others_are_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed_on = threading.Event()

    def create(path: Path, *_arguments: Any, **_options: Any) -> None:
        assert path.name == "vd0" or handed_on.wait(DEADLINE_S)

    monkeypatch.setattr(qemu_img, "create", create)
    with creation.made(new(tmp_path, 2), options=ImageOptions(), stop=Stop()) as targets:
        for _ in targets:
            handed_on.set()


def test_image_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(path: Path, *_arguments: Any, **_options: Any) -> None:
        if path.name == "vd1":
            raise NoSpaceError("no room")

    monkeypatch.setattr(qemu_img, "create", create)
    with pytest.raises(NoSpaceError, match="no room"):
        ready(new(tmp_path, 3))


def test_no_more_are_made_for_somebody_who_has_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    given_up = threading.Event()

    def create(path: Path, *_arguments: Any, **_options: Any) -> None:
        begun.append(path.name)
        assert path.name == "vd0" or given_up.wait(DEADLINE_S)

    monkeypatch.setattr(qemu_img, "create", create)
    count = 3 * creation.MAX_PROCESSES

    def give_up() -> None:
        with creation.made(new(tmp_path, count), options=ImageOptions(), stop=Stop()) as targets:
            next(iter(targets))
            threading.Timer(0.2, given_up.set).start()  # the others are let go on only when the block is being left
            raise KeyError

    with pytest.raises(KeyError):
        give_up()
    assert len(begun) <= creation.MAX_PROCESSES + 1


def test_request_to_stop_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_img, "create", lambda *_arguments, **_options: None)
    stop = Stop()
    stop.request(15)
    with pytest.raises(InterruptedBySignalError):
        ready(new(tmp_path, 1), stop)
