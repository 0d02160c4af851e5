"""Files of schedules come, change and go; those of others stay, and nothing is left in the end."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.schedule import places
from vbackup.schedule.places import Place, State, Wanted, Way
from vbackup.schedule.units import MARKER, Needs

NEEDS = Needs("nightly", ("/usr/bin/vbackup",), on_calendar=("*-*-* 01:30:00",))
HOST = "hv1"
TOP = Path(__file__).resolve().parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink())


def test_files_of_systemd(root: Path) -> None:
    place = Place(Way.SYSTEMD, root)
    for one in place.wanted(NEEDS, host=HOST):
        assert one.state() is State.ABSENT
        assert one.install()
        assert one.state() is State.INSTALLED
        assert not one.install()
    below = "etc/systemd/system"
    assert tree(root) == [
        f"{below}/timers.target.wants/vbackup-boot@nightly.timer",
        f"{below}/timers.target.wants/vbackup@nightly.timer",
        f"{below}/vbackup-boot@.timer",
        f"{below}/vbackup@.service",
        f"{below}/vbackup@.timer",
        f"{below}/vbackup@nightly.service.d/50-vbackup.conf",
        f"{below}/vbackup@nightly.timer.d/50-vbackup.conf",
    ]
    link = root / below / "timers.target.wants" / "vbackup@nightly.timer"
    assert str(link.readlink()) == "/etc/systemd/system/vbackup@.timer"
    assert place.jobs() == ("nightly",)
    for one in (*place.written("nightly"), *place.templates()):
        assert one.remove()
        assert not one.remove()
    assert tree(root) == []
    assert [path.name for path in (root / below).iterdir()] == []
    assert place.jobs() == ()


def test_units_that_a_package_has_installed_are_used(root: Path) -> None:
    for name in ("vbackup@.service", "vbackup@.timer", "vbackup-boot@.timer"):
        path = root / "usr/lib/systemd/system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of the package")
    place = Place(Way.SYSTEMD, root)
    assert place.templates() == ()
    links = {one.path.name: one.content for one in place.wanted(NEEDS, host=HOST) if one.is_link}
    assert links == {
        "vbackup@nightly.timer": "/usr/lib/systemd/system/vbackup@.timer",
        "vbackup-boot@nightly.timer": "/usr/lib/systemd/system/vbackup-boot@.timer",
    }


def test_files_of_a_user(root: Path) -> None:
    place = Place(Way.SYSTEMD, root, root / "home/.config")
    for one in place.wanted(NEEDS, host=HOST):
        one.install()
    units = root / "home/.config/systemd/user"
    assert (units / "vbackup@.service").read_text() == (TOP / "hooks/systemd/user/vbackup@.service").read_text()
    link = units / "timers.target.wants" / "vbackup@nightly.timer"
    assert link.resolve() == units / "vbackup@.timer"


def test_file_of_cron(root: Path) -> None:
    place = Place(Way.CRON, root)
    (wanted,) = place.wanted(NEEDS, host=HOST)
    assert wanted.path == root / "etc/cron.d/vbackup-nightly"
    assert wanted.install()
    assert place.jobs() == ("nightly",)
    (written,) = place.written("nightly")
    assert written.remove()
    assert (root / "etc/cron.d").is_dir()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_can_read_files_and_directories(root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for one in Place(Way.SYSTEMD, root).wanted(NEEDS, host=HOST):
            one.install()
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*") if not path.is_symlink()}
    assert modes == {0o755, 0o644}


def test_changed_job_is_out_of_date(root: Path) -> None:
    place = Place(Way.SYSTEMD, root)
    for one in place.wanted(NEEDS, host=HOST):
        one.install()
    changed = replace(NEEDS, on_calendar=("*-*-* 02:00:00",))
    states = {one.path.parent.name: one.state() for one in place.wanted(changed, host=HOST) if not one.is_link}
    assert states["vbackup@nightly.timer.d"] is State.OUTDATED
    assert states["vbackup@nightly.service.d"] is State.INSTALLED


def foreign_file(path: Path) -> None:
    path.write_text("[Timer]\nOnCalendar=daily\n")


def foreign_link(path: Path) -> None:
    path.symlink_to("/etc/shadow")


def directory(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [foreign_file, foreign_link, directory, fifo])
@pytest.mark.parametrize("is_link", [False, True])
def test_what_is_not_vbackups_is_left_alone(tmp_path: Path, make: object, *, is_link: bool) -> None:
    path = tmp_path / "50-vbackup.conf"
    make(path)  # type: ignore[operator]
    before = path.lstat()
    wanted = Wanted(path, MARKER if not is_link else "/etc/systemd/system/vbackup@.timer", is_link)
    assert wanted.state() is State.FOREIGN
    for work in (wanted.install, wanted.remove):
        with pytest.raises(StorageError, match="is not vbackup's"):
            work()
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)


def test_files_beside_stay_with_their_directory(root: Path) -> None:
    place = Place(Way.SYSTEMD, root)
    for one in place.wanted(NEEDS, host=HOST):
        one.install()
    own = root / "etc/systemd/system/vbackup@nightly.service.d/override.conf"
    own.write_text("[Service]\nNice=19\n")
    for one in place.written("nightly"):
        one.remove()
    assert own.read_text() == "[Service]\nNice=19\n"


def test_link_to_an_older_place_is_replaced(root: Path) -> None:
    path = root / "vbackup@nightly.timer"
    path.symlink_to("/usr/lib/systemd/system/vbackup@.timer")
    wanted = Wanted(path, "/etc/systemd/system/vbackup@.timer", is_link=True)
    assert wanted.state() is State.OUTDATED
    assert wanted.install()
    assert str(path.readlink()) == "/etc/systemd/system/vbackup@.timer"


def test_shipped_units_are_those_in_hooks() -> None:
    """A symbolic link in the sources; a file where vbackup is installed."""
    shipped = sorted(path.relative_to(TOP / "hooks/systemd") for path in (TOP / "hooks/systemd").rglob("*.*"))
    assert sorted(path.relative_to(places.TEMPLATES) for path in places.TEMPLATES.rglob("*.*")) == shipped
    for path in places.TEMPLATES.rglob("*.*"):
        assert path.read_text().startswith(places.SHIPPED)
