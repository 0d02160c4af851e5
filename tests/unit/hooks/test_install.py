"""``vbackup hooks`` installs and removes its script, and leaves the files of others alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.hooks.conftest import needs_root
from vbackup.cli.handlers import hooks as handler
from vbackup.hooks import daemons, install
from vbackup.hooks.daemons import Daemon
from vbackup.hooks.install import MARKER, RPATH, Place

if TYPE_CHECKING:
    from tests.conftest import Command

TOP = Path(__file__).resolve().parents[3]
SCRIPT = (TOP / "hooks" / "qemu").read_bytes()
SCHEMAS = {path.name for path in (TOP / "vbackup" / "schemas").glob("*.json")}
OURS_OLD = b"#!/bin/sh\n" + MARKER + b" as it was once\nexit 1\n"
THEIRS = b"#!/bin/sh\n# not vbackup-libvirt-hook\nexit 0\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with libvirt, without hooks."""
    path = tmp_path / "root"
    (path / "etc" / "libvirt").mkdir(parents=True)
    return path


@pytest.fixture
def place(root: Path) -> Path:
    """Where the script belongs."""
    return root / RPATH


def put(path: Path, text: bytes, mode: int = 0o755) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    path.chmod(mode)


def tree(root: Path) -> dict[str, object]:
    """All that is there."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in root.rglob("*")
    }


# install


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_installed_script_is_as_libvirt_needs_it(command: Command, root: Path, place: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        document = command("hooks", "install", "--root", root, "--json").document
    finally:
        os.umask(before)
    assert document == {
        "schema": "vbackup.hooks/1",
        "action": "install",
        "path": str(place),
        "state": "installed",
        "changed": True,
        "daemons": [],
    }
    assert place.read_bytes() == SCRIPT
    assert [path.stat().st_mode & 0o777 for path in (place, place.parent, place.parent.parent)] == [0o755] * 3
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_installing_twice_is_fine(command: Command, root: Path) -> None:
    command("hooks", "install", "--root", root)
    before = tree(root)
    assert command("hooks", "install", "--root", root, "--json").document["changed"] is False
    assert tree(root) == before


@pytest.mark.parametrize(("text", "mode"), [(OURS_OLD, 0o755), (SCRIPT, 0o644), (SCRIPT + b"\n", 0o700)])
def test_another_version_of_ours_is_brought_up_to_date(
    command: Command, root: Path, place: Path, text: bytes, mode: int
) -> None:
    put(place, text, mode)
    assert command("hooks", "status", "--root", root, "--json").document["state"] == "outdated"
    assert command("hooks", "install", "--root", root, "--json").document["changed"] is True
    assert (place.read_bytes(), place.stat().st_mode & 0o777) == (SCRIPT, 0o755)


def test_what_a_killed_install_left_is_replaced(command: Command, root: Path, place: Path) -> None:
    put(place.with_name(".50-vbackup.new"), b"half", 0o600)
    command("hooks", "install", "--root", root)
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_other_scripts_stay(command: Command, root: Path, place: Path) -> None:
    put(place.with_name("10-network"), THEIRS)
    put(place.parent.with_name("qemu"), THEIRS)
    before = tree(root)
    command("hooks", "install", "--root", root)
    assert {**tree(root), **before} == tree(root)
    command("hooks", "remove", "--root", root)
    assert tree(root) == before


FOREIGN: dict[str, Callable[[Path], object]] = {
    "script": lambda path: put(path, THEIRS),
    "empty": lambda path: put(path, b""),
    "binary": lambda path: put(path, bytes(100)),
    "directory": lambda path: path.mkdir(parents=True),
    "link to ours": lambda path: (path.parent.mkdir(parents=True), path.symlink_to(TOP / "hooks" / "qemu")),
    "link to nothing": lambda path: (path.parent.mkdir(parents=True), path.symlink_to("nothing")),
    "fifo": lambda path: (path.parent.mkdir(parents=True), os.mkfifo(path)),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("action", ["install", "remove"])
def test_somebody_else_s_is_status_seven_and_left_alone(
    command: Command, root: Path, place: Path, kind: str, action: str
) -> None:
    FOREIGN[kind](place)
    before = tree(root)
    said = command("hooks", action, "--root", root, status=7).stderr
    assert f"{place} is not vbackup's" in said
    assert len(said.splitlines()) == 1
    assert tree(root) == before
    assert command("hooks", "status", "--root", root, "--json").document["state"] == "foreign"


def test_without_libvirt_nothing_is_made(command: Command, tmp_path: Path) -> None:
    assert "is libvirt installed?" in command("hooks", "install", "--root", tmp_path, status=7).stderr
    assert list(tmp_path.iterdir()) == []
    assert "is not installed" in command("hooks", "status", "--root", tmp_path).stdout


@pytest.mark.parametrize("action", ["status", "install", "remove"])
def test_root_that_is_not_there_is_no_system_without_the_script(command: Command, tmp_path: Path, action: str) -> None:
    said = command("hooks", action, "--root", tmp_path / "none", status=7).stderr
    assert f"the root directory {tmp_path / 'none'} does not exist; check --root." in said


def test_directory_that_is_none_is_status_seven(command: Command, root: Path) -> None:
    (root / "etc" / "libvirt" / "hooks").touch()
    assert "Cannot install" in command("hooks", "install", "--root", root, status=7).stderr
    assert "is not installed" in command("hooks", "remove", "--root", root).stdout


@contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A system that every user may read, and so is vbackup's own script, wherever this project is."""
    path = Path(tempfile.mkdtemp(prefix="vbackup-root-", dir="/tmp"))
    path.chmod(0o755)
    (path / "etc" / "libvirt").mkdir(parents=True)
    (path / "script").write_bytes(SCRIPT)
    monkeypatch.setattr(install, "SCRIPT", path / "script")
    yield path
    shutil.rmtree(path)


