"""An image is replaced so that its name always leads to the old one or to the new one, and with what it had."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from vbackup.images.replacement import Replacement

ID = "20261123T101500Z-full"


@pytest.fixture
def pair(tmp_path: Path) -> Replacement:
    made = Replacement(tmp_path / "vda.qcow2", ID)
    made.path.write_text("old")
    made.new.write_text("new")
    return made


def names_in(made: Replacement) -> list[str]:
    return sorted(path.name for path in made.path.parent.iterdir())


def test_old_image_is_kept_until_it_is_removed(pair: Replacement) -> None:
    pair.put()
    assert names_in(pair) == ["vda.qcow2", f"vda.qcow2.before-{ID}"]
    assert (pair.path.read_text(), pair.kept.read_text()) == ("new", "old")
    pair.put()
    assert pair.path.read_text() == "new"
    pair.remove_old()
    pair.remove_old()
    assert names_in(pair) == ["vda.qcow2"]


@pytest.mark.parametrize("step", ["link", "rename to", "replace"])
def test_interrupted_exchange_is_ended(pair: Replacement, step: str) -> None:
    if step == "link":
        os.link(pair.path, pair.kept)
    elif step == "rename to":
        pair.path.rename(pair.kept)
    else:
        os.link(pair.path, pair.kept)
        pair.new.replace(pair.path)
    pair.put()
    assert (pair.path.read_text(), pair.kept.read_text()) == ("new", "old")
    assert not pair.new.exists()


def test_filesystem_without_second_names(pair: Replacement, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    pair.put()
    assert (pair.path.read_text(), pair.kept.read_text()) == ("new", "old")


def test_old_image_never_loses_its_last_name(pair: Replacement) -> None:
    pair.kept.write_text("theirs")
    with pytest.raises(FileExistsError):
        pair.put()
    assert (pair.path.read_text(), pair.kept.read_text(), pair.new.read_text()) == ("old", "theirs", "new")


def test_owner_that_cannot_be_given_is_known_before_the_image_is_made(
    pair: Replacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names_in(pair)
    pair.check_attributes()
    pair.path.chmod(0o4600)

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refused)
    with pytest.raises(PermissionError):
        pair.check_attributes()
    assert names_in(pair) == before


def test_lost_image_is_put_where_it_was(pair: Replacement) -> None:
    pair.path.unlink()
    pair.take_attributes()
    pair.put()
    assert names_in(pair) == ["vda.qcow2"]


def test_discarded_image_leaves_the_old_one(pair: Replacement) -> None:
    pair.discard()
    pair.discard()
    assert names_in(pair) == ["vda.qcow2"]
    assert pair.path.read_text() == "old"


def test_new_image_is_as_accessible_as_the_old_one(pair: Replacement) -> None:
    pair.path.chmod(0o664)
    if os.geteuid() == 0:
        os.chown(pair.path, 4711, 4712)
    os.setxattr(pair.path, "user.theirs", b"x")
    os.setxattr(pair.path, "user.vbackup", b"y")
    pair.take_attributes()
    old, new = pair.path.stat(), pair.new.stat()
    assert (new.st_uid, new.st_gid, stat.S_IMODE(new.st_mode)) == (old.st_uid, old.st_gid, 0o664)
    assert os.getxattr(pair.new, "user.theirs") == b"x"
    assert pair.new.read_text() == "new"


@pytest.mark.parametrize(("letter", "name"), [("i", "immutable"), ("a", "append-only")])
@pytest.mark.parametrize("what", ["image", "directory"])
def test_what_can_get_no_other_name_is_told(pair: Replacement, letter: str, name: str, what: str) -> None:
    assert pair.barrier() is None
    path = pair.path if what == "image" else pair.path.parent
    if subprocess.run(["chattr", f"+{letter}", str(path)], capture_output=True, check=False).returncode:
        pytest.skip("this filesystem, or this user, cannot do that")
    try:
        assert pair.barrier() == f"{path} is {name} ('chattr -{letter} {path}' changes that)"
        with pytest.raises(PermissionError):
            pair.put()
    finally:
        subprocess.run(["chattr", f"-{letter}", str(path)], check=True)
    assert pair.barrier() is None


def test_image_that_is_not_there_is_in_nobodys_way(tmp_path: Path) -> None:
    assert Replacement(tmp_path / "none.qcow2", ID).barrier() is None