@needs_root
def test_user_who_may_not_is_status_seven(command: Command, open_root: Path) -> None:
    with another_user():
        said = command("hooks", "install", "--root", open_root, status=7).stderr
        assert "Permission denied. vbackup runs as" in said
        assert f"may not write to the directory {open_root / 'etc' / 'libvirt'}" in said
        assert "is not installed" in command("hooks", "status", "--root", open_root).stdout
    command("hooks", "install", "--root", open_root)
    with another_user():
        assert "Permission denied" in command("hooks", "remove", "--root", open_root, status=7).stderr
        assert "is installed" in command("hooks", "status", "--root", open_root).stdout
    assert (open_root / RPATH).read_bytes() == SCRIPT


# remove and status


@pytest.mark.parametrize("text", [SCRIPT, OURS_OLD])
def test_removed_script_leaves_nothing(command: Command, root: Path, place: Path, text: bytes) -> None:
    (root / "etc" / "libvirt" / "hooks").mkdir()
    before = tree(root)
    put(place, text)
    document = command("hooks", "remove", "--root", root, "--json").document
    assert (document["action"], document["state"], document["changed"]) == ("remove", "absent", True)
    assert tree(root) == before


def test_removing_nothing_is_fine(command: Command, root: Path) -> None:
    assert command("hooks", "remove", "--root", root).stdout.endswith("is not installed.\n")
    assert command("hooks", "remove", "--root", root, "--json").document["changed"] is False


def test_state_is_told(command: Command, root: Path, place: Path) -> None:
    def state() -> str:
        return command("hooks", "status", "--root", root).stdout

    assert state() == f"{place} is not installed.\n"
    said = command("hooks", "install", "--root", root).stdout
    assert said == f"{place} is installed.\nlibvirt finds it when it starts there.\n"
    assert state() == f"{place} is installed.\n"
    put(place, OURS_OLD)
    assert "'vbackup hooks install' updates it" in state()
    assert command("hooks", "remove", "--root", root).stdout == f"{place} was removed.\n"
    put(place, THEIRS)
    assert "is not a vbackup script" in state()


def test_status_changes_nothing(command: Command, root: Path) -> None:
    command("hooks", "status", "--root", root)
    assert list((root / "etc" / "libvirt").iterdir()) == []


# on this system


@pytest.fixture
def here(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install this system's script in a directory of the test; no daemon is notified."""
    monkeypatch.setattr(install, "RPATH", str(place.relative_to("/")))
    monkeypatch.setattr(daemons, "NAMES", ())
    assert Place().path == place
    return place


def test_script_is_tried_out_before_libvirt_gets_it(command: Command, here: Path) -> None:
    assert "no libvirt daemon is running here" in command("hooks", "install").stdout
    assert here.read_bytes() == SCRIPT


BAD_SCRIPTS = {
    "no interpreter": (b"#!/no/such/python3 -IS\n", "needs /no/such/python3"),
    "fails": (b"#!/bin/sh -e\nexit 1\n", "status 1"),
    "syntax": (b"#!/usr/bin/python3 -IS\nmatch = = 1\n", "SyntaxError"),
    "prints": (b"#!/bin/sh\necho '<domain/>'\n", "does not work"),
    "half a python": (SCRIPT.replace(b"import json", b"import no_such_module"), "no_such_module"),
    "hangs": (b"#!/bin/sh\nexec sleep 60\n", "does not end"),
}


@pytest.mark.parametrize("kind", BAD_SCRIPTS)
def test_script_that_does_not_work_here_is_not_installed(
    command: Command, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    text, said = BAD_SCRIPTS[kind]
    script = tmp_path / "bad"
    script.write_bytes(text)
    monkeypatch.setattr(install, "SCRIPT", script)
    monkeypatch.setattr(install, "TRIAL_TIMEOUT_S", 1.0 if kind == "hangs" else 20.0)
    put(here, OURS_OLD)
    assert said in command("hooks", "install", status=7).stderr
    assert here.read_bytes() == OURS_OLD
    assert [path.name for path in here.parent.iterdir()] == [here.name]


def test_daemons_are_told_even_if_the_script_was_there(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(here, SCRIPT)
    found = (Daemon("libvirtd", 10, told=True), Daemon("virtqemud", 11, told=False))
    monkeypatch.setattr(handler, "reload_daemons", lambda: found)
    said = command("hooks", "install").stdout
    assert "libvirtd (process 10) was reloaded to find it." in said
    assert "virtqemud (process 11) could not be reloaded; run 'systemctl reload virtqemud'." in said
    quietly = command("hooks", "install", "-q")
    assert quietly.stdout == ""
    assert quietly.stderr.splitlines() == [
        "vbackup: warning: virtqemud (process 11) could not be reloaded; run 'systemctl reload virtqemud'."
    ]
    assert command("hooks", "install", "--json").document["daemons"] == [
        {"name": "libvirtd", "pid": 10, "told": True},
        {"name": "virtqemud", "pid": 11, "told": False},
    ]
    assert command("hooks", "status", "--json").document["daemons"] == []


# what is shipped


@pytest.mark.parametrize("kind", ["build", "sdist"])
def test_script_and_schemas_are_shipped_as_files(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    for name in ("vbackup", "hooks"):
        shutil.copytree(TOP / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source)
    place = {"build": "--build-lib", "sdist": "--dist-dir"}[kind]
    argv = [sys.executable, "-W", "ignore", "setup.py", "-q", kind, place, str(tmp_path / "out")]
    subprocess.run(argv, cwd=source, check=True, capture_output=True)
    out = tmp_path / "out"
    if kind == "sdist":
        (archive,) = out.iterdir()
        with tarfile.open(archive) as packed:
            packed_names = packed.getnames()
            assert all(any(one.endswith(f"/vbackup/schemas/{name}") for one in packed_names) for name in SCHEMAS)
            (member,) = [one for one in packed.getmembers() if one.name.endswith("/vbackup/hooks/qemu")]
            assert member.isreg()
            file = packed.extractfile(member)
            assert file is not None
            assert file.read() == SCRIPT
    else:
        assert {path.name for path in (out / "vbackup" / "schemas").glob("*.json")} == SCHEMAS
        shipped = out / "vbackup" / "hooks" / "qemu"
        assert not shipped.is_symlink()
        assert shipped.read_bytes() == SCRIPT
